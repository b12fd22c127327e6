"""A step as one graph, on a stand-in for CUDA graphs: the bits of an eager run."""

import math
import random

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advfast import graphs
from advfast.training import assemble, checkpoint, methods, modifiers, train
from advfast.training.captured import CapturedStep
from advfast.training.loop import NonFiniteLoss
from advfast.training.modifiers import Modifier

from ..tape import Recorder
from .test_resume import TIMES, assert_same, network


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(102, 1, 8, 8, generator=generator), torch.arange(102) % 3


@pytest.fixture
def recorder(monkeypatch):
    tape = Recorder()
    monkeypatch.setattr(graphs, "recorder", lambda device: tape)
    return tape


def course(folder, data, model=None, **changes):
    """Three epochs of four whole batches and a short one."""
    settings = {
        "val": tuple(part[:6] for part in data), "eps": 0.1, "steps": 2, "epochs": 3,
        "batch_size": 24, "lr": 0.05, "schedule": "triangular", "augment": ["crop", "flip"],
        "progress": False, "seed": 4,
    }  # fmt: skip
    return train(model or network(), data, out=folder, **settings | changes)


def outcome(folder):
    """All that a run leaves, without times."""
    last = checkpoint.read(folder / "last.pt")
    rows = [
        {name: value for name, value in row.items() if name not in TIMES}
        for row in last["run"]["history"]
    ]
    kept = ("weights", "optimizer", "scaler", "method", "modifiers", "rng")
    return {"state": last["state"], "history": rows} | {name: last["run"][name] for name in kept}


class Launches:
    """Of the captured step, after each step of a run."""

    def __init__(self, monkeypatch):
        self.step, self.counts = None, []
        made = CapturedStep.__post_init__

        def post_init(step):
            made(step)
            self.step = step

        monkeypatch.setattr(CapturedStep, "__post_init__", post_init)

    def on_step_end(self, state):
        self.counts.append(self.step.launches)


def both(tmp_path, data, monkeypatch, **changes):
    """(outcome of an eager run, of a captured one, launches after each step)."""
    course(tmp_path / "eager", data, capture="off", **changes)
    tape = Recorder()
    monkeypatch.setattr(graphs, "recorder", lambda device: tape)
    launches = Launches(monkeypatch)
    course(tmp_path / "captured", data, capture="required", callbacks=[launches], **changes)
    return outcome(tmp_path / "eager"), outcome(tmp_path / "captured"), launches.counts


OPTIONS = {"free": {"m": 2}, "yopo": {"m": 2, "n": 2}}


@pytest.mark.parametrize("method", sorted(methods.METHODS))
def test_every_method_gives_the_bits_of_an_eager_run(tmp_path, data, monkeypatch, method):
    changes = {"method": method, "method_options": OPTIONS.get(method)}
    eager, captured, launches = both(tmp_path, data, monkeypatch, **changes)
    assert_same(captured, eager)
    if method == "free":
        # Every batch twice, so that the short one too comes twice in a row.
        assert launches[-1] == 3 * 10 - 2
    else:
        # All but the first step, the short batches, and the step behind the last of them: it is replayed.
        assert launches == [0, 1, 2, 3, 3, 4, 5, 6, 7, 7, 8, 9, 10, 11, 11]


MODIFIERS = {
    "awp": (["awp:gamma=0.01"], 11),
    # From the third epoch on: a new kind, whose first step is eager.
    "awp-late": (["awp:gamma=0.01,warmup=2"], 10),
    "ema": (["ema:decay=0.9,warmup=0.4"], 11),
    "swa": (["swa:start=2"], 11),
    "cutmix": (["cutmix"], 11),
    # From the second epoch on: a new kind.
    "te": (["te:start=2,end=3"], 10),
    "mixup": (["mixup"], 11),
    "gradient-norm": (["gradient-norm"], 11),
    "eps-warmup": (["eps-warmup:epochs=2"], 11),
    # 1 step up to the middle of the second epoch, then 2.
    "steps-ramp": (["steps-ramp:start=1"], 10),
    # Each stage, of an epoch, is a kind whose first step is eager.
    "stages": (["steps-ramp:stages=0-1-2"], 9),
    "all": (["cutmix", "eps-warmup:epochs=1.5", "awp:gamma=0.01", "ema:decay=0.9"], 11),
}


def test_all_modifiers_are_here():
    used = {text.split(":")[0] for modifiers, _ in MODIFIERS.values() for text in modifiers}
    assert used >= modifiers.MODIFIERS.keys() - {"extra"}


@pytest.mark.parametrize("name", MODIFIERS)
def test_every_modifier_gives_the_bits_of_an_eager_run(tmp_path, data, monkeypatch, name):
    used, launched = MODIFIERS[name]
    eager, captured, launches = both(tmp_path, data, monkeypatch, modifiers=used)
    assert_same(captured, eager)
    assert launches[-1] == launched


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "l2", "eps": 0.5, "micro_batch": 16, "augment": ["crop-reflect", "cutout:3"]},
        {"bn": "train", "clip_grad": 0.1, "clean_prefix": 1},
        {"bn": "train-update", "label_smoothing": 0.1, "optimizer_options": {"nesterov": True}},
        {"precision": "bf16", "momentum": 0.0},
    ],
    ids=str,
)
def test_settings_give_the_bits_of_an_eager_run(tmp_path, data, monkeypatch, changes):
    eager, captured, launches = both(tmp_path, data, monkeypatch, **changes)
    assert_same(captured, eager)
    assert launches[-1] == 11 - ("clean_prefix" in changes)


def test_adamw_and_groups_with_rates_of_their_own(tmp_path, data, monkeypatch):
    def groups(parameters):
        first, *rest = parameters
        return torch.optim.AdamW(
            [{"params": [first], "lr_scale": 0.5}, {"params": rest}], lr=1e-3, fused=True
        )

    # A rate that float32 holds: a recorded step has it in that precision.
    eager, captured, launches = both(
        tmp_path, data, monkeypatch, optimizer=groups, lr=2.0**-8, schedule="constant"
    )
    assert_same(captured, eager)
    assert launches[-1] == 11


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "pnm", "modifiers": ["awp:gamma=0.01", "ema:decay=0.9"], "clip_grad": 0.5},
        {"optimizer": "pnm", "optimizer_options": {"decoupled": False}, "norm_decay": False},
        {"optimizer": "adapnm", "lr": 0.002, "micro_batch": 16},
    ],
    ids=str,
)
def test_two_graphs_in_turn_for_an_optimizer_of_two_averages(tmp_path, data, monkeypatch, changes):
    eager, captured, launches = both(tmp_path, data, monkeypatch, **changes)
    assert_same(captured, eager)
    assert all(group["step"] == 15 for group in captured["optimizer"]["param_groups"])
    # Two kinds, each with an eager step before its graph, and the short batches.
    assert launches == [0, 0, 1, 2, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 10]


@pytest.mark.parametrize("optimizer", ["pnm", "adapnm"])
def test_a_graph_skips_the_step_of_an_infinite_gradient(tmp_path, data, monkeypatch, optimizer):
    # The scale overflows 16 bits at first, and halves.
    monkeypatch.setattr(
        assemble, "make_scaler", lambda p, d: torch.amp.GradScaler("cpu", init_scale=2.0**27)
    )
    eager, captured, launches = both(
        tmp_path, data, monkeypatch, precision="fp16", method="standard", optimizer=optimizer,
        lr=0.01,
    )  # fmt: skip
    assert_same(captured, eager)
    skipped = 27 - round(math.log2(captured["scaler"]["scale"]))
    assert 4 <= skipped < 15 and launches[skipped - 1] > 0  # in a graph too
    assert launches[-1] == 10
    if optimizer == "adapnm":
        assert captured["optimizer"]["state"][0]["steps"] == 15 - skipped
        assert captured["optimizer"]["param_groups"][0]["step"] == 15


@pytest.mark.parametrize("step", [5, 6, 7])
def test_two_graphs_resumed_after_any_step(tmp_path, data, recorder, step):
    settings = {"optimizer": "pnm", "capture": "required", "save_every": 1, "resume": True}
    course(tmp_path / "whole", data, **settings)
    with pytest.raises(Stop):
        course(tmp_path / "broken", data, callbacks=[StopAt(step + 1)], **settings)
    course(tmp_path / "broken", data, **settings)
    assert_same(outcome(tmp_path / "broken"), outcome(tmp_path / "whole"))


def test_fp16_with_scaled_loss(tmp_path, data, monkeypatch):
    eager, captured, launches = both(
        tmp_path, data, monkeypatch, precision="fp16", method="standard", clip_grad=1.0
    )
    assert_same(captured, eager)
    assert captured["scaler"]["_growth_tracker"] == 15
    assert launches[-1] == 11


def test_batches_of_a_data_loader(tmp_path, data, recorder, monkeypatch):
    held_out = tuple(part[:6] for part in data)
    outcomes = []
    for capture in ("off", "required"):
        generator = torch.Generator().manual_seed(0)
        loader = DataLoader(TensorDataset(*data), 24, shuffle=True, generator=generator)
        launches = Launches(monkeypatch)
        course(
            tmp_path / capture, loader, val=held_out, augment=[], capture=capture,
            callbacks=[launches] if capture == "required" else [],
        )  # fmt: skip
        outcomes.append(outcome(tmp_path / capture))
    assert_same(*outcomes)
    assert launches.counts[-1] == 11


class Stop(Exception):
    pass


class StopAt:
    def __init__(self, step):
        self.step = step

    def on_step_end(self, state):
        if state.global_step == self.step:
            raise Stop


@pytest.mark.parametrize("step", [2, 5, 8])
def test_resumed_between_any_two_steps(tmp_path, data, recorder, step):
    settings = {
        "modifiers": ["ema:decay=0.9", "eps-warmup:epochs=2"], "method": "trades",
        "capture": "required", "save_every": 1, "resume": True,
    }  # fmt: skip
    course(tmp_path / "whole", data, **settings)
    with pytest.raises(Stop):
        course(tmp_path / "broken", data, callbacks=[StopAt(step + 1)], **settings)
    course(tmp_path / "broken", data, **settings)
    assert_same(outcome(tmp_path / "broken"), outcome(tmp_path / "whole"))


def test_callbacks_get_the_batch_and_may_keep_it(tmp_path, data, recorder):
    images, labels = data
    seen = []

    class Watch:
        def on_step_end(self, state):
            seen.append((state.batch, state.loss, state.correct))

    course(tmp_path, data, augment=[], epochs=1, capture="required", callbacks=[Watch()])
    assert sorted(torch.cat([batch.indices for batch, _, _ in seen]).tolist()) == list(range(102))
    for batch, loss, correct in seen:
        assert torch.equal(batch.images, images[batch.indices])
        assert torch.equal(batch.labels, labels[batch.indices])
        assert loss.isfinite() and 0 <= correct <= len(batch.labels)


class Poisoned(nn.Module):
    """Its loss is NaN as soon as it has made so many training passes; a tensor counts them."""

    def __init__(self, passes):
        super().__init__()
        self.linear = nn.Linear(64, 3)
        self.register_buffer("left", torch.tensor(float(passes)))

    def forward(self, images):
        logits = self.linear(images.flatten(1))
        if self.training:
            self.left -= 1
            logits = logits + torch.where(self.left > 0, 0.0, torch.nan)
        return logits


def test_the_first_bad_step_is_named_and_nothing_after_it_is_saved(tmp_path, data, recorder):
    settings = {"method": "standard", "capture": "required", "save_every": 4}
    with pytest.raises(NonFiniteLoss, match=r"nan at step 7 \(epoch 2 of 3.*up to 1 are saved"):
        course(tmp_path, data, Poisoned(7), **settings)
    last = checkpoint.read(tmp_path / "last.pt")
    assert last["run"]["loop"]["step"] == 0 and last["epoch"] == 1  # not step 8, with NaN in it
    assert all(value.isfinite().all() for value in last["state"].values())


class Refused(methods.Method):
    def __init__(self, model, settings):
        super().__init__(model, settings)
        self.calls = 0


class NotCapturable(Refused):
    capturable = False


class Waits(Refused):
    def loss(self, images, batch):
        step = super().loss(images, batch)
        return step._replace(loss=step.loss * float(step.loss.detach() > 0))


class Counts(Refused):
    def craft(self, batch):
        self.calls += 1
        return batch.images * (1 - 1 / (1 + self.calls))


class Draws(Refused):
    def craft(self, batch):
        return batch.images * random.random()


class Carries(Refused):
    def craft(self, batch):
        self.mean = batch.images.mean() + getattr(self, "mean", 0)
        return batch.images - self.mean


class HalfEps(Refused):
    """On the host, where a replay does not see it."""

    def craft(self, batch):
        return (batch.images + float(self.eps) / 2).clamp(max=1)


REFUSED = {
    NotCapturable: "method NotCapturable cannot be recorded",
    Waits: "waits for the device",
    Counts: "changes from step to step",
    Draws: "changes a generator of Python",
    Carries: "changes the method",
    HalfEps: "waits for the device",
}


@pytest.mark.parametrize("method", REFUSED, ids=lambda method: method.__name__)
def test_what_no_graph_can_hold_runs_eagerly_and_that_is_said_once(
    tmp_path, data, monkeypatch, capsys, method
):
    settings = {"method": method, "epochs": 5, "modifiers": ["eps-warmup:epochs=2"]}
    course(tmp_path / "eager", data, capture="off", **settings)
    tape = Recorder()
    monkeypatch.setattr(graphs, "recorder", lambda device: tape)
    launches = Launches(monkeypatch)
    capsys.readouterr()
    course(tmp_path / "auto", data, callbacks=[launches], **settings)
    said = capsys.readouterr().err
    assert said.count("training steps run without CUDA graphs") == 1
    assert REFUSED[method] in said
    assert launches.counts[-1] == 0
    assert_same(outcome(tmp_path / "auto"), outcome(tmp_path / "eager"))
    with pytest.raises(RuntimeError, match=rf"capture='required'.*{REFUSED[method]}"):
        course(tmp_path / "required", data, capture="required", **settings)


def test_an_optimizer_that_is_not_known(tmp_path, data, recorder, capsys):
    course(tmp_path, data, epochs=1, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    assert "optimizer SGD" in capsys.readouterr().err


def test_a_modifier_that_is_not_capturable(tmp_path, data, recorder, capsys):
    class Own(Modifier):
        name = "own"
        capturable = False

    course(tmp_path, data, epochs=1, modifiers=[Own()])
    assert "modifier 'own' cannot be recorded" in capsys.readouterr().err


def test_a_cpu_has_no_graphs(tmp_path, data, capsys):
    with pytest.raises(RuntimeError, match="no CUDA graphs on cpu"):
        course(tmp_path / "run", data, capture="required")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="capture must be one of auto, required, off"):
        course(tmp_path / "run", data, capture="always")
