"""YOPO: the passes of the paper in float64, its first layer, and what it is for a network of one layer."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from advfast import models
from advfast.attacks import PGDAttack
from advfast.data import Batch
from advfast.models.normalise import Normalised
from advfast.training import methods, train
from advfast.training.methods.yopo import first_layer

from .by_hand import (
    EPS,
    LR,
    assert_same_weights,
    batch_of,
    made,
    network,
    one_step,
    settings,
    uniform,
)
from .passes import counted


def by_hand(model, batch, m, n, sigma, hamiltonian):
    """Zhang et al., algorithm 1, and the term that their code adds to the first layer; (loss, x' of each step)."""
    first, rest = model[0], model[1:]
    x, y = batch.images, batch.labels
    eta = uniform(x, EPS, batch.indices, bounds=None) - x
    total = [torch.zeros_like(parameter) for parameter in model.parameters()]
    seen = []
    for _ in range(m):
        z = first(x + eta)
        kept = z.detach().requires_grad_()
        loss = cross_entropy(rest(kept), y)
        p, *of_rest = torch.autograd.grad(loss, [kept, *rest.parameters()])
        of_first = torch.autograd.grad(z, list(first.parameters()), p)
        for _ in range(n):
            moved = (x + eta).clamp(0, 1)
            leaf = moved.clone().requires_grad_()
            (ascent,) = torch.autograd.grad((first(leaf) * p).sum(), leaf)
            ascent = ascent * (moved == x + eta)  # through the clamp
            eta = (eta + sigma * ascent.sign()).clamp(-EPS, EPS)
            eta = (x + eta).clamp(0, 1) - x
            seen.append(x + eta)
        gradients = [*of_first, *of_rest]
        if hamiltonian:
            again = torch.autograd.grad((first(x + eta) * p).sum(), list(first.parameters()))
            gradients[: len(again)] = [a + b for a, b in zip(again, of_first, strict=True)]
        total = [a + b for a, b in zip(total, gradients, strict=True)]
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), total, strict=True):
            parameter -= LR * gradient
    return loss.detach(), seen


@pytest.mark.parametrize(("m", "n", "alpha"), [(5, 3, None), (2, 1, 0.04), (1, 4, None)])
@pytest.mark.parametrize("hamiltonian", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
def test_a_step_is_that_of_the_paper(m, n, alpha, hamiltonian, inplace):
    model, batch = network(), batch_of()
    if inplace:  # right behind the first layer, whose output it overwrites
        model = nn.Sequential(model[0], nn.ReLU(inplace=True), *model[3:])
    plain = copy.deepcopy(model)
    if inplace:
        plain[1].inplace = False
    options = {"m": m, "n": n, "hamiltonian": hamiltonian}
    method = made("yopo", model, batch, alpha=alpha, options=options)
    torch.manual_seed(1)
    expected, _ = by_hand(plain, batch, m, n, EPS / 4 if alpha is None else alpha, hamiltonian)
    torch.manual_seed(1)
    loss, _, _ = one_step(method, batch)
    torch.testing.assert_close(loss, expected)
    assert_same_weights(model, plain, rtol=1e-11, atol=1e-13)
    if not inplace:
        assert model[1].num_batches_tracked == m
    assert all(module.training for module in model.modules())


def test_scaled_gradients_are_the_same():
    ends = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        model, batch = network(), batch_of()
        torch.manual_seed(1)
        one_step(made("yopo", model, batch), batch, scaler=scaler)
        ends.append(model)
    assert_same_weights(*ends, rtol=1e-6, atol=1e-9)


class Inputs(nn.Module):
    """One linear layer that keeps what it is given."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.linear, self.seen = nn.Linear(64, 3).double(), []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("m", [1, 4])
def test_one_layer_and_one_step_a_round_is_pgd(m):
    model, batch = Inputs(), batch_of()
    # Far from the box, where the start of YOPO is not clamped.
    batch = batch._replace(images=batch.images * 0.4 + 0.3)
    method = made("yopo", model, batch, options={"m": m, "n": 1})
    start = uniform(batch.images, EPS, batch.indices, bounds=None)
    model.seen.clear()
    images = method.craft(batch)
    method.update(images, batch, lambda loss: loss.backward())
    # Each round calls the network for the whole pass, for its step, and for <f0, p>, where x' is what the step made.
    assert len(model.seen) == 3 * m
    for steps in range(m + 1):
        pgd = PGDAttack(model, EPS, EPS / 4, steps)(*batch[:2], init=start)
        found = images if steps == m else model.seen[3 * steps]
        torch.testing.assert_close(found, pgd, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ball_and_the_box(dtype):
    model, batch = network(dtype), batch_of(64, dtype)
    method = made("yopo", model, batch)
    images = method.craft(batch)
    assert images.min() < 0  # as published, the start is not clamped
    method.update(images, batch, lambda loss: loss.backward())
    assert images.min() >= 0 and images.max() <= 1
    assert EPS * 0.99 < (images - batch.images).abs().max() <= EPS + 1e-7


def test_whole_passes():
    batch = batch_of(dtype=torch.float32)
    options = {"m": 2, "n": 3}
    assert made("yopo", network(torch.float32), batch, options=options).passes() == 6
    assert counted(lambda model: made("yopo", model, batch, options=options), batch) == 6


class Backwards(nn.Module):
    """Calls its modules in another order than it has them."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(1, 1, 1, 1))
        self.first = nn.Linear(64, 4)

    def forward(self, x):
        return self.last(self.first((x * self.scale).flatten(1)))


def test_the_first_layer_is_the_one_that_sees_the_image():
    image = torch.rand(2, 3, 32, 32)
    found = {
        name: first_layer(models.make(name, in_shape=(3, 32, 32), classes=10), image)
        for name in ("small-cnn", "resnet18", "preact-resnet18", "wrn-28-10")
    }
    assert all(isinstance(layer, nn.Conv2d) and layer.in_channels == 3 for layer in found.values())
    inner = network(torch.float32)
    assert first_layer(Normalised(inner, [0.5], [0.2]), torch.rand(2, 1, 8, 8)) is inner[0]
    model = Backwards()
    assert first_layer(model, torch.rand(2, 1, 8, 8)) is model.first
    before = copy.deepcopy(inner.state_dict())
    first_layer(inner, torch.rand(2, 1, 8, 8))
    assert all(torch.equal(inner.state_dict()[name], value) for name, value in before.items())
    assert inner.training and not inner[0]._forward_hooks


def test_a_network_without_a_first_layer_is_refused(tmp_path, tiny):
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x.flatten(1)[:, :3] * self.scale

    with pytest.raises(ValueError, match="yopo needs a first layer: a module with a weight matrix"):
        train(Scales(), tiny, method="yopo", eps=EPS, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_frozen_first_layer_is_refused():
    model = network()
    model[0].requires_grad_(False)
    with pytest.raises(
        ValueError, match="needs a first layer that is trained, the Conv2d is frozen"
    ):
        made("yopo", model, batch_of())


def test_defaults_and_options():
    method = methods.make("yopo", network(), settings(steps=9))
    assert (method.m, method.n, method.alpha, method.steps) == (5, 3, EPS / 4, 1)
    assert not method.separable
    for options, message in (
        ({"m": 0}, "m must be an integer >= 1, got 0"),
        ({"n": 1.5}, "n must be an integer >= 1, got 1.5"),
        ({"hamiltonian": 0}, "hamiltonian must be true or false, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            methods.make("yopo", network(), settings(options=options))
    with pytest.raises(ValueError, match="micro_batch must be None, got 16"):
        methods.make("yopo", network(), settings(micro_batch=16))


def test_bf16_is_near_fp32():
    ends = []
    for precision in ("fp32", "bf16"):
        model, batch = network(torch.float32), batch_of(dtype=torch.float32)
        torch.manual_seed(1)
        one_step(made("yopo", model, Batch(*batch), precision=precision), batch)
        ends.append(model)
    assert_same_weights(*ends, rtol=0.1, atol=0.05)
