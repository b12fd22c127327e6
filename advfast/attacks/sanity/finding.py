"""What the checks come to, in a form that goes into a report and comes back from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Value = float | int | str


@dataclass(frozen=True)
class Finding:
    """One reason to doubt a robust accuracy.

    Attributes:
        code: its name, such as "zero-gradient".
        message: what was measured, and what that means.
        advice: what to try.
        values: the numbers that were measured, by name.
    """

    code: str
    message: str
    advice: str
    values: dict[str, Value] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}; {self.advice}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it; numbers that are not finite are written as text."""
        return {
            "code": self.code,
            "message": self.message,
            "advice": self.advice,
            "values": {name: _plain(value) for name, value in self.values.items()},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Finding:
        """The inverse of `to_dict`.

        Raises:
            KeyError: something is missing.
        """
        values = {name: _read(value) for name, value in content["values"].items()}
        return cls(str(content["code"]), str(content["message"]), str(content["advice"]), values)


@dataclass(frozen=True)
class Sweep:
    """PGD against its radius and against its number of steps; what `sweep` returns.

    Attributes:
        eps: radii, rising, the first 0.
        accuracy: robust accuracy at each of them, among samples that are right when clean (1.0 at radius 0).
        steps: numbers of steps, rising.
        step_accuracy: robust accuracy after so many steps at the radius of the evaluation.
        step_loss: mean loss there, cross-entropy if the attack is not told otherwise.
        samples: how many samples it was measured on.
        findings: what looks wrong about the two curves.
        widest_eps: the radius that reaches every point of the box, where no robustness can be left; and
        widest_accuracy: what was left. NaN where nothing was measured.
        start_loss: mean loss at the random start, before any step.
    """

    eps: list[float]
    accuracy: list[float]
    steps: list[int]
    step_accuracy: list[float]
    step_loss: list[float]
    samples: int
    findings: tuple[Finding, ...] = ()
    widest_eps: float = math.nan
    widest_accuracy: float = math.nan
    start_loss: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it; numbers that are not finite are written as text."""
        return {
            "eps": [_plain(value) for value in self.eps],
            "accuracy": [_plain(value) for value in self.accuracy],
            "steps": list(self.steps),
            "step_accuracy": [_plain(value) for value in self.step_accuracy],
            "step_loss": [_plain(value) for value in self.step_loss],
            "samples": self.samples,
            "findings": [finding.to_dict() for finding in self.findings],
            "widest_eps": _plain(self.widest_eps),
            "widest_accuracy": _plain(self.widest_accuracy),
            "start_loss": _plain(self.start_loss),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Sweep:
        """The inverse of `to_dict`.

        Raises:
            KeyError: something is missing.
        """
        return cls(
            _floats(content["eps"]),
            _floats(content["accuracy"]),
            [int(steps) for steps in content["steps"]],
            _floats(content["step_accuracy"]),
            _floats(content["step_loss"]),
            int(content["samples"]),
            tuple(Finding.from_dict(finding) for finding in content["findings"]),
            float(content["widest_eps"]),
            float(content["widest_accuracy"]),
            float(content["start_loss"]),
        )


_NOT_FINITE = ("nan", "inf", "-inf")


def _plain(value: Value) -> Value:
    """JSON has no NaN and no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _read(value: Value) -> Value:
    return float(value) if value in _NOT_FINITE else value


def _floats(values: Iterable[Value]) -> list[float]:
    return [float(value) for value in values]
