"""FAB against a loop by hand in float64 that shares no code with it, and its parts by themselves."""

import copy

import pytest
import torch

from advfast.attacks import FAB
from advfast.attacks.search.fab_boundary import Boundary, Step
from advfast.attacks.search.fab_starts import published

from .trained import held_out, robust_cnn

ORDER = {"linf": torch.inf, "l2": 2}


def projection(point, w, offset, norm):
    """What brings a point onto {u: <w, u - point> = offset} in the box, by bisection of the multiplier."""
    direction = w.sign() if norm == "linf" else w
    low, high = torch.zeros(()).double(), torch.full((), 1e6).double()
    for _ in range(80):
        middle = (low + high) / 2
        delta = torch.maximum(torch.minimum(middle * offset.sign() * direction, 1 - point), -point)
        low, high = (middle, high) if (w * delta).sum().abs() < offset.abs() else (low, middle)
    return delta


def boundary_at(model, x, label, target, norm):
    """(difference, gradient) of the class whose boundary is the nearest, or of the target."""
    found = []
    for other in range(10) if target is None else [target]:
        if other != label:
            leaf = x.clone().requires_grad_()
            logits = model(leaf[None])[0]
            (w,) = torch.autograd.grad(logits[other] - logits[label], leaf)
            size = w.abs().sum() if norm == "linf" else w.norm()
            difference = (logits[other] - logits[label]).detach()
            found.append((float(difference.abs() / size), difference, w))
    return min(found, key=lambda item: item[0])[1:]


def by_hand(model, x0, label, target, norm, steps, alpha_max=0.1, eta=1.05, beta=0.9):
    """The closest misclassified image, of one sample."""
    x, best, least = x0.clone(), x0, float("inf")
    for _ in range(steps):
        difference, w = boundary_at(model, x, label, target, norm)
        own = projection(x, w, -difference, norm)
        clean = projection(x0, w, -difference + (w * (x - x0)).sum(), norm)
        sizes = [torch.linalg.vector_norm(d, ORDER[norm]).clamp(min=1e-8) for d in (own, clean)]
        alpha = (sizes[0] / (sizes[0] + sizes[1])).clamp(max=alpha_max)
        x = ((x + eta * own) * (1 - alpha) + (x0 + eta * clean) * alpha).clamp(0, 1)
        if int(model(x[None]).argmax()) != label:
            distance = float(torch.linalg.vector_norm(x - x0, ORDER[norm]))
            if distance < least:
                best, least = x, distance
            x = x0 + beta * (x - x0)
    return best


@pytest.mark.parametrize("targets", [0, 1])
@pytest.mark.parametrize("norm", ORDER)
def test_closest_images(norm, targets):
    model = copy.deepcopy(robust_cnn()).double()
    images, labels = held_out(7)
    images = images.double()
    right = model(images).argmax(1) == labels
    images, labels = images[right], labels[right]
    second = model(images).topk(2).indices[:, 1].tolist()
    crafted = FAB(model, 0.5, norm=norm, steps=10, targets=targets, keep="closest", fold=False)(
        images, labels
    )
    for x, label, target, got in zip(images, labels.tolist(), second, crafted, strict=True):
        expected = by_hand(model, x, label, target if targets else None, norm, 10)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-7)


def test_a_small_difference_is_not_lost_in_rounding():
    """<w, x> is 4e6 times the difference here: in float32 the step would be off by a few percent."""
    x = torch.rand(64, 784, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    w = torch.full_like(x, 10.0)
    at = Boundary(torch.full((64,), -7.84e-3), w)
    moved = Step("linf", alpha_max=0.1, eta=1.05, impl="auto")(x, x, at)
    gained = (w.double() * (moved.double() - x.double())).sum(1)
    torch.testing.assert_close(gained, torch.full_like(gained, 1.05 * 7.84e-3), rtol=0.01, atol=0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_published_starts_are_half_way_out(norm):
    x = torch.full((5, 2, 3, 4), 0.5)
    start = published(x, 0.2, norm, torch.Generator().manual_seed(0))
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    lengths = torch.linalg.vector_norm((start - x).flatten(1), order, dim=1)
    torch.testing.assert_close(lengths, torch.full((5,), 0.1), rtol=1e-5, atol=0)
    dark = published(torch.zeros(5, 3), 0.2, norm, torch.Generator().manual_seed(0))
    assert dark.min() == 0
