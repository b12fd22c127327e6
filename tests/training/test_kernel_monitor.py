"""The kernel at each check for catastrophic overfitting, and noise that is switched on when it fires."""

import copy
import math

import pytest
import torch
from torch import nn

from advfast import graphs
from advfast.attacks import PGDAttack
from advfast.ntk import balanced_probe, metrics, ntk
from advfast.training import CatastrophicOverfitting, KernelMonitor, checkpoint, finish, train

from ..tape import Recorder
from .modifiers.runs import Terminate, course
from .test_captured import Launches
from .test_catastrophic import BAD, GOOD, Scripted, Snapshots, rows
from .test_resume import assert_same, outcome

WAITS = {"method": "n-fgsm", "method_options": {"start": "monitor"}}
TIMES = ("seconds", "share")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr(finish, "_pictures", lambda *arguments: None)


class ScriptedKernel(KernelMonitor):
    """Sees the accuracies that it is told to see."""

    def __init__(self, pairs, **settings):
        super().__init__(probe=4, **settings)
        self.pairs = pairs

    def measure(self, model, eps, norm):
        return self.pairs[len(self.history)]


def timeless(folder):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows(folder)]


def test_rows_are_those_of_the_kernel(tmp_path):
    seen, watch = [], KernelMonitor(samples=40, probe=12)

    class See:
        def on_step_end(self, state):
            if state.step == state.steps_per_epoch:
                seen.append(copy.deepcopy(state.model))

    result = course(tmp_path, callbacks=[See(), watch], method="fgsm", epochs=2, steps=None)
    chosen = balanced_probe(watch._labels, 12)
    x, y = watch._images[chosen], watch._labels[chosen]
    assert y.bincount().tolist() == [4, 4, 4]
    kernels, before = [], None
    for model, row in zip(seen, watch.history, strict=True):
        attacked = PGDAttack(model, 0.1, 0.025, 10, True, seed=0)(x, y)
        # All logits, of which the metrics take the mean of their kernels.
        clean, adversarial = (ntk(model, images).tensor.double() for images in (x, attacked))
        kernels.append(adversarial)
        values = metrics.spectrum(adversarial)
        assert row["top_share"] == pytest.approx(float(values[0] / values.sum()), rel=1e-4)
        assert row["effective_rank"] == pytest.approx(metrics.entropy_rank(values), rel=1e-4)
        distance = metrics.kernel_distance(clean, adversarial)
        assert row["clean_distance"] == pytest.approx(distance, rel=1e-3) and distance > 1e-4
        assert row["seconds"] > 0
        assert before is None or row["share"] * (before / 2) < row["seconds"] + before
        before = row["seconds"]
    first, second = watch.history
    assert math.isnan(first["velocity"])
    velocity = metrics.kernel_distance(*kernels)  # an epoch apart
    assert second["velocity"] == pytest.approx(velocity, rel=1e-3) and velocity > 1e-4
    assert 0 < second["share"] < 1
    found = rows(tmp_path)[1]
    assert list(found) == [
        "step", "epoch", "fgsm", "pgd", "fired",
        "top_share", "effective_rank", "clean_distance", "velocity", "seconds", "share",
    ]  # fmt: skip
    assert float(found["top_share"]) == second["top_share"]
    assert not result.model.training


def test_velocity_is_per_epoch(tmp_path):
    runs = [KernelMonitor(every, probe=4) for every in (None, 1)]
    for number, watch in enumerate(runs):
        course(tmp_path / str(number), callbacks=[watch], epochs=1, method="fgsm", steps=None)
    assert [row["step"] for row in runs[1].history] == [1, 2, 3]
    assert_same(runs[0].history[0]["top_share"], runs[1].history[2]["top_share"])
    watch, kernels = runs[1], []

    class Keep(KernelMonitor):
        def more(self, state, eps, norm):
            found = super().more(state, eps, norm)
            kernels.append(self._kernel)
            return found

    course(tmp_path / "kept", callbacks=[Keep(1, probe=4)], epochs=1, method="fgsm", steps=None)
    distance = metrics.kernel_distance(kernels[1], kernels[2])
    assert watch.history[2]["velocity"] == pytest.approx(3 * distance)


def test_looking_changes_nothing(tmp_path):
    course(tmp_path / "base", method="fgsm", steps=None)
    watch = KernelMonitor(1, probe=6, gap=None, drop=1)
    course(tmp_path / "watched", method="fgsm", steps=None, callbacks=[watch])
    assert_same(outcome(tmp_path / "watched"), outcome(tmp_path / "base"))


class Tent(nn.Module):
    """Right on all images; once `height` is more than 0, wrong where the mean shift of the pixels is about eps / 2.

    Images are of 0.25 and 0.75. A step of eps lands on the other side of the tent, small steps climb it.
    """

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 2)
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.zero_()
            self.linear.weight[1, 0], self.linear.bias[1] = 4.0, -2.0
        self.register_buffer("height", torch.zeros(()))

    def forward(self, images):
        grid = (images > 0.5).to(images.dtype) / 2 + 0.25
        shift = (images - grid).mean((1, 2, 3))
        logits = self.linear(grid.flatten(1))
        tent = self.height * (0.05 - (shift - 0.05).abs())
        right = logits[:, 1].detach().sign()
        return torch.stack([logits[:, 0], logits[:, 1] - right * tent], 1)


@pytest.mark.parametrize("action", ["report", "noise"])
def test_a_collapse_is_seen_at_the_next_check(tmp_path, capsys, action):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(64, 1, 4, 4, generator=generator).round() / 2 + 0.25
    data = images, (images[:, 0, 0, 0] > 0.5).long()

    class Collapse:
        every_rank = True

        def on_step_end(self, state):
            if (state.epoch, state.step) == (3, 1):
                state.model.height.fill_(100.0)

    watch = KernelMonitor(probe=8, action=action)
    train(
        Tent(), data, val=data, out=tmp_path, eps=0.1, lr=1e-6, epochs=5, batch_size=16, progress=False,
        callbacks=[Collapse(), watch], **(WAITS if action == "noise" else {"method": "fgsm"}),
    )  # fmt: skip
    assert [(row["fgsm"], row["pgd"] < 0.2) for row in watch.history[:3]] == [
        (1, False), (1, False), (1, True),
    ]  # fmt: skip
    told = capsys.readouterr().err
    assert told.count("catastrophic overfitting") == 1 and "(epoch 3)" in told
    if action == "report":
        assert [row["fired"] for row in watch.history] == [0, 0, 1, 1, 1]
    else:
        # The buffer is that of the check before again.
        assert [row["fired"] for row in watch.history] == [0, 0, 1, 0, 0]
        assert "training goes on with noise with the weights of step 8" in told


class Moments(Snapshots):
    """Also the optimiser's momentum, and whether there is noise."""

    def __init__(self):
        super().__init__()
        self.noisy, self.momentum = [], []

    def on_step_end(self, state):
        super().on_step_end(state)
        self.noisy.append(state.method.noisy)
        found = state.optimizer.state_dict()["state"]
        self.momentum.append({k: v["momentum_buffer"].clone() for k, v in found.items()})


@pytest.mark.parametrize("restore", [True, False])
def test_noise_is_switched_on_when_it_fires(tmp_path, capsys, restore):
    script = [GOOD, BAD, GOOD, BAD]  # after steps 2, 3, 4, 6
    watch = Scripted([*script, GOOD, GOOD], every=2, action="noise", restore=restore)
    before, after = Moments(), Moments()
    course(tmp_path / "n", "ema:decay=0.7", callbacks=[before, watch, after], steps=None, **WAITS)
    assert before.noisy == [False] * 3 + [True] * 6
    assert after.noisy == [False] * 2 + [True] * 7
    assert [row["fired"] for row in watch.history] == [0, 1, 0, 1, 0, 0]
    good, fired, gone = before.found[1], before.found[2], after.found[2]
    assert_same(gone, good if restore else fired)
    assert bool(after.momentum[2]) != restore
    # Until then it is fgsm, and a second alarm changes nothing.
    plain = Moments()
    course(tmp_path / "f", "ema:decay=0.7", method="fgsm", steps=None, callbacks=[plain_of(plain)])
    assert_same(before.found[:3], plain.found[:3])
    assert_same(before.found[5], after.found[5])
    assert_same(before.momentum[5], after.momentum[5])
    end = "training goes on with noise" + (" with the weights of step 2" if restore else "")
    told = capsys.readouterr().err
    assert told.count("catastrophic overfitting") == 1 and told.strip().endswith(end)


def plain_of(moments):
    class Weights:
        def on_step_end(self, state):
            Snapshots.on_step_end(moments, state)

    return Weights()


def test_noise_without_a_good_check(tmp_path, capsys):
    course(tmp_path, callbacks=[Scripted([BAD, GOOD, GOOD], action="noise")], steps=None, **WAITS)
    told = capsys.readouterr().err
    assert "with noise, and no check before was in order: the weights stay" in told
    assert checkpoint.read(tmp_path / "last.pt")["run"]["method"]["noisy"]


def saliency():
    return {"method": "n-fgsm", "method_options": {"start": "monitor", "noise": "saliency"}}


@pytest.mark.parametrize("stop", [2, 3, 4, 5, 7])
def test_resumed_before_and_after_the_switch(tmp_path, stop, whole):
    def run(folder, *callbacks):
        watch = ScriptedKernel([GOOD, GOOD, BAD, GOOD, GOOD, GOOD], every=2, action="noise")
        course(
            folder, "ema:decay=0.7", callbacks=[watch, *callbacks], steps=None, save_every=1,
            **saliency(),
        )  # fmt: skip

    if not whole.exists():
        run(whole)
    with pytest.raises(SystemExit):
        run(tmp_path / "stopped", Terminate(stop))
    run(tmp_path / "stopped")
    assert_same(outcome(tmp_path / "stopped"), outcome(whole))
    assert timeless(tmp_path / "stopped") == timeless(whole)
    states = [checkpoint.read(folder / "last.pt") for folder in (tmp_path / "stopped", whole)]
    states = [state["run"]["method"] for state in states]
    assert_same(*states)
    assert states[0]["noisy"] and states[0]["scale"].std() > 0.05


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tmp_path_factory.mktemp("switch") / "whole"


# A rate that float32 holds, for AdamW: a recorded step has it in that precision.
ADAMW = {"optimizer": "adamw", "lr": 2.0**-8, "schedule": "constant"}


@pytest.mark.parametrize(
    ("noise", "changes"),
    [("isotropic", {}), ("lognormal", {}), ("saliency", {}), ("lognormal", ADAMW)],
)
def test_captured_is_eager(tmp_path, monkeypatch, noise, changes):
    def run(folder, *callbacks, capture):
        watch = Scripted([GOOD, BAD, GOOD], action="noise")
        options = {"noise": noise, "start": "monitor"}
        return course(
            folder, "ema:decay=0.7", callbacks=[watch, *callbacks], batch_size=24, steps=None,
            method="n-fgsm", method_options=options, capture=capture, **changes,
        )  # fmt: skip

    run(tmp_path / "eager", capture="off")
    tape = Recorder()
    monkeypatch.setattr(graphs, "recorder", lambda device: tape)
    launches = Launches(monkeypatch)
    run(tmp_path / "captured", launches, capture="required")
    assert_same(outcome(tmp_path / "captured"), outcome(tmp_path / "eager"))
    # Four whole batches an epoch and a short one: the third epoch begins another kind of step, with noise.
    assert launches.counts == [0, 1, 2, 3, 3, 4, 5, 6, 7, 7, 7, 8, 9, 10, 10]


def test_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(CatastrophicOverfitting, "measure", lambda *a: BAD)
    options = {"start": "monitor", "noise": "lognormal"}
    course(
        tmp_path, method="n-fgsm", method_options=options, on_collapse="noise", collapse_kernel=4, steps=None
    )  # fmt: skip
    assert "top_share" in rows(tmp_path)[0]
    assert checkpoint.read(tmp_path / "last.pt")["run"]["method"]["noisy"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on_collapse": "noise"}, "such as 'n-fgsm' with start='monitor'.* got 'pgd-at' without"),
        ({"on_collapse": "noise", "method": "n-fgsm"}, "got 'n-fgsm' without"),
        (WAITS, "waits for a monitor: give on_collapse='noise'"),
        (WAITS | {"on_collapse": "stop"}, "waits for a monitor"),
        ({"collapse_kernel": 64}, "give on_collapse too"),
        ({"on_collapse": "warn"}, "action must be one of stop, report, noise, got 'warn'"),
        ({"on_collapse": "stop", "collapse_kernel": 1}, "probe must be an integer of 2 .. 256"),
    ],
)
def test_what_does_not_go_together(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        course(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_the_probe_is_of_the_samples():
    with pytest.raises(ValueError, match=r"probe must be an integer of 2 .. 30, .* got 31"):
        KernelMonitor(samples=30, probe=31)
