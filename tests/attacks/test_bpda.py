"""A stand-in gradient for a step that has none."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import advfast
from advfast import PGDAttack, bpda

from .networks import cnn

LEVELS = 16


def quantise(x):
    return (x * LEVELS).round() / LEVELS


def smooth(x):
    return x - torch.sin(2 * torch.pi * LEVELS * x) / (4 * torch.pi * LEVELS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_value_is_that_of_forward_and_the_gradient_passes(dtype):
    x = torch.rand(5, 3, 4, 4).to(dtype).requires_grad_()
    weight = torch.randn(5, 3, 4, 4).to(dtype)
    y = bpda(quantise)(x)
    assert torch.equal(y, quantise(x)) and y.dtype == dtype
    (gradient,) = torch.autograd.grad((y * weight).sum(), x)
    assert torch.equal(gradient, weight)


def test_the_gradient_is_that_of_backward():
    x = torch.rand(5, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 8, dtype=torch.float64)
    module = bpda(quantise, smooth)
    y = module(x)
    assert torch.equal(y, quantise(x))
    (gradient,) = torch.autograd.grad((y * weight).sum(), x)
    (expected,) = torch.autograd.grad((smooth(x) * weight).sum(), x)
    assert torch.equal(gradient, expected) and not torch.equal(gradient, weight)


def test_a_stand_in_may_change_the_shape():
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    y = bpda(lambda x: F.max_pool2d(quantise(x), 2), lambda x: F.avg_pool2d(x, 2))(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.shape == (2, 3, 4, 4) and torch.equal(gradient, torch.full_like(x, 0.25))


def test_parameters_of_the_stand_in_learn_and_those_of_forward_do_not():
    forward, backward = nn.Linear(4, 4), nn.Linear(4, 4)
    module = bpda(forward, backward)
    assert set(module.state_dict()) == {
        f"{part}.{name}" for part in ("value", "stand_in") for name in ("weight", "bias")
    }
    module(torch.rand(2, 4)).sum().backward()
    assert forward.weight.grad is None and backward.weight.grad.abs().sum() > 0


def test_a_forward_that_works_in_place_changes_no_input():
    x = torch.rand(3, 4, requires_grad=True)
    before = x.detach().clone()
    y = nn.Sequential(bpda(lambda x: x.mul_(4).round_()), nn.ReLU(inplace=True))(x)
    assert torch.equal(x, before) and torch.equal(y, (before * 4).round())
    y.sum().backward()
    assert torch.equal(x.grad, (y > 0).float())


def test_what_forward_keeps_is_not_changed_from_outside():
    kept = torch.rand(3, 4)
    y = bpda(lambda x: kept)(torch.rand(3, 4, requires_grad=True))
    with torch.no_grad():
        y.zero_()
    assert kept.abs().sum() > 0


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context):
    called = []
    with context():
        y = bpda(quantise, called.append)(torch.full((2,), 0.51))
    assert torch.equal(y, torch.full((2,), 0.5)) and not y.requires_grad and not called


def test_under_autocast():
    net = nn.Sequential(nn.Linear(8, 8), bpda(quantise), nn.Linear(8, 2))
    x = torch.rand(4, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        (gradient,) = torch.autograd.grad(net(x).float().sum(), x)
    hidden = net[0].weight.bfloat16(), net[2].weight.bfloat16()
    expected = hidden[1].sum(0) @ hidden[0]
    torch.testing.assert_close(gradient, expected.float().expand(4, 8), rtol=0.02, atol=0.02)


def test_forward_in_another_dtype():
    x = torch.rand(4, 8, requires_grad=True)
    y = bpda(lambda x: x.half())(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.dtype == torch.float16 and torch.equal(gradient, torch.ones_like(x))


# Raised inside torch.compile for any autograd function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
@pytest.mark.parametrize("backward", [None, smooth], ids=["identity", "stand-in"])
def test_compiles_without_a_break(backward):
    module = bpda(quantise, backward)
    compiled = torch.compile(
        lambda x: module(x).square().sum(), fullgraph=True, backend="aot_eager"
    )
    x = torch.rand(3, 4, requires_grad=True)
    value, expected = compiled(x), module(x).square().sum()
    assert torch.equal(value, expected)
    gradients = [torch.autograd.grad(v, x)[0] for v in (value, expected)]
    torch.testing.assert_close(*gradients)


def test_per_sample_gradients():
    module = bpda(quantise, smooth)
    x = torch.rand(4, 6, dtype=torch.float64)
    got = torch.func.vmap(torch.func.grad(lambda x: module(x).square().sum()))(x)
    slope = torch.func.vmap(torch.func.grad(lambda x: smooth(x).sum()))(x)
    torch.testing.assert_close(got, 2 * quantise(x) * slope)


def test_copies_and_shows():
    module = bpda(quantise, smooth)
    x = torch.rand(4, 6)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), module(x))
    assert repr(module) == "BPDA(forward=quantise, backward=smooth)"
    assert repr(bpda(quantise)) == "BPDA(forward=quantise, backward=identity)"
    assert isinstance(module, advfast.attacks.BPDA)


@pytest.mark.parametrize(
    ("functions", "error", "message"),
    [
        (("jpeg",), TypeError, "bpda: forward must be a function of a tensor, got str"),
        ((None,), TypeError, "bpda: forward must be a function"),
        ((quantise, 3), TypeError, "bpda: backward must be a function of a tensor, got int"),
        ((lambda x: x.byte(),), TypeError, "float tensor, got torch.uint8; convert it back"),
        ((lambda x: x.numpy(),), TypeError, r"forward\(x\) must be a tensor, got ndarray"),
        ((lambda x: x[:, :2],), ValueError, r"shape of x, \(4, 3\), got \(4, 2\); give a backward"),
        ((quantise, lambda x: x[:, :2]), ValueError, r"of backward\(x\), \(4, 2\), got \(4, 3\)"),
        ((quantise, lambda x: None), TypeError, r"backward\(x\) must be a tensor, got NoneType"),
        ((lambda x: x.to("meta"),), ValueError, "must be on cpu like x, got meta"),
    ],
)
def test_bad_functions(functions, error, message):
    with pytest.raises(error, match=message):
        bpda(*functions)(torch.rand(4, 3, requires_grad=True))


@pytest.fixture(scope="module")
def fitted():
    """A network that has learnt noisy images of four classes, and these."""
    torch.manual_seed(0)
    labels = torch.arange(200) % 4
    images = (torch.rand(4, 1, 12, 12)[labels] + 0.2 * torch.randn(200, 1, 12, 12)).clamp(0, 1)
    net = cnn(channels=1, classes=4, dropout=0.0)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net.eval(), images, labels


def accuracy(model, images, labels, loss="ce"):
    adversarial = PGDAttack(model, 0.2, None, 10, loss=loss, seed=0)(images, labels)
    with torch.no_grad():
        return (model(adversarial).argmax(1) == labels).float().mean().item()


@pytest.mark.parametrize("backward", [None, smooth], ids=["identity", "stand-in"])
def test_rounding_protects_no_longer(fitted, backward):
    """The gradient of round is zero: PGD finds nothing, and what it reports is false."""
    net, images, labels = fitted
    bare = accuracy(net, images, labels)
    hidden = nn.Sequential(Rounding(), net).eval()
    seen = nn.Sequential(bpda(quantise, backward), net).eval()
    with torch.no_grad():
        assert torch.equal(hidden(images), seen(images))
    assert accuracy(hidden, images, labels) > 0.95
    assert bare < 0.3
    assert accuracy(seen, images, labels) == pytest.approx(bare, abs=0.1)


class Rounding(nn.Module):
    def forward(self, x):
        return quantise(x)
