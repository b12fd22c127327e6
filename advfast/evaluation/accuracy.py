"""An accuracy, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_Z95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""


@dataclass(frozen=True)
class Accuracy:
    """`correct` of `total` samples."""

    correct: int
    total: int

    @property
    def value(self) -> float:
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval: the uncertainty from the number of samples, not from training."""
        n, p, z = self.total, self.value, _Z95
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} %  (95 % interval {100 * low:.1f} .. {100 * high:.1f}, n = {self.total})"

    def to_dict(self) -> dict[str, Any]:
        return {
            "accuracy": self.value,
            "correct": self.correct,
            "total": self.total,
            "interval_95": list(self.interval),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Accuracy:
        return cls(int(content["correct"]), int(content["total"]))
