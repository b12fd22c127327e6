"""Main effects in a factorial design of factors with two levels."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .result import SEED, Row, aligned


@dataclass(frozen=True)
class Factor:
    """Something that is varied.

    Attributes:
        name: its column.
        low, high: its two levels.
        within: column -> value of the rows that it is looked at in, where it has no meaning in others.
    """

    name: str
    low: Any
    high: Any
    within: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Effect:
    """What a measure changes by from the low to the high level of a factor.

    Attributes:
        mean: over the seeds, of the mean difference over the other factors' levels.
        deviation: sample standard deviation over the seeds; None for one seed.
        pairs: rows compared with each other in all.
    """

    factor: Factor
    measure: str
    mean: float
    deviation: float | None
    pairs: int


def main_effects(
    rows: Iterable[Row], factors: Sequence[Factor], measures: Iterable[str]
) -> list[Effect]:
    """Of each factor on each measure: rows that differ in that factor alone are subtracted, high minus low.

    A pair without two numbers does not count, and a factor without pairs has no effect in the list. That of one factor
    is that of the others' levels weighted alike, where none is missing.
    """
    rows, measures = list(rows), list(measures)
    found = []
    for factor in factors:
        others = [other.name for other in factors if other is not factor]
        of = [r for r in rows if all(r[name] == value for name, value in factor.within.items())]
        low = {_key(r, others): r for r in of if r[factor.name] == factor.low}
        high = {_key(r, others): r for r in of if r[factor.name] == factor.high}
        for measure in measures:
            differences: dict[Any, list[float]] = {}
            for key in low.keys() & high.keys():
                before, after = low[key][measure], high[key][measure]
                if before is not None and after is not None:
                    differences.setdefault(key[0], []).append(after - before)
            if differences:
                seeds = [statistics.fmean(values) for values in differences.values()]
                found.append(
                    Effect(
                        factor,
                        measure,
                        statistics.fmean(seeds),
                        statistics.stdev(seeds) if len(seeds) > 1 else None,
                        sum(map(len, differences.values())),
                    )
                )
    return found


def _key(row: Row, others: Iterable[str]) -> tuple[Any, ...]:
    return (row.get(SEED), *(row[name] for name in others))


def effects_table(effects: Iterable[Effect]) -> list[str]:
    """Lines: a measure each, a column each factor."""
    effects = list(effects)
    factors = list({id(effect.factor): effect.factor for effect in effects}.values())
    cells = {(effect.measure, effect.factor.name): _text(effect) for effect in effects}
    heads = [f"{factor.name}: {factor.low} -> {factor.high}" for factor in factors]
    table = [["main effect", *heads]]
    for measure in dict.fromkeys(effect.measure for effect in effects):
        table.append([measure, *(cells.get((measure, f.name), "-") for f in factors)])
    return aligned(table)


def _text(effect: Effect) -> str:
    spread = "" if effect.deviation is None else f" ± {effect.deviation:.2g}"
    return f"{effect.mean:+.3g}{spread}"
