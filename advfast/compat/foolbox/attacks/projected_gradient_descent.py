"""PGD (Madry et al., ICLR 2018), BIM (Kurakin et al. 2017) and FGM (Goodfellow et al., ICLR 2015) in three norms.

Arguments are keywords; `BaseGradientDescent` says what they mean.
"""

from __future__ import annotations

from typing import Any

from .gradient_descent_base import (
    BaseGradientDescent,
    L1BaseGradientDescent,
    L2BaseGradientDescent,
    LinfBaseGradientDescent,
)


class LinfProjectedGradientDescentAttack(LinfBaseGradientDescent):
    """PGD within epsilon in linf: by default 40 steps of epsilon / 30, from a random start."""

    def __init__(
        self,
        *,
        rel_stepsize: float = 0.01 / 0.3,
        abs_stepsize: float | None = None,
        steps: int = 40,
        random_start: bool = True,
        fold: bool = True,
    ) -> None:
        super().__init__(
            rel_stepsize=rel_stepsize,
            abs_stepsize=abs_stepsize,
            steps=steps,
            random_start=random_start,
            fold=fold,
        )


class _PGD(BaseGradientDescent):
    def __init__(
        self,
        *,
        rel_stepsize: float = 0.025,
        abs_stepsize: float | None = None,
        steps: int = 50,
        random_start: bool = True,
        fold: bool = True,
    ) -> None:
        super().__init__(
            rel_stepsize=rel_stepsize,
            abs_stepsize=abs_stepsize,
            steps=steps,
            random_start=random_start,
            fold=fold,
        )


class L2ProjectedGradientDescentAttack(_PGD, L2BaseGradientDescent):
    """PGD within epsilon in l2: by default 50 steps of epsilon / 40, from a random start."""


class L1ProjectedGradientDescentAttack(_PGD, L1BaseGradientDescent):
    """PGD within epsilon in l1: by default 50 steps of epsilon / 40, from a random start."""


class _BIM(BaseGradientDescent):
    def __init__(
        self,
        *,
        rel_stepsize: float = 0.2,
        abs_stepsize: float | None = None,
        steps: int = 10,
        random_start: bool = False,
        fold: bool = True,
    ) -> None:
        super().__init__(
            rel_stepsize=rel_stepsize,
            abs_stepsize=abs_stepsize,
            steps=steps,
            random_start=random_start,
            fold=fold,
        )


class LinfBasicIterativeAttack(_BIM, LinfBaseGradientDescent):
    """BIM within epsilon in linf: by default 10 steps of epsilon / 5."""


class L2BasicIterativeAttack(_BIM, L2BaseGradientDescent):
    """BIM within epsilon in l2: by default 10 steps of epsilon / 5."""


class L1BasicIterativeAttack(_BIM, L1BaseGradientDescent):
    """BIM within epsilon in l1: by default 10 steps of epsilon / 5."""


class _FGM(BaseGradientDescent):
    def __init__(self, *, random_start: bool = False, fold: bool = True) -> None:
        super().__init__(rel_stepsize=1.0, steps=1, random_start=random_start, fold=fold)

    def _check_criterion(self, criterion: Any) -> None:
        if hasattr(criterion, "target_classes"):
            raise ValueError(
                f"unsupported criterion: {type(self).__name__} is untargeted, got {criterion!r}"
            )


class LinfFastGradientAttack(_FGM, LinfBaseGradientDescent):
    """FGSM: one step of epsilon along the sign of the gradient. Untargeted."""


class L2FastGradientAttack(_FGM, L2BaseGradientDescent):
    """FGM: one step of epsilon along the gradient. Untargeted."""


class L1FastGradientAttack(_FGM, L1BaseGradientDescent):
    """One step of epsilon in l1 along the gradient. Untargeted."""
