"""advfast.compat.foolbox by itself: what users override."""

import math

import pytest
import torch
import torch.nn.functional as F

import advfast.compat.foolbox as fb
import advfast.compat.foolbox.attacks.gradient_descent_base as base
from advfast import PGDAttack
from advfast.compat.foolbox.attacks import L1PGD, L2PGD, LinfPGD
from advfast.compat.foolbox.criteria import Misclassification, TargetedMisclassification

from ..attacks.networks import batch, cnn


def fmodel(net=None, bounds=(0, 1), **keywords):
    return fb.PyTorchModel(cnn() if net is None else net, bounds, "cpu", **keywords)


class Wrapped:
    """What EagerPy's tensors have: the torch tensor, and their own type for results."""

    def __init__(self, raw):
        self.raw = raw


def count_calls(monkeypatch):
    made = []
    original = PGDAttack.__call__
    monkeypatch.setattr(
        PGDAttack, "__call__", lambda self, *a, **k: made.append(self) or original(self, *a, **k)
    )
    return made


def test_which_attacks_run_on_the_engine(monkeypatch):
    engine = count_calls(monkeypatch)
    images, labels = batch(4)
    for kind, on_engine in ((LinfPGD, True), (L2PGD, True), (L1PGD, False)):
        engine.clear()
        kind(steps=2)(fmodel(), images, labels, epsilons=[0.1, 0.2])
        assert bool(engine) is on_engine

    class Renamed(LinfPGD):
        """Settings alone change nothing in the steps."""

        def __init__(self):
            super().__init__(steps=2)

    engine.clear()
    Renamed()(fmodel(), images, labels, epsilons=0.1)
    assert engine
    engine.clear()
    attack = LinfPGD(steps=2)
    attack.normalize = lambda gradients, *, x, bounds: gradients * 0
    raw, _, _ = attack(fmodel(), images, labels, epsilons=0.1)
    assert not engine and raw.shape == images.shape


@pytest.mark.parametrize("hook", base.HOOKS)
def test_every_hook_is_called(hook, monkeypatch):
    images, labels = batch(6)
    calls = []

    def counted(self, *args, **kwargs):
        calls.append(hook)
        return getattr(base.LinfBaseGradientDescent, hook)(self, *args, **kwargs)

    kind = type("Changed", (LinfPGD,), {hook: counted, "hook_tensors": "torch"})
    torch.manual_seed(3)
    found = kind(steps=3)(fmodel(), images, labels, epsilons=[0.02, 0.05])
    each_step = hook in ("value_and_grad", "normalize", "project")
    assert len(calls) == 2 * (3 if each_step else 1)
    # Hooks that do what they did before change nothing: not a bit.
    torch.manual_seed(3)
    plain = LinfPGD(steps=3, fold=False)(fmodel(), images, labels, epsilons=[0.02, 0.05])
    for k in range(2):
        assert torch.equal(found[0][k], plain[0][k])


def test_a_loss_of_the_user():
    class Raised(LinfPGD):
        hook_tensors = "torch"

        def get_loss_fn(self, model, labels):
            return lambda inputs: model(inputs)[:, 3].sum()

    net, (images, labels) = cnn(), batch(8)
    raw, _, _ = Raised(steps=5, random_start=False)(fmodel(net), images, labels, epsilons=0.05)
    assert (net(raw)[:, 3] > net(images)[:, 3]).all()
    lowered = Raised(steps=5, random_start=False)(
        fmodel(net), images, TargetedMisclassification(labels), epsilons=0.05
    )[0]
    assert (net(lowered)[:, 3] < net(images)[:, 3]).all()


def test_hooks_by_themselves():
    images, labels = batch(4)
    attack, net = LinfPGD(), cnn()
    model = fmodel(net)
    given = images.clone().requires_grad_()
    value, gradient = attack.value_and_grad(attack.get_loss_fn(model, labels), given)
    expected = F.cross_entropy(net(images), labels, reduction="sum")
    assert torch.allclose(value, expected) and not value.requires_grad
    (by_hand,) = torch.autograd.grad(F.cross_entropy(net(given), labels, reduction="sum"), given)
    assert torch.equal(gradient, by_hand) and given.grad is None
    assert all(weight.grad is None for weight in net.parameters())
    far = images + torch.linspace(-1, 1, 4).reshape(4, 1, 1, 1)
    for kind, p in ((base.LinfBaseGradientDescent, math.inf), (L2PGD, 2), (L1PGD, 1)):
        inside = kind.project(attack, far, images, 0.5)
        sizes = torch.linalg.vector_norm((inside - images).flatten(1), p, dim=1)
        assert torch.allclose(sizes, torch.full((4,), 0.5).minimum(sizes), atol=1e-6)
        assert sizes[0] > 0.499
        unit = kind.normalize(attack, gradient, x=images, bounds=(0, 1))
        sizes = torch.linalg.vector_norm(unit.flatten(1), p, dim=1)
        assert torch.allclose(sizes, torch.ones(4), atol=1e-5)


def test_an_attack_of_the_user():
    class Grey(fb.attacks.FixedEpsilonAttack):
        distance = fb.distances.linf

        def run(self, model, inputs, criterion, *, epsilon, weight=1.0):
            assert isinstance(criterion, Misclassification)
            return inputs + weight * (0.5 - inputs)

    images, labels = batch(6)
    raw, clipped, success = Grey()(fmodel(), images, labels, epsilons=[0.01, 0.1], weight=0.9)
    assert (raw[0] - 0.5).abs().max() < 0.1
    assert (clipped[0] - images).abs().max() <= 0.01 + 1e-7
    assert torch.equal(success[1], cnn()(clipped[1]).argmax(1) != labels)

    class Halved(LinfPGD):
        def run(self, model, inputs, criterion, *, epsilon):
            return super().run(model, inputs, criterion, epsilon=epsilon / 2)

    raw, _, _ = Halved(steps=2)(fmodel(), images, labels, epsilons=0.1)
    assert (raw - images).abs().max() <= 0.05 + 1e-7


def test_hook_tensors_is_checked():
    with pytest.raises(ValueError, match="hook_tensors must be"):
        type("Wrong", (LinfPGD,), {"hook_tensors": "numpy"})


def test_eagerpy_where_it_is_installed(monkeypatch):
    """A stand-in: what hooks are given, and what a caller gets back."""
    seen = []

    class Scaled(LinfPGD):
        def normalize(self, gradients, *, x, bounds):
            seen.append(type(gradients))
            return type(gradients)(gradients.raw.sign())

        def get_optimizer(self, x, stepsize):
            return lambda gradient: _Number(stepsize * gradient.raw)

        def project(self, x, x0, epsilon):
            return super().project(x, x0, epsilon)

    class _Number(Wrapped):
        def __rmul__(self, sign):
            return _Number(sign * self.raw)

        def __radd__(self, other):
            return Wrapped(other.raw + self.raw)

    monkeypatch.setattr(Wrapped, "__add__", lambda a, b: Wrapped(a.raw + b.raw), raising=False)
    monkeypatch.setattr(base, "eagerpy_kind", lambda: Wrapped)
    images, labels = batch(4)
    attack = Scaled(steps=2, random_start=False)
    raw, clipped, success = attack(fmodel(), Wrapped(images), Wrapped(labels), epsilons=[0.1])
    assert seen == [Wrapped, Wrapped]
    assert type(raw[0]) is type(clipped[0]) is type(success) is Wrapped
    plain = LinfPGD(steps=2, random_start=False, fold=False)
    expected = plain(fmodel(), images, labels, epsilons=[0.1])
    assert torch.equal(raw[0].raw, expected[0][0]) and torch.equal(success.raw, expected[2])
    assert type(fmodel()(Wrapped(images))) is Wrapped
    assert fb.accuracy(fmodel(), Wrapped(images), Wrapped(labels)) == fb.accuracy(
        fmodel(), images, labels
    )
