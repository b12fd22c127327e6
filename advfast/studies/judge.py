"""Expectations that compare means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .result import Expectation, StudyResult


def mean_of(result: StudyResult, measure: str, values: Mapping[str, Any]) -> float | None:
    """The mean of a measure over the rows with these values; None where no such row has a number."""
    try:
        return result.mean(measure, **values)
    except ValueError:
        return None


def compared(
    result: StudyResult,
    text: str,
    measure: str,
    left: Mapping[str, Any],
    right: Mapping[str, Any],
    holds: Callable[[float, float], bool],
) -> Expectation:
    """Whether `holds(a, b)` of the means of a measure over two sets of rows."""
    a, b = mean_of(result, measure, left), mean_of(result, measure, right)
    if a is None or b is None:
        return Expectation(text, "not run", None)
    return Expectation(text, f"{a:.3g} against {b:.3g}", holds(a, b))
