import copy

import pytest
import torch
from torch import nn

from advfast.training import checkpoint, precision, train
from advfast.training.setup import use_channels_last

from .conftest import RECIPE

CPU = torch.device("cpu")


def test_auto_is_fp32_on_a_cpu(monkeypatch):
    assert precision.resolve_precision("auto", CPU) == "fp32"
    cuda = torch.device("cuda", 0)
    for capability, expected in (((8, 0), "bf16"), ((9, 0), "bf16"), ((7, 5), "fp16")):
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda device, capability=capability: capability
        )
        assert precision.resolve_precision("auto", cuda) == expected
    with pytest.raises(ValueError, match="precision must be one of auto, fp32, bf16, fp16, got"):
        precision.resolve_precision("fp64", CPU)


class Dtypes(nn.Module):
    """Notes in which dtype its layers compute."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 3)
        self.seen = {True: set(), False: set()}

    def forward(self, x):
        logits = self.linear(x.flatten(1))
        if logits.requires_grad:
            self.seen[self.training].add(logits.dtype)
        return logits


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_sixteen_bits_in_the_network_and_32_outside(tmp_path, tiny, name, dtype):
    model = Dtypes()
    states = []

    class Watch:
        def on_step_end(self, state):
            states.append((state.loss.dtype, state.optimizer.state_dict()))

    result = train(
        model, tiny, precision=name, callbacks=[Watch()], out=tmp_path, **dict(RECIPE, epochs=4)
    )
    # Training, and crafting (in eval mode). Held-out accuracy is computed in the model's own precision.
    assert model.seen == {True: {dtype}, False: {dtype, torch.float32}}
    assert {loss for loss, _ in states} == {torch.float32}
    momentum = states[-1][1]["state"][0]["momentum_buffer"]
    assert momentum.dtype == model.linear.weight.dtype == torch.float32
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert result.environment["precision"] == name
    scaler = checkpoint.read(tmp_path / "last.pt")["run"]["scaler"]
    assert bool(scaler) == (name == "fp16")


def test_sixteen_bits_learn_what_fp32_learns(tmp_path, tiny):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    losses = {}
    for name in ("fp32", "bf16", "fp16"):
        result = train(
            copy.deepcopy(model),
            tiny,
            precision=name,
            out=tmp_path / name,
            **dict(RECIPE, epochs=5),
        )
        losses[name] = result.history[-1]["train_loss"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]


class Views(nn.Module):
    """Calls view where NHWC needs reshape, as many networks do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), *(nn.Conv2d(4, 4, 1) for _ in range(4))
        )
        self.linear = nn.Linear(256, 3)

    def forward(self, x):
        return self.linear(self.conv(x).view(len(x), -1))


def is_nhwc(weight):
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_channels_last_is_taken_where_it_pays_and_the_model_can():
    images = torch.rand(2, 3, 8, 8)
    deep = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(4)]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), *deep, nn.Flatten(), nn.Linear(144, 3))
    values = copy.deepcopy(model.state_dict())
    assert use_channels_last(model, images, None, "fp32")
    assert is_nhwc(model[0].weight)
    assert all(torch.equal(values[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    for asked, data in ((False, images), (None, torch.rand(2, 8))):
        assert not use_channels_last(copy.deepcopy(model), data, asked, "fp32")
    assert not use_channels_last(
        nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), images, None, "fp32"
    )


def test_channels_last_falls_back_or_refuses():
    images = torch.rand(2, 1, 8, 8)
    model = Views()
    assert not use_channels_last(model, images, None, "fp32")
    assert model.conv[1].weight.is_contiguous()
    with pytest.raises(ValueError, match="channels_last: the model does not take NHWC"):
        use_channels_last(model, images, True, "fp32")


def test_channels_last_learns_the_same(tmp_path, tiny):
    images, labels = tiny
    data = images.expand(-1, 3, -1, -1).contiguous(), labels
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)
    )
    seen = set()

    class Watch:
        def on_step_end(self, state):
            seen.add(is_nhwc(state.batch.images))

    runs = [
        train(
            copy.deepcopy(model), data, channels_last=asked, out=tmp_path / str(asked),
            callbacks=[Watch()], **dict(RECIPE, epochs=2, lr=0.01),
        )
        for asked in (True, False)
    ]  # fmt: skip
    assert seen == {True, False}
    assert [run.config["channels_last"] for run in runs] == [True, False]
    assert runs[0].history[-1]["train_loss"] == pytest.approx(
        runs[1].history[-1]["train_loss"], rel=1e-2
    )


class NoDeterminism(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 3)

    def forward(self, x):
        if torch.are_deterministic_algorithms_enabled():
            raise RuntimeError("does not have a deterministic implementation")
        return self.linear(x.flatten(1))


def test_deterministic_is_switched_on_and_off_again(tmp_path, tiny):
    before = torch.utils.deterministic.fill_uninitialized_memory
    settings = dict(RECIPE, epochs=1, steps=1)
    train(NoDeterminism(), tiny, out=tmp_path / "plain", **settings)
    with pytest.raises(RuntimeError, match="deterministic implementation"):
        train(NoDeterminism(), tiny, deterministic=True, out=tmp_path / "run", **settings)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory == before
