"""TPGD: the inner attack of TRADES."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from advfast.kernels.pgd.api import Number

from .gaussian import GaussianPGD


class TPGD(GaussianPGD):
    """PGD that raises KL(clean prediction || prediction) from a small Gaussian start (TRADES, Zhang et al., ICML 2019).

    Labels are not used, except to tell with several restarts which of them succeeded.

    Args:
        model, eps, alpha, steps: as for `PGDAttack`.
        settings: std, and the keyword arguments of `PGDAttack`.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: Number = 8 / 255,
        alpha: Number | None = 2 / 255,
        steps: int = 10,
        **settings: Any,
    ) -> None:
        super().__init__(model, eps, alpha, steps, loss="kl", **settings)
