"""What the samples of each class were taken for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SHOWN = 20
"""Classes up to which the whole matrix is kept."""

_LARGEST = 100
"""Kinds of mistake that are kept for more classes than that."""


@dataclass(frozen=True)
class Confusion:
    """Counts of (true class, class predicted on the attacked image).

    Samples with NaN among their logits are in no column.

    Attributes:
        classes: K, the number of logits.
        matrix: [K][K] counts, a row a true class; None for K > 20.
        mistakes: (true class, predicted class, count) of wrong predictions, the most frequent first; for K > 20 the
            100 most frequent.
    """

    classes: int
    matrix: tuple[tuple[int, ...], ...] | None
    mistakes: tuple[tuple[int, int, int], ...]

    def mostly(self, true: int) -> tuple[int, int] | None:
        """(the class that those of class `true` were most often taken for in error, how often)."""
        for row, column, count in self.mistakes:
            if row == true:
                return column, count
        return None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        if self.matrix is not None:
            return {"classes": self.classes, "counts": [list(row) for row in self.matrix]}
        return {"classes": self.classes, "mistakes": [list(entry) for entry in self.mistakes]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Confusion:
        """The inverse of `to_dict`.

        Raises:
            KeyError: something is missing.
        """
        classes = int(content["classes"])
        if "counts" in content:
            return of_counts(content["counts"])
        mistakes = tuple((int(t), int(p), int(n)) for t, p, n in content["mistakes"])
        return cls(classes, None, mistakes)


def of_counts(counts: Sequence[Sequence[int]]) -> Confusion:
    """Of a matrix [K][K]."""
    matrix = tuple(tuple(int(count) for count in row) for row in counts)
    wrong = [
        (true, predicted, count)
        for true, row in enumerate(matrix)
        for predicted, count in enumerate(row)
        if count and predicted != true
    ]
    return Confusion(len(matrix), matrix, _sorted(wrong))


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> Confusion:
    """
    Args:
        labels: [N] int64 true classes.
        predicted: [N] integers, -1 for none.
        classes: K.
    """
    seen = predicted >= 0
    pairs = labels[seen] * classes + predicted[seen].long()
    if classes <= SHOWN:
        counts = torch.bincount(pairs, minlength=classes * classes).view(classes, classes)
        return of_counts(counts.tolist())
    kinds, counts = pairs.unique(return_counts=True)
    wrong = [
        (kind // classes, kind % classes, count)
        for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True)
        if kind // classes != kind % classes
    ]
    return Confusion(classes, None, _sorted(wrong)[:_LARGEST])


def _sorted(wrong: list[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    return tuple(sorted(wrong, key=lambda entry: (-entry[2], entry[0], entry[1])))
