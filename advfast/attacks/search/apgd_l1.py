"""The l1 form of APGD: a step of as many pixels as are worth it, and a projection onto ball and box together.

Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML 2021.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advfast.attacks.rows import _Selectable

REDUCTION = 1.5
"""What a step is divided by when the number of changed pixels has settled, and that number for the next step's."""
LEAST_STEP = 10.0
"""Times that the smallest step goes into eps."""
_SETTLED = 0.95
_FIRST_SHARE = 0.2
_PASSES = 100
_TOLERANCE = 1e-6


def _flat(v: Tensor) -> Tensor:
    return v.reshape(v.shape[0], v.shape[1:].numel())


def over(values: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, ...]."""
    return values.reshape(-1, *[1] * (x.dim() - 1))


def project_ball_and_box(x: Tensor, x0: Tensor, eps: float) -> Tensor:
    """The Euclidean projection of x onto {||z - x0||_1 <= eps, 0 <= z <= 1} (proposition 2.1), x0 in the box.

    |z - x0| is min(|x - x0| - beyond, max(|x - x0| - shift, 0)) with one shift >= 0 a sample, `beyond` being what lies
    outside the box. Its sum falls in the shift along straight lines: Newton's method ends on the right one; where it
    would leave the interval that holds the solution, the interval is halved.
    """
    delta = _flat(x - x0)
    size = delta.abs()
    beyond = torch.maximum(_flat(x) - 1, -_flat(x)).clamp(min=0.0).minimum(size)
    room = size - beyond
    shift = low = torch.zeros_like(size[:, :1])
    high = size.amax(1, keepdim=True) if size.shape[1] else low
    left = room
    for _ in range(_PASSES):
        excess = left.sum(1, keepdim=True) - eps
        above = excess > 0
        # A row that is inside as it is keeps the shift 0.
        goes = (excess.abs() > _TOLERANCE * eps) & (above | (shift > 0))
        if not bool(goes.any()):
            break
        low, high = torch.where(above, shift, low), torch.where(above, high, shift)
        sloping = ((beyond <= shift) & (shift < size)).sum(1, keepdim=True)
        newton = shift + excess / sloping
        good = (newton > low) & (newton < high)
        shift = torch.where(goes, torch.where(good, newton, (low + high) / 2), shift)
        left = torch.minimum(room, (size - shift).clamp(min=0.0))
    total = left.sum(1, keepdim=True)
    left = left * torch.where(total > eps, eps / total, 1.0)
    return (x0 + (delta.sign() * left).reshape(x0.shape)).clamp(0.0, 1.0)


def step(
    x: Tensor, x0: Tensor, gradient: Tensor, size: Tensor, share: Tensor, eps: float
) -> Tensor:
    """The next iterates: a move of l1 length `size` [B], equal in all pixels of the `share` [B] with most gradient."""
    magnitude = _flat(gradient.abs())
    pixels = magnitude.shape[1]
    rank = ((1.0 - share) * pixels).clamp(min=0, max=pixels - 1).long()
    least = magnitude.sort(1).values.gather(1, rank[:, None])
    direction = torch.where(magnitude >= least, _flat(gradient).sign(), 0.0)
    length = direction.abs().sum(1, keepdim=True) + 1e-10
    moved = (over(size, x) * direction.reshape(x.shape)) / over(length, x)
    return project_ball_and_box(x + moved, x0, eps)


def support(x: Tensor, x0: Tensor) -> Tensor:
    """[B] how many pixels differ."""
    return (_flat(x - x0) != 0).sum(1)


@dataclass
class Sparsity(_Selectable):
    """How many pixels a row's steps move.

    Attributes:
        share: [B] float32, of all pixels.
        support: [B] how many pixels of the best point differed at the last check.
    """

    share: Tensor
    support: Tensor

    @classmethod
    def start(cls, x: Tensor, x0: Tensor, given: bool) -> Sparsity:
        """given: x comes from an earlier stage, and tells how many pixels are worth it."""
        pixels = x.shape[1:].numel()
        if given:
            changed = support(x, x0)
            return cls(changed / pixels / REDUCTION, changed)
        share = torch.full((len(x),), _FIRST_SHARE, dtype=torch.float32, device=x.device)
        return cls(share, torch.full_like(share, pixels).long())

    def check(self, best: Tensor, x0: Tensor, step: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(rows that go back to their best point, bool [B]; the new step sizes [B]).

        Where the number of changed pixels still falls, the step becomes eps again; elsewhere it is divided by 1.5,
        down to a tenth of eps.
        """
        changed = support(best, x0)
        falls = changed / self.support < _SETTLED
        self.share = changed / best.shape[1:].numel() / REDUCTION
        self.support = changed
        size = torch.where(falls, eps, step / REDUCTION).clamp(eps / LEAST_STEP, eps)
        return falls, size
