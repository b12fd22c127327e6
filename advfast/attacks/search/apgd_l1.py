"""The l1 form of APGD: a step of as many pixels as are worth it, and a projection onto ball and box together.

Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML 2021.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advfast.attacks.rows import _Selectable
from advfast.kernels import apgd_l1_step

REDUCTION = 1.5
"""What a step is divided by when the number of changed pixels has settled, and that number for the next step's."""
LEAST_STEP = 10.0
"""Times that the smallest step goes into eps."""
_SETTLED = 0.95
_FIRST_SHARE = 0.2


def _flat(v: Tensor) -> Tensor:
    return v.reshape(v.shape[0], v.shape[1:].numel())


def over(values: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, ...]."""
    return values.reshape(-1, *[1] * (x.dim() - 1))


def step(
    x: Tensor, x0: Tensor, gradient: Tensor, size: Tensor, share: Tensor, eps: float, impl: str
) -> Tensor:
    """The next iterates: a move of l1 length `size` [B], equal in all pixels of the `share` [B] with most gradient."""
    pixels = x.shape[1:].numel()
    rank = ((1.0 - share) * pixels).clamp(min=0, max=pixels - 1).long()
    return apgd_l1_step(x, x0, gradient, size, rank, eps=eps, impl=impl)


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
