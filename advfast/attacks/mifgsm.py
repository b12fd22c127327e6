"""MI-FGSM: BIM with momentum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from advfast.kernels.pgd.api import Number

from .pgd import PGDAttack


class MIFGSM(PGDAttack):
    """PGD from the image itself, along accumulated gradients (Dong et al., CVPR 2018).

    Args:
        model, eps, steps: as for `PGDAttack`.
        alpha: step size; the paper's is eps / steps.
        momentum: what is kept of the gradients before; each is divided by its mean absolute value first.
        settings: the keyword arguments of `PGDAttack`.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: Number = 8 / 255,
        alpha: Number | None = 2 / 255,
        steps: int = 10,
        momentum: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(model, eps, alpha, steps, False, momentum=momentum, **settings)
