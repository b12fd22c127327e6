"""Training on a GPU: 16 bits, late checks, the same bits after a resume."""

import pytest
import torch
from torch import nn

from advfast.training import checkpoint, train
from advfast.training.loop import NonFiniteLoss

from .conftest import RECIPE
from .test_train import Breaks

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


def test_non_finite_loss_is_found_and_the_saved_weights_are_put_back(tmp_path, tiny):
    # On a GPU the loss is looked at one step late.
    model = Breaks(step=5).cuda()
    with pytest.raises(NonFiniteLoss, match=r"nan at step 5 \(epoch 3 of 4.*up to 2 are saved"):
        train(model, tiny, out=tmp_path, **dict(RECIPE, epochs=4, steps=1))
    saved = checkpoint.read(tmp_path / "last.pt")["state"]
    assert all(torch.equal(value.cpu(), saved[name]) for name, value in model.state_dict().items())
