"""The first convolution of a network that runs as it is: the same attack within rounding, and no trace of it left."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advfast import PGDAttack, _backend
from advfast.attacks import first_layer

pytestmark = pytest.mark.skipif(_backend.native() is None, reason="no native core")


class Net(nn.Module):
    """Calls what it is asked to, in place of a layer."""

    def __init__(self, convolve=None, channels=1):
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 3, padding=1)
        self.linear = nn.Linear(8 * 64, 3)
        self.convolve = convolve or (lambda conv, x: conv(x))

    def forward(self, x):
        return self.linear(self.convolve(self.conv, x).relu().flatten(1))


@pytest.fixture
def calls(monkeypatch):
    """Counts how often the kernel ran."""
    seen = []
    original = first_layer.conv2d_input_grad

    def spy(*args, **kwargs):
        seen.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(first_layer, "conv2d_input_grad", spy)
    return seen


def batch(channels=1):
    torch.manual_seed(0)
    return torch.rand(16, channels, 8, 8), torch.arange(16) % 3


def both(model, images, labels, **settings):
    # In train mode a network runs as it is, so that this is the path.
    settings = {
        "eps": 0.3,
        "alpha": 0.02,
        "steps": 4,
        "random_start": False,
        "bn": "train",
    } | settings
    return [PGDAttack(model, fold=fold, **settings)(images, labels) for fold in (True, False)]


def assert_alike(fast, exact):
    # A sign may flip where the gradient is rounding alone.
    assert (fast == exact).float().mean() > 0.999
    assert (fast - exact).abs().max() <= 0.3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_same_attack(calls, channels, layout):
    images, labels = batch(channels)
    model = Net(channels=channels).to(memory_format=layout)
    fast, exact = both(model, images.contiguous(memory_format=layout), labels)
    assert len(calls) == 4
    assert_alike(fast, exact)
    assert not torch.equal(fast, images)


def test_gradient_is_that_of_autograd():
    images, labels = batch(3)
    model = Net(channels=3)
    x = images.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(F.cross_entropy(model(x), labels), x)
    with first_layer.fast_first_layer(model, images):
        loss = F.cross_entropy(model(x), labels)
    (got,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("convolve", "expected"),
    [
        (lambda c, x: c((x - 0.5) / 0.25), 4),
        (lambda c, x: c(x) + c(x.flip(3)), 8),
        (lambda c, x: F.conv2d(x, c.weight, c.bias, 1, 1), 0),
        (lambda c, x: c(x.detach()) + c(x), 4),
        (lambda c, x: torch.utils.checkpoint.checkpoint(c, x, use_reentrant=False), 4),
    ],
)
def test_forms_of_a_call(calls, convolve, expected):
    images, labels = batch()
    fast, exact = both(Net(convolve), images, labels)
    assert len(calls) == expected
    if expected:
        assert_alike(fast, exact)
    else:
        assert torch.equal(fast, exact)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(2, 8, 3, padding=1, bias=False), 4),
        (nn.Conv2d(2, 8, (3, 5), padding=(1, 2)), 4),
        (nn.Conv2d(2, 8, 2, stride=2), 4),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 8, 3, padding=1)), 4),
        (nn.Conv2d(2, 8, 3, padding="same"), 0),
        (nn.Conv2d(2, 8, 3, padding=2, dilation=2), 0),
        (nn.Conv2d(2, 8, 3, padding=1, groups=2), 0),
        (nn.Conv2d(2, 8, 3, padding=1, padding_mode="circular"), 0),
        (Doubled(2, 8, 3, padding=1), 0),
    ],
    ids=str,
)
def test_kinds_of_layer(calls, layer, expected):
    images, labels = batch(2)
    model = nn.Sequential(
        layer, nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 3)
    )
    fast, exact = both(model, images, labels)
    assert len(calls) == expected
    if expected:
        assert_alike(fast, exact)
    else:
        assert torch.equal(fast, exact)


def test_where_it_stays_away(calls):
    images, labels = batch()
    wide, _ = batch(5)
    cases = {
        "5 channels": (Net(channels=5), wide, {}),
        "a function": (Net().forward, images, {}),
        "bf16": (Net(), images, {"precision": "bf16"}),
        "fp64": (Net().double(), images.double(), {}),
        "no convolution": (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), images, {}),
    }
    for name, (model, x, settings) in cases.items():
        fast, exact = both(model, x, labels, **settings)
        assert not calls, name
        assert torch.equal(fast, exact), name


def test_compiled_models_are_left_alone(calls):
    images, labels = batch()
    model = Net()
    compiled = torch.compile(model, backend="aot_eager")
    in_place = copy.deepcopy(model)
    in_place.compile(backend="aot_eager")
    for form in (compiled, in_place, nn.Sequential(compiled)):
        fast, exact = both(form, images, labels)
        assert not calls
        assert torch.equal(fast, exact)


def test_nothing_of_it_is_left(calls):
    images, labels = batch()
    model = Net()
    both(model, images, labels)
    assert "_conv_forward" not in model.conv.__dict__
    assert all(parameter.grad is None for parameter in model.parameters())
    F.cross_entropy(model(images), labels).backward()
    assert model.conv.weight.grad.abs().sum() > 0  # outside of attacks it is torch's own

    def breaks(conv, x):
        raise RuntimeError("boom")

    broken = Net(breaks)
    with pytest.raises(RuntimeError, match="boom"):
        both(broken, images, labels)
    assert "_conv_forward" not in broken.conv.__dict__


def test_keeps_its_weight_and_not_its_input():
    images, _ = batch(3)
    model = Net(channels=3)
    kept = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t),
        first_layer.fast_first_layer(model, images),
    ):
        model.conv(images.requires_grad_())
    assert kept == [model.conv.weight.shape]
