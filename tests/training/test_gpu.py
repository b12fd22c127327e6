"""Training on a GPU: 16 bits, late checks, the same bits after a resume."""

import pytest
import torch
from torch import nn

from advfast.training import checkpoint, methods, train
from advfast.training.loop import NonFiniteLoss

from . import test_captured as captured
from .conftest import RECIPE
from .test_resume import assert_same

pytestmark = pytest.mark.gpu


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(512, 3),
    ).cuda()


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16", "fp32"])
def test_learns_in_every_precision(tmp_path, tiny, precision):
    devices = set()

    class Watch:
        def on_step_end(self, state):
            devices.add((state.batch.images.device.type, state.loss.device.type))

    result = train(
        network(), tiny, precision=precision, augment=["crop"], callbacks=[Watch()], test=tiny,
        out=tmp_path, **dict(RECIPE, epochs=6),
    )  # fmt: skip
    assert devices == {("cuda", "cuda")}
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert result.environment["device"].startswith("cuda")
    expected = precision
    if precision == "auto":
        expected = "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    assert result.environment["precision"] == expected
    assert result.best.test["clean"].value > 0.5


class Stop(Exception):
    pass


class StopAt:
    def __init__(self, step):
        self.step = step

    def on_step_end(self, state):
        if state.global_step == self.step:
            raise Stop


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_deterministic_resume_gives_the_same_bits(tmp_path, tiny, precision):
    settings = dict(
        RECIPE, epochs=3, precision=precision, deterministic=True, ema=0.9, augment=["crop", "flip"]
    )
    train(network(), tiny, out=tmp_path / "whole", **settings)
    broken = dict(settings, out=tmp_path / "broken", resume=True, save_every=1)
    with pytest.raises(Stop):
        train(network(), tiny, callbacks=[StopAt(3)], **broken)
    train(network(), tiny, **broken)
    whole, again = (checkpoint.read(tmp_path / name / "last.pt") for name in ("whole", "broken"))
    for name, value in whole["state"].items():
        assert torch.equal(value, again["state"][name]), name


@pytest.mark.parametrize("capture", ["off", "auto", "required"])
def test_the_first_bad_step_is_named_and_the_saved_weights_are_put_back(tmp_path, capture):
    # On a GPU it is noted there, and looked at later.
    model = captured.Poisoned(7).cuda()
    settings = {"method": "standard", "capture": capture, "save_every": 4}
    with pytest.raises(NonFiniteLoss, match=r"nan at step 7 \(epoch 2 of 3.*up to 1 are saved"):
        captured.course(tmp_path, images(), model, **settings)
    saved = checkpoint.read(tmp_path / "last.pt")
    assert saved["epoch"] == 1
    for name, value in model.state_dict().items():
        assert torch.equal(value.cpu(), saved["state"][name])
        assert value.isfinite().all()


def images():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(102, 1, 8, 8, generator=generator), torch.arange(102) % 3


def close(found, expected, where=""):
    if isinstance(expected, torch.Tensor) and expected.is_floating_point():
        torch.testing.assert_close(
            found, expected, rtol=1e-3, atol=1e-4, msg=lambda m: f"{where}: {m}"
        )
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            close(found[name], expected[name], f"{where}.{name}")
    elif isinstance(expected, (list, tuple)):
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            close(one, other, f"{where}[{number}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4), where


SAME = {
    **{method: {"method": method} for method in sorted(methods.METHODS)},
    **{name: {"modifiers": used} for name, (used, _) in captured.MODIFIERS.items()},
    "l2": {"norm": "l2", "eps": 0.5},
    "parts": {"micro_batch": 16, "clip_grad": 0.1},
    "bn": {"bn": "train-update", "clean_prefix": 1},
    # A rate that float32 holds: Adam makes much of the least difference where a gradient is rounding.
    "adamw": {"optimizer": "adamw", "lr": 2.0**-10, "schedule": "constant"},
    "pnm": {"optimizer": "pnm", "norm_decay": False},
    "pnm-fp16": {"optimizer": "pnm", "precision": "fp16", "method": "standard"},
    "adapnm": {"optimizer": "adapnm", "lr": 2.0**-10, "schedule": "constant"},
    "nhwc": {"channels_last": True},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16", "method": "standard"},
}


@pytest.mark.parametrize("name", SAME)
def test_a_replayed_step_is_the_eager_one(tmp_path, monkeypatch, name):
    changes = {"deterministic": True, "precision": "fp32"} | SAME[name]
    changes.setdefault("method_options", captured.OPTIONS.get(changes.get("method")))
    data, outcomes = images(), []
    launches = captured.Launches(monkeypatch)
    for capture in ("off", "required"):
        settings = changes | ({"callbacks": [launches]} if capture == "required" else {})
        captured.course(tmp_path / capture, data, network(), capture=capture, **settings)
        outcomes.append(captured.outcome(tmp_path / capture))
    assert launches.counts[-1] >= 10
    close(outcomes[1]["weights"], outcomes[0]["weights"])
    close(outcomes[1]["modifiers"], outcomes[0]["modifiers"])
    close(outcomes[1]["history"], outcomes[0]["history"])
    assert torch.equal(outcomes[1]["rng"]["torch"], outcomes[0]["rng"]["torch"])
    close(outcomes[1]["rng"]["cuda"], outcomes[0]["rng"]["cuda"])


@pytest.mark.parametrize("modifiers", [[], ["cutmix", "awp", "ema"]], ids=["plain", "modified"])
def test_a_step_is_one_launch_that_nothing_waits_for(tmp_path, modifiers):
    class Count:
        launches = 0

        def on_step_end(self, state):
            if state.global_step == 5:
                torch.cuda.synchronize()
                self.profile = torch.profiler.profile()
                self.profile.start()
                torch.cuda.set_sync_debug_mode("error")
            elif state.global_step == 9:
                torch.cuda.set_sync_debug_mode("default")
                torch.cuda.synchronize()
                self.profile.stop()
                names = [event.name for event in self.profile.events()]
                self.launches = names.count("cudaGraphLaunch")

    count = Count()
    settings = {"epochs": 1, "batch_size": 8, "modifiers": modifiers, "callbacks": [count]}
    try:
        captured.course(tmp_path, images(), network(), capture="required", **settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert count.launches == 4


def test_the_schedule_reaches_the_graph(tmp_path):
    moved, before = [], {}

    class Watch:
        def on_step_end(self, state):
            for name, value in state.model.named_parameters():
                if name in before:
                    moved.append((state.global_step, not torch.equal(value, before[name])))
                before[name] = value.detach().clone()

    captured.course(
        tmp_path, images(), network(), epochs=1, batch_size=8, momentum=0.0, weight_decay=0.0,
        schedule=lambda step: 0.05 if step < 6 else 0.0, capture="required", callbacks=[Watch()],
    )  # fmt: skip
    assert any(change for step, change in moved if step == 6)
    assert not any(change for step, change in moved if step > 6)


def test_two_deterministic_runs_give_the_same_bits(tmp_path):
    settings = {"deterministic": True, "capture": "required", "modifiers": ["cutmix", "ema"]}
    for name in ("one", "other"):
        captured.course(tmp_path / name, images(), network(), **settings)
    one, other = (captured.outcome(tmp_path / name) for name in ("one", "other"))
    assert_same(one, other)


@pytest.mark.parametrize("step", [2, 5, 8])
def test_a_captured_run_resumes_with_the_same_bits(tmp_path, step):
    settings = {
        "modifiers": ["ema:decay=0.9", "eps-warmup:epochs=2"], "deterministic": True,
        "capture": "required", "save_every": 1, "resume": True,
    }  # fmt: skip
    captured.course(tmp_path / "whole", images(), network(), **settings)
    with pytest.raises(Stop):
        stop = [StopAt(step + 1)]
        captured.course(tmp_path / "broken", images(), network(), callbacks=stop, **settings)
    captured.course(tmp_path / "broken", images(), network(), **settings)
    whole, broken = (captured.outcome(tmp_path / name) for name in ("whole", "broken"))
    assert_same(broken, whole)
