"""The decision boundary as FAB sees it: linear at an iterate; and the step toward it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advfast.kernels import hyperplane_project

from .oracle import Oracle

LEAST_LENGTH = 1e-8
"""Of a displacement, where two are weighed against each other."""


def lengths(delta: Tensor, norm: str) -> Tensor:
    """[N, ...] -> [N], the norm of each sample."""
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    return torch.linalg.vector_norm(delta.flatten(1), order, dim=1)


def across(values: Tensor, x: Tensor) -> Tensor:
    """[N] -> [N, 1, ...], to go with x."""
    return values.view(-1, *[1] * (x.dim() - 1))


@dataclass
class Boundary:
    """{u: difference + <w, u - x> = 0} at iterates x, where the logit of another class meets that of the label.

    Attributes:
        difference: [N] logit of the other class less that of the label, at x.
        w: [N, ...] like x, its gradient.
    """

    difference: Tensor
    w: Tensor


def _towards(oracle: Oracle, x: Tensor, labels: Tensor, others: Tensor) -> tuple[Tensor, Boundary]:
    """(logits [N, K], the boundary to the classes `others` [N])."""

    def margin(logits: Tensor, rows: slice) -> Tensor:
        pair = torch.stack([others[rows], labels[rows]], 1)
        other, own = logits.gather(1, pair).unbind(1)
        return other - own

    logits, gradient = oracle.gradient(x, margin)
    # The kernels want the memory of x.
    w = gradient if gradient.stride() == x.stride() else torch.empty_like(x).copy_(gradient)
    return logits, Boundary(margin(logits, slice(None)), w)


def boundary(
    oracle: Oracle, x: Tensor, labels: Tensor, others: Tensor | None, classes: int, norm: str
) -> tuple[Tensor, Boundary]:
    """
    Args:
        x: [N, ...] iterates.
        labels: [N].
        others: [N], the class whose boundary is sought. None: whichever linear one is nearest in `norm`.
        classes: number of them, K.

    Returns:
        (logits [N, K] at x, the boundary).
    """
    if others is not None:
        return _towards(oracle, x, labels, others)
    # All classes but the label, in their order; as many in a pass as the device has room for.
    number = torch.arange(classes - 1, device=x.device)[:, None]
    every = number + (number >= labels)
    logits, found = None, None
    for some in every.split(max(1, oracle.rows // len(x))):
        count = len(some)
        seen, part = _towards(oracle, repeated(x, count), labels.repeat(count), some.flatten())
        logits = seen[: len(x)]
        found = _nearest(found, part, count, {"linf": "l1", "l2": "l2", "l1": "linf"}[norm])
    assert logits is not None and found is not None  # two classes or more
    return logits, found[1]


def _nearest(
    found: tuple[Tensor, Boundary] | None, part: Boundary, count: int, dual: str
) -> tuple[Tensor, Boundary]:
    """(distances, boundaries): for each iterate the nearest of what was found and the `count` more of `part`."""
    distances = part.difference.abs() / (1e-12 + lengths(part.w, dual))
    pieces = (t.chunk(count) for t in (distances, part.difference, part.w))
    for distance, difference, w in zip(*pieces, strict=True):
        if found is None:
            found = distance, Boundary(difference, w)
            continue
        nearer = distance < found[0]
        best = found[1]
        found = (
            torch.where(nearer, distance, found[0]),
            Boundary(
                torch.where(nearer, difference, best.difference),
                torch.where(across(nearer, w), w, best.w),
            ),
        )
    assert found is not None
    return found


def repeated(x: Tensor, count: int) -> Tensor:
    """x `count` times, one behind the other."""
    return x if count == 1 else torch.cat([x] * count)


@dataclass
class Step:
    """How FAB moves: between the iterate's projection and that of the clean image, past the boundary.

    Attributes:
        norm: in which the displacements are the smallest.
        alpha_max: largest weight of the clean image's projection.
        eta: overshoot, 1 or more.
        impl: of the projection.
    """

    norm: str
    alpha_max: float
    eta: float
    impl: str

    def __call__(self, x: Tensor, x0: Tensor, at: Boundary) -> Tensor:
        """The next iterates, in [0, 1]; x, x0 [N, ...]."""
        # In float64: the difference may be far smaller than <w, x>.
        b = (at.w.double() * x).flatten(1).sum(1) - at.difference
        own = hyperplane_project(x, at.w, b, self.norm, impl=self.impl)
        clean = hyperplane_project(x0, at.w, b, self.norm, impl=self.impl)
        a1 = lengths(own, self.norm).clamp(min=LEAST_LENGTH)
        a2 = lengths(clean, self.norm).clamp(min=LEAST_LENGTH)
        alpha = across((a1 / (a1 + a2)).clamp(max=self.alpha_max), x)
        moved = (x + self.eta * own) * (1 - alpha) + (x0 + self.eta * clean) * alpha
        return moved.clamp_(0.0, 1.0)
