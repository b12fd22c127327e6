"""PGD from a small Gaussian start."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from advfast.kernels import project_, random_start
from advfast.kernels.pgd.api import Number

from .pgd import PGDAttack

_LAST = 1 - 2**-24
"""The largest float32 below 1: a draw of exactly 1 would be infinite as a normal number."""


class GaussianPGD(PGDAttack):
    """PGD from the image plus normal noise (the attack that MART trains with, Wang et al., ICLR 2020).

    Args:
        model, eps, alpha, steps: as for `PGDAttack`.
        std: of the start, in pixel units; the start is projected into the ball and the box.
        settings: the keyword arguments of `PGDAttack`.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: Number = 8 / 255,
        alpha: Number | None = 2 / 255,
        steps: int = 10,
        *,
        std: float = 0.001,
        **settings: Any,
    ) -> None:
        self.std = std
        super().__init__(model, eps, alpha, steps, True, **settings)

    def _validate(self) -> None:
        super()._validate()
        if not 0 < self.std < math.inf:
            raise ValueError(
                "std must be a finite number > 0 in pixel units (the KL loss has no gradient at the "
                f"clean image), got {self.std}"
            )

    def _start(
        self,
        x0: Tensor,
        eps: Number,
        norm: str,
        seed: Tensor | None,
        restart: int,
        sample_ids: Tensor | None,
    ) -> Tensor:
        if seed is None:
            noise = torch.randn_like(x0)  # the draw of torchattacks.TPGD
        else:
            uniform = random_start(
                torch.zeros_like(x0),
                eps=1.0,
                bounds=None,
                seed=seed,
                offset=restart,
                sample_ids=sample_ids,
                impl=self.impl,
            )
            noise = uniform.clamp_(-_LAST, _LAST).erfinv_().mul_(math.sqrt(2))
        start = x0 + self.std * noise
        return project_(start, x0, eps=eps, norm=norm, bounds=self.bounds, impl=self.impl)
