"""Main effects against made-up tables whose effects are known."""

import pytest

from advfast.studies.effects import Factor, effects_table, main_effects

A, B = Factor("a", 0, 1), Factor("b", "no", "yes")
LEVELS = [(a, b) for a in (0, 1) for b in ("no", "yes")]


def table(value, seeds=(0, 1)):
    return [{"a": a, "b": b, "seed": s, "y": value(a, b, s)} for s in seeds for a, b in LEVELS]


def test_an_additive_table_gives_its_own_coefficients():
    rows = table(lambda a, b, s: 10 + 3 * a - 2 * (b == "yes") + 7 * s)
    first, second = main_effects(rows, (A, B), ["y"])
    assert (first.mean, first.deviation, first.pairs) == (3, 0, 4)
    assert (second.mean, second.deviation, second.pairs) == (-2, 0, 4)


def test_an_interaction_is_averaged_over_the_other_factor_and_seeds_give_the_deviation():
    # a's effect is 4 with b and 0 without in seed 0, and 8 and 4 in seed 1: means 2 and 6.
    rows = table(lambda a, b, s: a * (4 * (b == "yes") + 4 * s))
    first = main_effects(rows, (A, B), ["y"])[0]
    assert first.mean == 4 and first.deviation == pytest.approx(8**0.5)


def test_a_factor_is_looked_at_where_it_has_a_meaning():
    rows = table(lambda a, b, s: 5 * a * (b == "yes"))
    within = Factor("a", 0, 1, {"b": "yes"})
    first, second = main_effects(rows, (within, B), ["y"])
    assert first.mean == 5 and first.pairs == 2
    assert second.mean == 2.5 and second.pairs == 4


def test_pairs_without_numbers_do_not_count():
    rows = table(lambda a, b, s: None if b == "no" else float(a), seeds=(0,))
    effects = main_effects(rows, (A, B), ["y"])
    assert [(e.factor.name, e.mean, e.deviation, e.pairs) for e in effects] == [("a", 1, None, 1)]
    rows[3]["y"] = None
    assert main_effects(rows, (A, B), ["y"]) == []


def test_table():
    rows = table(lambda a, b, s: 3 * a + 0.5 * s * (b == "yes"))
    lines = effects_table(main_effects(rows, (A, B), ["y"]))
    assert lines[0].split("  ")[-2:] == ["a: 0 -> 1", "b: no -> yes"]
    assert "+3 ± 0" in lines[1] and "+0.25 ± 0.35" in lines[1]
