"""Spearman's rank correlation with ties, and how probable as large a one is by chance."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

_EXACT = 8
"""Up to so many values all orders are gone through (40,320)."""


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1, equal values share the mean of theirs; [n] float64."""
    _, inverse, counts = np.unique(
        np.asarray(values, dtype=float), return_inverse=True, return_counts=True
    )
    ends = counts.cumsum()
    return (ends - (counts - 1) / 2)[inverse]


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """The correlation of the ranks, -1 .. 1; None for fewer than three values or where all of one are equal.

    Raises:
        ValueError: not as many values of both, or one that is not finite.
    """
    if len(a) != len(b) or not np.isfinite([*a, *b]).all():
        raise ValueError(f"expected as many finite values of both, got {len(a)} and {len(b)}")
    if len(a) < 3:
        return None
    x, y = (_centred(values) for values in (a, b))
    return None if x is None or y is None else float(np.clip(x @ y, -1.0, 1.0))


def p_value(
    a: Sequence[float], b: Sequence[float], *, permutations: int = 10_000, seed: int = 0
) -> float | None:
    """Two-sided: the share of orders of `b` whose |correlation| with `a` is as large; None where there is none.

    Exact up to 8 values; above, of so many random orders and the given one.
    """
    found = spearman(a, b)
    if found is None:
        return None
    x, y = _centred(a), _centred(b)
    assert x is not None and y is not None
    if len(y) <= _EXACT:
        orders = np.array(list(itertools.permutations(range(len(y)))))
    else:
        generator = np.random.default_rng(seed)
        drawn = [generator.permutation(len(y)) for _ in range(permutations)]
        orders = np.array([np.arange(len(y)), *drawn])
    return float((np.abs(y[orders] @ x) >= abs(found) - 1e-9).mean())


def _centred(values: Sequence[float]) -> np.ndarray | None:
    """Ranks with mean 0 and norm 1; None where all are equal."""
    found = ranks(values)
    found = found - found.mean()
    norm = np.linalg.norm(found)
    return found / norm if norm > 0 else None
