"""BIM: FGSM in small steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from advfast.kernels.pgd.api import Number

from .pgd import PGDAttack


class BIM(PGDAttack):
    """PGD from the image itself (the basic iterative method of Kurakin et al., ICLR 2017 workshop, arXiv 1607.02533).

    Args:
        model, eps, alpha, steps: as for `PGDAttack`.
        settings: the keyword arguments of `PGDAttack`.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: Number = 8 / 255,
        alpha: Number | None = 2 / 255,
        steps: int = 10,
        **settings: Any,
    ) -> None:
        super().__init__(model, eps, alpha, steps, False, **settings)
