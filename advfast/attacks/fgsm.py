"""FGSM, and FGSM from a random start: one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from advfast.kernels.pgd.api import Number

from .pgd import PGDAttack


class FGSM(PGDAttack):
    """One step of eps from the image itself (Goodfellow et al., ICLR 2015). For l2 and l1: along the gradient.

    Args:
        model, eps: as for `PGDAttack`.
        settings: the keyword arguments of `PGDAttack`.
    """

    STEP_OF_EPS: ClassVar[float] = 1.0

    def __init__(
        self, model: Callable[[Tensor], Tensor], eps: Number = 8 / 255, **settings: Any
    ) -> None:
        super().__init__(model, eps, None, 1, False, **settings)


class FGSMRS(PGDAttack):
    """One step from a uniform start ("Fast is better than free", Wong et al., ICLR 2020).

    Args:
        model, eps: as for `PGDAttack`.
        alpha: step size; None is 1.25 eps, the paper's 10/255 at 8/255.
        settings: the keyword arguments of `PGDAttack`.
    """

    STEP_OF_EPS: ClassVar[float] = 1.25

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: Number = 8 / 255,
        alpha: Number | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, eps, alpha, 1, True, **settings)
