"""What `co_features` expects, written down on 2026-11-30 before the first run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .result import Expectation, Row, StudyResult

WEAK, STRONG = "gradalign:lam=0.2", "gradalign:lam=2"


def expectations(result: StudyResult) -> list[Expectation]:
    """By the data and the network; of every seed, not of the mean."""
    settings = result.settings
    if settings.get("source") is not None:
        return []
    if settings["data"] != "digits":
        return _published(result)
    return _control(result) if settings["model"] == "conv-2" else _digits(result)


def _digits(result: StudyResult) -> list[Expectation]:
    """Bands around what was measured once, in a trial by other code, with one to three seeds.

    That of beta 0.3, above eps, where the feature alone is robust, is the paper's claim for such; it was written down
    after the first run (beta 0, 0.1, 0.2) and before its own.
    """

    def said(
        text: str, method: str, beta: float, measure: str, holds: Callable[[Any], bool]
    ) -> Expectation:
        rows = _rows(result, method=method, beta=beta, eps=0.25)
        return _judged(text, rows, measure, holds)

    gap = "FGSM minus PGD accuracy"
    return [
        said(f"fgsm at beta 0.1, eps 0.25 collapses: {gap} above 0.9", "fgsm", 0.1, "gap", lambda v: v > 0.9),
        said(f"fgsm without the feature (beta 0) does not: {gap} below 0.5", "fgsm", 0.0, "gap", lambda v: v < 0.5),
        said(f"fgsm with a strong feature (beta 0.2) does not: {gap} below 0.5", "fgsm", 0.2, "gap", lambda v: v < 0.5),
        said(
            f"fgsm with a feature above the radius (beta 0.3) does not: {gap} below 0.5", "fgsm", 0.3, "gap",
            lambda v: v < 0.5,
        ),
        said("the detector fires for fgsm at beta 0.1", "fgsm", 0.1, "alarm", lambda v: v is not None),
        said("the detector is silent for fgsm at beta 0", "fgsm", 0.0, "alarm", lambda v: v is None),
        said("the detector is silent for fgsm at beta 0.2", "fgsm", 0.2, "alarm", lambda v: v is None),
        said(f"pgd-at at beta 0.1 survives: {gap} below 0.5", "pgd-at", 0.1, "gap", lambda v: v < 0.5),
        said("pgd-at at beta 0.1 is robust: PGD accuracy above 0.3", "pgd-at", 0.1, "pgd", lambda v: v > 0.3),
        said(f"n-fgsm at beta 0.1 survives: {gap} below 0.5", "n-fgsm", 0.1, "gap", lambda v: v < 0.5),
        said("n-fgsm at beta 0.1 is robust: PGD accuracy above 0.3", "n-fgsm", 0.1, "pgd", lambda v: v > 0.3),
        said("weak gradalign (lam 0.2) does too at beta 0.1: PGD below 0.1", WEAK, 0.1, "pgd", lambda v: v < 0.1),
        said(f"gradalign with lam 2 at beta 0.1 survives: {gap} below 0.5", STRONG, 0.1, "gap", lambda v: v < 0.5),
        _explosion(result),
    ]  # fmt: skip


def _explosion(result: StudyResult) -> Expectation:
    text = "at beta 0.1 the loss of fgsm is more than five times as curved in the end as that of pgd-at"
    found = [_rows(result, method=name, beta=0.1, eps=0.25) for name in ("fgsm", "pgd-at")]
    if not all(found):
        return Expectation(text, "not run", None)
    if any(row["curvature"] is None for rows in found for row in rows):
        return Expectation(text, "a run diverged", False)
    least, most = min(r["curvature"] for r in found[0]), max(r["curvature"] for r in found[1])
    return Expectation(text, f"{least:.3g} against {most:.3g}", least > 5 * most)


def _control(result: StudyResult) -> list[Expectation]:
    text = "two convolutions, 30 epochs, eps 0.15: fgsm collapses at no beta (FGSM minus PGD accuracy below 0.5)"
    return [
        _judged(text, _rows(result, method="fgsm", eps=0.15), "gap", lambda v: v < 0.5),
        _judged(
            "there the detector is silent at every beta", _rows(result, method="fgsm", eps=0.15), "alarm",
            lambda v: v is None,
        ),
    ]  # fmt: skip


def _published(result: StudyResult) -> list[Expectation]:
    """The claims of the paper, at its radius 6/255."""
    eps = 6 / 255
    fgsm = _rows(result, method="fgsm", eps=eps)
    without = [row for row in fgsm if row["beta"] == 0]
    between = [row for row in fgsm if 0 < row["beta"] <= eps]
    return [
        _judged("fgsm without the feature does not collapse at eps 6/255", without, "collapsed", lambda v: v == 0),
        _judged(
            "fgsm collapses at some beta above 0 and up to eps, 6/255", between, "collapsed", lambda v: v == 1,
            anywhere=True,
        ),
        _judged(
            "fgsm does not collapse at the largest beta, which is above eps, 6/255", _largest(fgsm, eps), "collapsed",
            lambda v: v == 0,
        ),
        _judged("pgd-at does not collapse anywhere", _rows(result, method="pgd-at"), "collapsed", lambda v: v == 0),
    ]  # fmt: skip


def _largest(rows: Sequence[Row], above: float) -> list[Row]:
    most = max((row["beta"] for row in rows), default=0.0)
    return [row for row in rows if row["beta"] == most > above]


def _rows(result: StudyResult, **values: Any) -> list[Row]:
    return [
        row
        for row in result.rows
        if all(
            abs(row[name] - value) < 1e-9 if isinstance(value, float) else row[name] == value
            for name, value in values.items()
        )
    ]


def _judged(
    text: str,
    rows: Sequence[Row],
    measure: str,
    holds: Callable[[Any], bool],
    *,
    anywhere: bool = False,
) -> Expectation:
    """Whether it holds of all rows, or with `anywhere` of one."""
    if not rows:
        return Expectation(text, "not run", None)
    if any(row["gap"] is None for row in rows):
        return Expectation(text, "a run diverged", False)
    values = [row[measure] for row in rows]
    held = (any if anywhere else all)(holds(value) for value in values)
    return Expectation(text, ", ".join(_shown(measure, value) for value in values), held)


def _shown(measure: str, value: Any) -> str:
    if measure == "alarm":
        return "silent" if value is None else f"epoch {value}"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
