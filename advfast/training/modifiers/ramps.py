"""Attacks that grow stronger during a run: warm-up of eps, ramp of the number of steps."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

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
    """The number of steps of the attack grows to that of the run: linearly, rounded, or by stages.

    Stages such as 0-1-3-7-10 are an extension of the clean epochs at the beginning of time-saving adversarial training
    (`clean_prefix`). With 0 steps the images stay as they are (radius 0, no random start); a method that always makes
    one step makes it with radius 0. More steps than those of the run are as many as these. eps and alpha are those of
    the run; after an eps-warmup in the order, where both are used.

    Args:
        start: steps at the beginning, 0 or more, at most those of the run; not with `stages`.
        epochs: after which the number is full (with stages: the last one begins); None: with the last step of the run
            (with stages: all of them are equally long).
        stages: steps of each stage, as a list, or as a text with hyphens.
        at: epochs after which the second stage begins, the third, ..., rising, in the same forms; None: stages of equal
            length.

    Raises:
        ValueError: one of them out of range.
    """

    name = "steps-ramp"

    def __init__(
        self,
        start: int | None = None,
        epochs: float | None = None,
        stages: str | int | Sequence[int] | None = None,
        at: str | float | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if stages is not None and start is not None:
            raise ValueError(f"{self.name}: start is the first of the stages, give one of the two")
        if at is not None and (stages is None or epochs is not None):
            raise ValueError(f"{self.name}: at needs stages, and excludes epochs")
        start = 1 if start is None else start
        if isinstance(start, bool) or not isinstance(start, int) or start < 0:
            raise ValueError(f"{self.name}: start must be an integer >= 0, got {start!r}")
        if epochs is not None:
            _check_epochs(self.name, epochs)
        self.start, self.epochs = start, epochs
        self.stages = None if stages is None else _numbers(self.name, "stages", stages, int)
        self.at = None if at is None else _numbers(self.name, "at", at, float)
        if self.at is not None and (
            len(self.at) + 1 != len(self.stages or ()) or self.at != tuple(sorted(set(self.at)))
        ):
            raise ValueError(
                f"{self.name}: at must be rising epochs, one less than there are stages, got {at!r}"
            )

    def planned(self, step: int, epochs: int, steps_per_epoch: int, last: int) -> int:
        """Steps of the attack in a step of the run.

        Args:
            step: of the run, from 0.
            epochs: of the run.
            steps_per_epoch: optimiser steps.
            last: steps of the attack of the run.
        """
        if self.stages is not None:
            done = step / steps_per_epoch
            begins = self.at
            if begins is None:
                count = len(self.stages)
                length = epochs / count if self.epochs is None else self.epochs / max(count - 1, 1)
                begins = tuple(length * number for number in range(1, count))
            # The small number: 0.1 * 3 epochs must not begin a step late for its rounding.
            return min(self.stages[sum(done >= epoch - 1e-9 for epoch in begins)], last)
        most = (epochs if self.epochs is None else self.epochs) * steps_per_epoch
        if self.epochs is None:
            most -= 1  # the last step of the run is one of full strength
        share = min(1.0, step / most) if most > 0 else 1.0
        # Halves up, not to even numbers: every number of steps gets its turn.
        steps = math.floor(self.start + share * (last - self.start) + 0.5)
        return max(min(steps, last), min(self.start, last))

    def before_step(self, info: StepInfo) -> None:
        method = info.method
        if method.trains_on == "clean":
            return  # in a clean prefix: there would be kinds of steps that do not differ
        eps, alpha, last = self.full(method)
        steps = self.planned(info.step, info.epochs, info.steps_per_epoch, last)
        if not steps:
            eps = 0.0
        elif method.eps:
            eps, alpha = method.eps, method.alpha  # another modifier may have set them
        if (eps, alpha, steps) != (method.eps, method.alpha, method.steps):
            method.strength(eps, alpha, steps)


Number = TypeVar("Number", int, float)


def _numbers(name: str, what: str, given: object, kind: type[Number]) -> tuple[Number, ...]:
    """Of a list, a text with hyphens, or one number: all 0 or more."""
    parts: Any = given.split("-") if isinstance(given, str) else given
    parts = parts if isinstance(parts, Sequence) else [parts]
    try:
        if any(isinstance(part, bool) for part in parts):
            raise ValueError
        numbers = tuple(kind(part) for part in parts)
        exact = all(float(part) == number for part, number in zip(parts, numbers, strict=True))
    except (TypeError, ValueError):
        exact = False
    if not exact or not numbers or not all(0 <= number < math.inf for number in numbers):
        kinds = "integers" if kind is int else "numbers"
        raise ValueError(f"{name}: {what} must be {kinds} >= 0, such as 0-1-3-7-10, got {given!r}")
    return numbers


def _check_epochs(name: str, epochs: object) -> None:
    number = isinstance(epochs, (int, float)) and not isinstance(epochs, bool)
    if not number or not 0 < epochs < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name}: epochs must be a finite number > 0, got {epochs!r}")
