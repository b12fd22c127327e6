"""What was expected of adversarial training on random labels, and the ranks of measures of complexity."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .complexity import MEASURES
from .rank_correlation import p_value, spearman
from .result import Expectation, Row, StudyResult

CONSISTENT = 0.8
"""Rank correlation, in the direction that a measure is said to have, from which on it ranks."""


def correlations(groups: dict[str, list[Row]]) -> list[Row]:
    """A row a measure of complexity and a group of networks: Spearman's correlation with the robust gap.

    In the direction that the measure is said to have: of margins and the boundary thickness, which shrink with
    complexity, the negative. Networks without a number are left out; p is two-sided, by permutation.
    """
    rows: list[Row] = []
    for name, networks in groups.items():
        for measure, sign in MEASURES.items():
            pairs = [
                (sign * row[measure], row["robust_gap"])
                for row in networks
                if _is_finite(row[measure]) and _is_finite(row["robust_gap"])
            ]
            x, y = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            rows.append({
                "group": name, "measure": measure, "networks": len(pairs),
                "rank_correlation": spearman(x, y), "p_value": p_value(x, y),
            })  # fmt: skip
    return rows


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def groups_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The networks of each method, and all together."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    groups = {name: [row for row in rows if row["method"] == name] for name in methods}
    return groups | ({"all": list(rows)} if len(methods) > 1 else {})


def expectations(result: StudyResult) -> list[Expectation]:
    """Written down on 2026-11-30, before the first run of the study; accuracies on digits were known from a trial by
    others, and are those of the labels that are trained on."""
    curves = [
        row for row in result.tables["curves"] if row["part"] == "convergence" and row["noise"] == 1
    ]
    radii = sorted({row["eps"] for row in curves})
    found = []
    if radii and {"pgd-at", "trades"} <= {row["method"] for row in curves}:
        found = _convergence(curves, radii, 2 / result.settings["classes"])
    return [*found, *_stability(result.tables["stability"]), *_ranks(result.tables["correlations"])]


def _convergence(curves: list[Row], radii: list[float], chance: float) -> list[Expectation]:
    large = radii[-1]
    pgd, trades = (
        [row for row in curves if row["method"] == name and row["eps"] == large]
        for name in ("pgd-at", "trades")
    )
    if not pgd or not trades:
        return []
    highest = max(max(row["train_clean"], row["train_robust"]) for row in pgd)
    lowest = min(row["train_clean"] for row in _ends(trades))
    own, other = (_mean([row["gradient_norm2"] for row in _ends(rows)]) for rows in (pgd, trades))
    found = [
        Expectation(
            f"eps {large:.3g}, random labels: PGD-AT stays at chance, training accuracy below {chance:.3g} in every "
            "epoch",
            f"at most {highest:.3f}",
            highest < chance,
        ),
        Expectation(
            f"eps {large:.3g}, random labels: TRADES fits them, clean training accuracy above 0.9 at the end",
            f"at least {lowest:.3f}",
            lowest > 0.9,
        ),
        Expectation(
            f"eps {large:.3g}, random labels: the squared gradient of PGD-AT is below a tenth of that of TRADES at the "
            "end",
            f"{own:.3g} against {other:.3g}",
            own < other / 10,
        ),
    ]
    if len(radii) > 1:
        small = _ends([row for row in curves if row["eps"] == radii[0]])
        clean = min(row["train_clean"] for row in small)
        robust = min(row["train_robust"] for row in small)
        found.append(
            Expectation(
                f"eps {radii[0]:.3g}, random labels: both fit them, training accuracy above 0.9 clean and 0.6 under "
                "PGD-10",
                f"at least {clean:.3f} and {robust:.3f}",
                clean > 0.9 and robust > 0.6,
            )
        )
    return found


def _stability(rows: list[Row]) -> list[Expectation]:
    if not rows:
        return []
    lambdas = sorted({row["lambda"] for row in rows if row["lambda"] > 0})
    if not lambdas:
        return []

    def change(loss: str, value: float, column: str = "regenerated") -> float:
        return _mean([r[column] for r in rows if r["loss"] == loss and r["lambda"] == value])

    ratios = [change("pgd-at", value) / max(change("standard", value), 1e-30) for value in lambdas]
    least = lambdas[0]
    anew, held = (change("pgd-at", least, column) for column in ("regenerated", "fixed"))
    return [
        Expectation(
            "the gradient of PGD-AT's loss changes more than that of the clean loss over every step, on average over "
            "the same weights",
            f"{min(ratios):.3g} to {max(ratios):.3g} times",
            min(ratios) > 1,
        ),
        Expectation(
            f"over the smallest step, {least:g}, PGD-AT's changes more where adversarial images are made anew than "
            "where they are held",
            f"{anew:.3g} against {held:.3g}",
            anew > held,
        ),
    ]


def _ranks(rows: list[Row]) -> list[Expectation]:
    text = (
        "no measure of complexity ranks the robust gap consistently (rank correlation of at least "
        f"{CONSISTENT:g} for every method and for all networks together)"
    )
    least: dict[str, float] = {}
    for row in rows:
        value = row["rank_correlation"]
        if value is not None:
            least[row["measure"]] = min(value, least.get(row["measure"], 1.0))
    if not least:
        return []
    best = max(least, key=lambda name: least[name])
    words = f"{best.replace('_', ' ')} is the most consistent: at least {least[best]:.2f}"
    return [Expectation(text, words, least[best] < CONSISTENT)]


def _ends(rows: list[Row]) -> list[Row]:
    """Of the last epoch of each run."""
    last = max(row["epoch"] for row in rows)
    return [row for row in rows if row["epoch"] == last]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
