"""What an evaluation found."""

from __future__ import annotations

import math
from collections.abc import Iterator
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


@dataclass(frozen=True)
class EvalReport:
    """Accuracy under each attack: ``report["pgd-20"].value``.

    Attributes:
        results: attack name -> Accuracy, in the order asked for.
        eps: radius of the attacks, pixel units.
        norm: norm of the attacks.
        seconds: wall time.
    """

    results: dict[str, Accuracy]
    eps: float
    norm: str
    seconds: float

    def __getitem__(self, attack: str) -> Accuracy:
        return self.results[attack]

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __str__(self) -> str:
        width = max(len(name) for name in self.results)
        lines = [f"{name:<{width}}  {accuracy}" for name, accuracy in self.results.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {
            "eps": self.eps,
            "norm": self.norm,
            "seconds": self.seconds,
            "results": {
                name: {
                    "accuracy": accuracy.value,
                    "correct": accuracy.correct,
                    "total": accuracy.total,
                    "interval_95": list(accuracy.interval),
                }
                for name, accuracy in self.results.items()
            },
        }
