"""Rank correlation."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import StatisticsError, correlation


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest; equal values share the mean of their ranks."""
    ordered = sorted(values)
    first = {value: ordered.index(value) for value in set(values)}
    return [first[value] + (ordered.count(value) + 1) / 2 for value in values]


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation, with ties: Pearson's of the ranks; None where one is constant, or of one pair."""
    if len(a) != len(b):
        raise ValueError(f"spearman needs as many values of both, got {len(a)} and {len(b)}")
    try:
        return correlation(ranks(a), ranks(b))
    except StatisticsError:
        return None
