"""TRADES, MART and GradAlign: the losses of their papers, sample by sample in float64; attacks and options."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advfast.attacks import TPGD, PGDAttack
from advfast.data import Batch
from advfast.training import methods
from advfast.training.methods import gradalign

NAMES = ("trades", "mart", "gradalign")
SETTINGS = methods.Settings(eps=0.1, alpha=None, steps=None, norm="linf")


def settings(**options):
    return replace(SETTINGS, options=options)


def smooth(seed=0):
    """No batch normalisation, and no kinks, so that differences of the loss are its derivatives."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Tanh(), nn.Linear(9, 4)).double()


def batch_of(size=12, dtype=torch.float64, classes=4):
    torch.manual_seed(5)
    images = torch.rand(size, 1, 8, 8, dtype=dtype)
    return Batch(images, torch.arange(size) % classes, torch.arange(size))


def probabilities(logits):
    """Of one sample, a list."""
    powers = [math.exp(z) for z in logits.tolist()]
    return [power / sum(powers) for power in powers]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def trades_by_hand(model, clean, adversarial, targets, beta):
    """Zhang et al., eq. 5; targets: [B, K]."""
    total = 0.0
    for x, attacked, target in zip(clean, adversarial, targets, strict=True):
        p, q = (probabilities(model(image[None])[0]) for image in (x, attacked))
        crossed = -sum(float(t) * math.log(c) for t, c in zip(target, p, strict=True))
        total += crossed + beta * kl(p, q)
    return total / len(clean)


def mart_by_hand(model, clean, adversarial, labels, lam):
    """Wang et al., eq. 10 and 11, with the constants of their code."""
    total = 0.0
    for x, attacked, y in zip(clean, adversarial, labels.tolist(), strict=True):
        p, q = (probabilities(model(image[None])[0]) for image in (x, attacked))
        margin = max(value for k, value in enumerate(q) if k != y)
        bce = -math.log(q[y]) - math.log(1.0001 - margin + 1e-12)
        distance = sum(a * (math.log(a) - math.log(b + 1e-12)) for a, b in zip(p, q, strict=True))
        total += bce + lam * distance * (1.0000001 - p[y])
    return total / len(clean)


def gradalign_by_hand(model, points, adversarial, near, targets, lam):
    """Andriushchenko & Flammarion, eq. 4: points are where the first gradient is taken."""

    def crossed(image, target):
        return -(target * torch.log_softmax(model(image[None])[0], 0)).sum()

    loss = apart = 0.0
    for point, attacked, shifted, target in zip(points, adversarial, near, targets, strict=True):
        gradients = []
        for image in (point, shifted):
            image = image.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(crossed(image, target), image)
            gradients.append(gradient.flatten().tolist())
        dot = sum(a * b for a, b in zip(*gradients, strict=True))
        sizes = [math.sqrt(sum(a * a for a in gradient)) for gradient in gradients]
        apart += 1 - dot / (sizes[0] * sizes[1])
        loss += crossed(attacked, target).item()
    return (loss + lam * apart) / len(adversarial)


def near_points(monkeypatch):
    """Catches x + u of GradAlign."""
    seen = []
    draw = gradalign.random_start

    def spy(*args, **kwargs):
        seen.append(draw(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(gradalign, "random_start", spy)
    return seen


def soften(labels, classes=4):
    return 0.75 * F.one_hot(labels, classes).double() + 0.25 / classes


def agrees_with_differences(model, loss, by_hand):
    """Gradients of the weights, by autograd against central differences of the slow loss."""
    loss.backward()
    h = 1e-5
    for parameter in model.parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for place in range(0, flat.numel(), max(1, flat.numel() // 5)):
            kept = float(flat[place])
            sides = []
            for shifted in (kept + h, kept - h):
                flat[place] = shifted
                sides.append(by_hand())
            flat[place] = kept
            found = (sides[0] - sides[1]) / (2 * h)
            assert float(gradient[place]) == pytest.approx(found, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("start", ["normal", "uniform"])
def test_trades_is_its_formula(start, soft):
    model, batch = smooth(), batch_of()
    method = methods.make("trades", model, settings(beta=3.0, start=start))
    if soft:
        batch = Batch(batch.images, soften(batch.labels), batch.indices)
    targets = batch.labels if soft else F.one_hot(batch.labels, 4)
    images = method.craft(batch)
    loss, logits = method.loss(images, batch)

    def by_hand():
        return trades_by_hand(model, batch.images, images, targets, 3.0)

    assert loss.item() == pytest.approx(by_hand(), rel=1e-12)
    assert torch.equal(logits, model(images))
    agrees_with_differences(model, loss, by_hand)


def test_trades_with_a_detached_target_learns_through_the_attacked_branch_alone():
    model, batch = smooth(), batch_of()
    method = methods.make("trades", model, settings(beta=3.0, detach_target=True))
    images = method.craft(batch)
    clean = model(batch.images).detach()
    gradients = []
    for loss in (
        method.loss(images, batch).loss,
        F.cross_entropy(model(batch.images), batch.labels)
        + 3
        * F.kl_div(
            torch.log_softmax(model(images), 1), torch.softmax(clean, 1), reduction="batchmean"
        ),
    ):
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    whole = methods.make("trades", model, settings(beta=3.0)).loss(images, batch).loss
    other = torch.autograd.grad(whole, list(model.parameters()))
    assert any(not torch.allclose(one, two) for one, two in zip(other, gradients[0], strict=True))


def test_mart_is_its_formula():
    model, batch = smooth(), batch_of()
    method = methods.make("mart", model, settings(beta=2.0))
    images = method.craft(batch)
    # Half of the samples are classified right under attack: there the largest wrong class is the second.
    right = model(images).argmax(1)
    labels = torch.where(torch.arange(12) % 2 == 0, right, (right + 1) % 4)
    batch = Batch(batch.images, labels, batch.indices)
    loss, logits = method.loss(images, batch)

    def by_hand():
        return mart_by_hand(model, batch.images, images, batch.labels, 2.0)

    assert loss.item() == pytest.approx(by_hand(), rel=1e-12)
    assert torch.equal(logits, model(images))
    agrees_with_differences(model, loss, by_hand)


def test_mart_stays_finite_where_a_prediction_is_certain_and_wrong():
    model, batch = smooth(), batch_of()
    with torch.no_grad():
        model[3].weight.mul_(1e4)
    loss, _ = methods.make("mart", model, settings()).loss(batch.images, batch)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("at", ["clean", "adversarial"])
def test_gradalign_is_its_formula(at, soft, monkeypatch):
    model, batch, seen = smooth(), batch_of(), near_points(monkeypatch)
    method = methods.make("gradalign", model, settings(lam=1.5, at=at))
    targets = soften(batch.labels) if soft else F.one_hot(batch.labels, 4).double()
    if soft:
        batch = Batch(batch.images, targets, batch.indices)
    images = method.craft(batch)
    loss, logits = method.loss(images, batch)
    near = seen[0]
    assert 0.09 < (near - batch.images).abs().max() <= 0.1 + 1e-12
    assert near.min() < 0 or near.max() > 1  # not clamped to the box
    points = batch.images if at == "clean" else images
    by_hand = gradalign_by_hand(model, points, images, near, targets, 1.5)
    assert loss.item() == pytest.approx(by_hand, rel=1e-12)
    torch.testing.assert_close(logits, model(images))
    # The first gradient is a constant for the weights: differences must not move it.
    crossed = torch.log_softmax(model(points.requires_grad_()), 1)
    (first,) = torch.autograd.grad(-(targets * crossed).sum(), points)

    def moved():
        x = near.clone().requires_grad_()
        (second,) = torch.autograd.grad(-(targets * torch.log_softmax(model(x), 1)).sum(), x)
        cosine = F.cosine_similarity(first.flatten(1), second.flatten(1), eps=1e-30).mean()
        outer = -(targets * torch.log_softmax(model(images), 1)).sum(1).mean()
        return (outer + 1.5 * (1 - cosine)).item()

    agrees_with_differences(model, loss, moved)


def test_gradalign_leaves_samples_without_a_gradient_out():
    first = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    second = torch.tensor([[4.0, 3.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    second.requires_grad_()
    apart = gradalign.misalignment(first, second)
    assert apart.item() == pytest.approx((1 - 24 / 25) / 2)
    apart.backward()
    assert second.grad.isfinite().all()
    assert (second.grad[0] != 0).all() and (second.grad[1:3] == 0).all()
    assert gradalign.misalignment(first[1:2], second[1:2]) == 0


def test_gradalign_weight_is_the_published_one():
    found = [gradalign.published(eps / 255) for eps in (4, 8, 16, 38)]
    assert found == pytest.approx([0.0632, 0.2, 2.0, 2.0], rel=1e-3)
    made = methods.make("gradalign", nn.Identity(), replace(SETTINGS, eps=8 / 255))
    assert made.lam == pytest.approx(0.2)
    assert methods.make("gradalign", nn.Identity(), settings(lam=0)).lam == 0


def test_attacks_are_the_published_ones():
    model = smooth()
    trades, mart, align = (methods.make(name, model, SETTINGS) for name in NAMES)
    assert isinstance(trades.kl_pgd, TPGD) and trades.kl_pgd.std == mart.pgd.std == 0.001
    assert (trades.kl_pgd.loss, mart.pgd.loss, align.fgsm.loss) == ("kl", "ce", "ce")
    assert trades.alpha == mart.alpha == pytest.approx(0.1 * 0.007 / 0.031)
    assert (trades.steps, mart.steps, align.steps) == (10, 10, 1)
    # One step by definition, whatever a preset of the data says.
    given = methods.make("gradalign", nn.Identity(), replace(SETTINGS, steps=7))
    given.strength(0.1, 0.1, 5)
    assert given.steps == given.fgsm.steps == 1
    assert (trades.beta, mart.beta, align.alpha) == (6, 5, pytest.approx(0.125))
    uniform = methods.make("trades", model, settings(start="uniform")).kl_pgd
    assert type(uniform) is PGDAttack and uniform.loss == "kl" and uniform.random_start


def test_gradalign_crafts_fgsm_from_the_image_itself():
    model, batch = smooth(), batch_of()
    images = methods.make("gradalign", model, SETTINGS).craft(batch)
    x = batch.images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), batch.labels), x)
    step = (1.25 * 0.1 * gradient.sign()).clamp(-0.1, 0.1)
    torch.testing.assert_close(images, (batch.images + step).clamp(0, 1))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("trades", {"beta": -1}, "beta must be a finite number, 0 or more, got -1"),
        ("trades", {"start": "gauss"}, "start must be one of normal, uniform, got 'gauss'"),
        ("trades", {"start": "uniform", "std": 0.1}, "std is of the normal start"),
        ("trades", {"std": 0.0}, "std must be a finite number > 0"),
        ("trades", {"detach_target": "yes"}, "detach_target must be true or false, got 'yes'"),
        ("mart", {"beta": "5"}, "beta must be a finite number, 0 or more, got '5'"),
        ("mart", {"lam": 5}, "has no option 'lam'; it has beta"),
        ("gradalign", {"lam": math.nan}, "lam must be a finite number"),
        ("gradalign", {"at": "start"}, "at must be one of clean, adversarial, got 'start'"),
    ],
)
def test_options_out_of_range(name, options, message):
    with pytest.raises(ValueError, match=message):
        methods.make(name, smooth(), settings(**options))


def test_gradalign_has_no_weight_for_other_norms():
    with pytest.raises(ValueError, match="norm 'l2' has no published weight: give lam"):
        methods.make("gradalign", smooth(), replace(SETTINGS, norm="l2"))
    made = methods.make("gradalign", smooth(), replace(settings(lam=0.5), norm="l2"))
    assert made.loss(made.craft(batch_of()), batch_of()).loss.isfinite()
