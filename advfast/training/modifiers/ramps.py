"""Attacks that grow stronger during a run: warm-up of eps, ramp of the number of steps."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import TYPE_CHECKING

from torch import nn

from .base import Modifier, RunInfo, StepInfo

if TYPE_CHECKING:
    from ..methods import Method


class _Ramp(Modifier):
    def __init__(self) -> None:
        self._full: dict[int, tuple[Method, float, float, int]] = {}

    def begin(self, model: nn.Module, run: RunInfo) -> None:
        self._full = {}

    def full(self, method: Method) -> tuple[float, float, int]:
        """eps, alpha and steps that the method was made with."""
        # A run can have two methods, one of them for a clean prefix.
        known = self._full.setdefault(id(method), (method, method.eps, method.alpha, method.steps))
        return known[1:]

    def graph_key(self) -> Hashable:
        return None  # the method has what it sets in its own


class EpsWarmup(_Ramp):
    """eps and alpha grow linearly, step by step, to their full values in the last step of so many epochs.

    De Jorge et al. (NeurIPS 2022) take 5 epochs for N-FGSM on SVHN.

    Args:
        epochs: above 0; need not be whole.

    Raises:
        ValueError: epochs out of range.
    """

    name = "eps-warmup"

    def __init__(self, epochs: float = 5) -> None:
        super().__init__()
        _check_epochs(self.name, epochs)
        self.epochs = float(epochs)

    def before_step(self, info: StepInfo) -> None:
        method = info.method
        eps, alpha, _ = self.full(method)
        # Not from 0: an attack of no step would be one more kind of step.
        share = min(1.0, (info.step + 1) / (self.epochs * info.steps_per_epoch))
        if share < 1:
            eps, alpha = eps * share, alpha * share
        if (eps, alpha) != (method.eps, method.alpha):
            method.strength(eps, alpha, method.steps)


class StepsRamp(_Ramp):
    """The number of steps of the attack grows linearly, rounded, to that of the run.

    Args:
        start: steps at the beginning, 0 or more, at most those of the run.
        epochs: after which the number is full; None: with the last step of the run.

    Raises:
        ValueError: one of them out of range.
    """

    name = "steps-ramp"

    def __init__(self, start: int = 1, epochs: float | None = None) -> None:
        super().__init__()
        if isinstance(start, bool) or not isinstance(start, int) or start < 0:
            raise ValueError(f"{self.name}: start must be an integer >= 0, got {start!r}")
        if epochs is not None:
            _check_epochs(self.name, epochs)
        self.start, self.epochs = start, epochs

    def before_step(self, info: StepInfo) -> None:
        method = info.method
        last = self.full(method)[2]
        epochs = info.epochs if self.epochs is None else self.epochs
        most = epochs * info.steps_per_epoch
        if self.epochs is None:
            most -= 1  # the last step of the run is one of full strength
        share = min(1.0, info.step / most) if most > 0 else 1.0
        # Halves up, not to even numbers: every number of steps gets its turn.
        steps = math.floor(self.start + share * (last - self.start) + 0.5)
        steps = max(min(steps, last), min(self.start, last))
        if steps != method.steps:
            method.strength(method.eps, method.alpha, steps)


def _check_epochs(name: str, epochs: object) -> None:
    number = isinstance(epochs, (int, float)) and not isinstance(epochs, bool)
    if not number or not 0 < epochs < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name}: epochs must be a finite number > 0, got {epochs!r}")
