"""What `ntk_trace` is expected to find, written down on 2026-11-30.

The orders after training (effective rank, lambda_1 / trace, specialisation, clean to attacked) were written down before
the first run of the study, the others on the same day after it, from the earlier runs named here.

Orders between standard and adversarial training that were reported of digits (three seeds, a like network) and of
CIFAR-10 (Tsilivis & Kempe, NeurIPS 2022). Of digits there are bounds besides, from the same earlier runs: distance from
clean to attacked 0.056 to 0.060 against 0.017 to 0.020, a specialisation that falls by 0.51 to 0.63 against -0.05 to
0.12, kernels of the two methods at most 0.06 apart until epoch 6, and at most 0.01 an epoch after the fourth.
`benchmarks/ntk_digits.py` has bounds like these, seed by seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .judge import compared, mean_of
from .result import Expectation, Row, StudyResult

NEAR = 0.1
"""Kernel distance below which standard and adversarial kernels of an epoch are near each other."""
STILL = 0.01
"""Kernel distance an epoch: more early in training, at most that late."""
EARLY = 2
"""Epochs that are early on digits, of 12."""
SETTLED = 1 / 3
"""Share of the training after which the kernel is late: epoch 4 of 12."""
SEVERAL = 2.0
"""The least ratio of the distances from clean to attacked, that were about 3."""


def expectations(result: StudyResult) -> list[Expectation]:
    """Of the first run of standard training and the first of "pgd-at", where there are both."""
    labels = list(dict.fromkeys(row["method"] for row in result.rows))
    trained = result.settings.get("trained_by", {})
    found = {
        kind: [label for label in labels if trained.get(label, label) == kind]
        for kind in ("standard", "pgd-at")
    }
    if not all(found.values()):
        return []
    standard, robust = found["standard"][0], found["pgd-at"][0]
    shared = {row["epoch"] for row in result.select(method=standard)}
    shared &= {row["epoch"] for row in result.select(method=robust)}
    if not shared:
        return []
    last = max(shared)
    told = _orders(result, standard, robust, last)
    told += _lazy(result, standard, robust, sorted(shared))
    if result.settings.get("data") == "digits" and result.settings.get("model") == "conv-bn-net":
        told += _of_digits(result, (standard, robust), last)
    return told


def _orders(result: StudyResult, standard: str, robust: str, last: float) -> list[Expectation]:
    a, b = ({"method": name, "epoch": last} for name in (standard, robust))
    told = [
        compared(
            result, f"after training, {words} of {standard} {'above' if more else 'below'} that of {robust}", measure,
            a, b, (lambda x, y: x > y) if more else (lambda x, y: x < y),
        )
        for words, measure, more in (
            ("the clean effective rank", "clean_effective_rank", True),
            ("clean lambda_1 / trace", "clean_top_share", False),
            ("the clean specialisation", "clean_specialization", True),
            ("the distance from clean to attacked", "clean_adversarial_distance", True),
        )
    ]  # fmt: skip
    told.insert(
        3,
        compared(
            result, f"after training, the specialisation lost to the attack is at most half as much in {robust} as in "
            f"{standard}", "specialization_drop", b, a, lambda x, y: abs(x) <= y / 2,
        ),
    )  # fmt: skip
    return told


def _lazy(
    result: StudyResult, standard: str, robust: str, epochs: list[float]
) -> list[Expectation]:
    """Adversarial training settles earlier."""
    start = next(epoch for epoch in epochs if epoch >= SETTLED * epochs[-1])
    if start == epochs[-1]:
        return []
    return [
        compared(
            result, f"from epoch {start:g} to the end the {kind} kernel moves further in {standard} than in {robust}",
            f"{kind}_to_end", {"method": standard, "epoch": start}, {"method": robust, "epoch": start},
            lambda x, y: x > y,
        )
        for kind in ("clean", "adversarial")
    ]  # fmt: skip


def _of_digits(result: StudyResult, methods: tuple[str, str], last: float) -> list[Expectation]:
    a, b = ({"method": name, "epoch": last} for name in methods)
    means = [
        row
        for row in result.summary
        if row["method"] in methods and row["clean_velocity_mean"] is not None
    ]
    early = [row for row in means if EARLY / 2 < row["epoch"] <= EARLY]
    late = [row for row in means if row["epoch"] > SETTLED * last]
    near = [
        row
        for row in result.summary
        if row["method"] == methods[1] and row["epoch"] <= last / 2
        and row["clean_between_mean"] is not None
    ]  # fmt: skip
    return [
        compared(
            result, f"the distance from clean to attacked at least {SEVERAL:g} times as large",
            "clean_adversarial_distance", a, b, lambda x, y: x >= SEVERAL * y,
        ),
        _all(
            f"clean kernels of the two methods at most {NEAR:g} apart until epoch {last / 2:g}", near, "clean_between",
            lambda value: value <= NEAR,
        ),
        _all(
            f"in the second epoch the clean kernel moves by more than {STILL:g} an epoch", early, "clean_velocity",
            lambda value: value > STILL,
        ),
        _all(
            f"after epoch {SETTLED * last:g} by at most {STILL:g} an epoch", late, "clean_velocity",
            lambda value: value <= STILL,
        ),
    ]  # fmt: skip


def _all(text: str, rows: list[Row], measure: str, holds: Any) -> Expectation:
    values = [row[f"{measure}_mean"] for row in rows]
    if not values:
        return Expectation(text, "not run", None)
    return Expectation(text, f"{min(values):.3g} to {max(values):.3g}", all(map(holds, values)))


def notes(result: StudyResult) -> list[str]:
    """What the kernels took."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in result.rows):
        each = mean_of(result, "seconds", {"method": method})
        if each is None:
            continue
        share = _last_share(result, {"method": method})
        of_it = "" if share is None else f", {100 * share:.0f} % of the time of its training"
        lines.append(f"{method}: the kernels of an epoch took {each:.2g} s{of_it}")
    return lines


def _last_share(result: StudyResult, values: Mapping[str, Any]) -> float | None:
    last = max(row["epoch"] for row in result.select(**values))
    return mean_of(result, "share", {**values, "epoch": last})
