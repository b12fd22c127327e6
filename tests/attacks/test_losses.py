"""The losses against formulas written out in float64, their gradients, and logits that leave nothing to hide behind."""

import math

import pytest
import torch
import torch.nn.functional as F

from advfast import PGDAttack
from advfast.attacks import losses

from .networks import batch, cnn

NAMES = ("ce", "margin", "dlr")


def logits_and_labels(n=12, classes=7, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    logits = scale * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (n,), generator=generator)
    targets = (labels + torch.randint(1, classes, (n,), generator=generator)) % classes
    return logits.to(dtype), labels, targets


def by_hand(name, z, y, t=None):
    """One sample, as lists of floats."""
    ordered = sorted(z, reverse=True)
    if name == "ce":
        wanted = y if t is None else t
        value = math.log(sum(math.exp(v - ordered[0]) for v in z)) + ordered[0] - z[wanted]
        return value if t is None else -value
    rival = max(v for j, v in enumerate(z) if j != y) if t is None else z[t]
    value = rival - z[y]
    if name == "margin":
        return value
    if t is None:
        return value / (ordered[0] - ordered[2])
    return value / (ordered[0] - (ordered[2] + ordered[3]) / 2)


@pytest.mark.parametrize("name", NAMES)
def test_values(name):
    logits, labels, targets = logits_and_labels()
    expected = [by_hand(name, z.tolist(), int(y)) for z, y in zip(logits, labels, strict=True)]
    got = losses.LOSSES[name](logits, labels)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    expected = [
        by_hand(name, z.tolist(), int(y), int(t))
        for z, y, t in zip(logits, labels, targets, strict=True)
    ]
    got = losses.targeted(name)(logits, labels, targets)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def test_kl_value():
    clean, adversarial = (logits_and_labels(scale=scale)[0] for scale in (1.0, 3.0))
    p, q = clean.softmax(1), adversarial.softmax(1)
    torch.testing.assert_close(losses.kl(adversarial, clean), (p * (p / q).log()).sum(1))


def test_one_hot_probabilities_are_the_class():
    logits, labels, _ = logits_and_labels()
    soft = F.one_hot(labels, 7).double()
    torch.testing.assert_close(losses.ce(logits, soft), losses.ce(logits, labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_cross_entropy_of_probabilities(dtype, given):
    logits, _, _ = logits_and_labels(dtype=dtype)
    soft = logits_and_labels(scale=1.0)[0].flip(0).softmax(1).to(given)
    expected = -(soft.double() * logits.double().log_softmax(1)).sum(1)
    got = losses.ce(logits, soft)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_function_is_lowered_towards_the_target():
    logits, labels, targets = logits_and_labels()
    got = losses.targeted(losses.margin)(logits, labels, targets)
    assert torch.equal(got, -losses.margin(logits, targets))


def test_kl_has_no_target():
    with pytest.raises(ValueError, match="'kl' has no targeted form; it must be one of ce, margin"):
        losses.targeted("kl")
    with pytest.raises(ValueError, match="did you mean 'margin'"):
        losses.targeted("margn")


def reference_of(name, kind, classes, dtype):
    if name == "kl":
        return logits_and_labels(64, classes, 2.0, dtype)[0].flip(0)
    if kind == "soft":
        return logits_and_labels(64, classes, 2.0)[0].flip(0).softmax(1).to(dtype)
    return logits_and_labels(64, classes)[1]


@pytest.mark.parametrize(
    ("name", "kind"), [("ce", "classes"), ("ce", "soft"), ("kl", "")], ids=lambda v: v
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_closed_gradients_are_autograds_bits(name, kind, dtype, scale, classes):
    logits = logits_and_labels(64, classes, scale, dtype)[0].requires_grad_()
    reference = reference_of(name, kind, classes, dtype)
    (expected,) = torch.autograd.grad(losses.LOSSES[name](logits, reference).sum(), logits)
    got = losses.CLOSED[name](logits.detach(), reference)
    assert torch.equal(got, expected) and got.abs().max() > 0.1


@pytest.mark.parametrize("name", sorted(losses.CLOSED))
def test_closed_gradients_of_16_bit_logits_are_in_float32(name):
    logits = logits_and_labels(64, 10)[0]
    reference = reference_of(name, "classes", 10, torch.float32)
    got = losses.CLOSED[name](logits.bfloat16(), reference)
    assert got.dtype == torch.float32
    assert torch.equal(got, losses.CLOSED[name](logits.bfloat16().float(), reference))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [*NAMES, "kl"])
def test_certain_samples_have_finite_losses_and_gradients(name, dtype):
    """Logits as far apart as the dtype allows, and all the same."""
    far = torch.tensor([[6e4, -6e4, 0.0, 1.0, -3.0], [0.0] * 5, [5.0, 5.0, 5.0, -6e4, -6e4]])
    labels = torch.tensor([0, 1, 4])
    reference = far.flip(1).to(dtype) if name == "kl" else labels
    logits = losses.widen(far.to(dtype)).requires_grad_()
    value = losses.LOSSES[name](logits, reference)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.dtype == torch.float32
    assert value.isfinite().all() and gradient.isfinite().all()
    if name != "kl":
        towards = losses.targeted(name)(logits, labels, (labels + 1) % 5)
        assert towards.isfinite().all()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_equal_logits_do_not_stop_a_sixteen_bit_attack(precision):
    """The slope of dlr there does not fit into float16; rescaled it does."""
    net = cnn(channels=1, classes=4)
    torch.nn.init.zeros_(net[-1].weight)
    torch.nn.init.zeros_(net[-1].bias)
    net[-1].weight.data[0] = 1e-3
    images, labels = batch(8, 1, 4)
    attack = PGDAttack(net, steps=3, loss="dlr", precision=precision)
    attack(images, labels)  # a warning of entries that are not finite would fail
    assert attack.nonfinite.item() == 0


class Certain(torch.nn.Module):
    """A network whose logits are so many times as large."""

    def __init__(self, net, times):
        super().__init__()
        self.net = net
        self.times = times

    def forward(self, x):
        return self.times * self.net(x)


@pytest.fixture(scope="module")
def fitted():
    """A network for noisy images of four classes, and what it has learnt from."""
    torch.manual_seed(0)
    centres = torch.rand(4, 1, 12, 12)
    labels = torch.arange(400) % 4
    images = (centres[labels] + 0.25 * torch.randn(400, 1, 12, 12)).clamp(0, 1)
    net = cnn(channels=1, classes=4, dropout=0.0)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net, images, labels


# At a hundredfold even a float32 softmax gives gradients of zero, with any library; these two losses do not need one.
@pytest.mark.parametrize(("loss", "times"), [("ce", 5), ("kl", 5), ("margin", 100), ("dlr", 100)])
def test_no_robustness_by_sixteen_bits(fitted, loss, times):
    """Gradients that underflow in 16 bits would leave certain samples where they are."""
    net, images, labels = fitted
    model = Certain(net, times).eval()
    with torch.no_grad():
        certainty = model(images).softmax(1).gather(1, labels[:, None])
    assert (certainty == 1).all()

    def accuracy(precision):
        attack = PGDAttack(model, 0.15, None, 10, loss=loss, precision=precision, seed=0)
        with torch.no_grad():
            return (model(attack(images, labels)).argmax(1) == labels).float().mean().item()

    full = accuracy("fp32")
    assert full < 0.85  # all of them are right when clean
    for precision in ("bf16", "fp16"):
        assert accuracy(precision) == pytest.approx(full, abs=0.03)
