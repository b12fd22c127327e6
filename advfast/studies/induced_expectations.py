"""What was expected of induced distributions, written down on 2026-11-30 before the first run.

Of digits the numbers of an earlier trial with another program, of other data the signs of them.
"""

from __future__ import annotations

from collections.abc import Callable

from .rank_correlation import spearman
from .result import Expectation, StudyResult


def curve(result: StudyResult, measure: str) -> list[tuple[int, float]]:
    """(epoch, mean over the seeds) where there is one."""
    return [
        (row["epoch"], row[f"{measure}_mean"])
        for row in result.summary
        if row[f"{measure}_mean"] is not None
    ]


def expectations(result: StudyResult) -> list[Expectation]:
    digits = result.settings["data"] == "digits"
    least, rise = (0.9, 0.2) if digits else (0.0, 0.0)
    with_epoch = "at least 0.9" if digits else "above 0"
    return [
        _ranked(
            result, f"rank correlation of epoch and IDE test error {with_epoch}", "ide_test_error",
            least, digits,
        ),
        _ranked(
            result, f"rank correlation of epoch and dispersion of test images {with_epoch}",
            "dispersion_test", least, digits,
        ),
        _between(
            result,
            "IDE test error of the last checkpoint above that of the first"
            + (" by 0.2 or more" if digits else ""),
            "ide_test_error",
            lambda first, last: last - first >= rise if digits else last > first,
        ),
        _late(result),
    ]  # fmt: skip


def notes(result: StudyResult) -> list[str]:
    """Rank correlations that nothing was expected of."""
    ide, gap, dispersion = (
        dict(curve(result, name)) for name in ("ide_test_error", "robust_gap", "dispersion_test")
    )
    said = []
    for words, other in (("the robust gap", gap), ("the dispersion of test images", dispersion)):
        both = [(ide[epoch], other[epoch]) for epoch in ide if epoch in other]
        found = spearman([a for a, _ in both], [b for _, b in both])
        if found is not None:
            said.append(f"rank correlation of IDE test error and {words}: {found:.2f}")
    return said


def _ranked(
    result: StudyResult, text: str, measure: str, least: float, inclusive: bool
) -> Expectation:
    points = curve(result, measure)
    found = spearman([epoch for epoch, _ in points], [value for _, value in points])
    if found is None:
        return Expectation(text, "fewer than three checkpoints", None)
    return Expectation(text, f"{found:.2f}", found >= least if inclusive else found > least)


def _between(
    result: StudyResult, text: str, measure: str, holds: Callable[[float, float], bool]
) -> Expectation:
    points = curve(result, measure)
    if len(points) < 2:
        return Expectation(text, "fewer than two checkpoints", None)
    (start, first), (end, last) = points[0], points[-1]
    found = f"{first:.3f} at epoch {start}, {last:.3f} at epoch {end}"
    return Expectation(text, found, holds(first, last))


def _late(result: StudyResult) -> Expectation:
    text = "at the last checkpoint, dispersion of training images above that of test images"
    train, test = (curve(result, f"dispersion_{part}")[-1][1] for part in ("train", "test"))
    return Expectation(text, f"{train:.3f} against {test:.3f}", train > test)
