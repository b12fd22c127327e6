"""Cycle detection on maps with known tails and periods: the result is always that of the full run."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor

from advfast.attacks.cycles import Cycles

WIDTH = 6


class Orbits:
    """A map on rows [B, WIDTH]: row r runs through `tail` distinct iterates, then around a cycle of `period`."""

    def __init__(self, shapes: list[tuple[int, int]], dtype: torch.dtype = torch.float32) -> None:
        self.shapes = shapes
        generator = torch.Generator().manual_seed(0)
        most = max(tail + period for tail, period in shapes)
        self.iterates = torch.rand(len(shapes), most, WIDTH, generator=generator, dtype=dtype)
        # What the map goes by; the last columns, so that a hash which reads only the first ones collides.
        self.iterates[..., -1] = torch.arange(most)
        self.iterates[..., -2] = torch.arange(len(shapes))[:, None]

    def start(self) -> Tensor:
        return self.iterates[:, 0].clone()

    def step(self, x: Tensor) -> None:
        rows, numbers = x[:, -2].long(), x[:, -1].long()
        shapes = torch.tensor(self.shapes)[rows]
        after = numbers + 1
        after = torch.where(after == shapes.sum(1), shapes[:, 0], after)
        x.copy_(self.iterates[rows, after])

    def after(self, steps: int) -> Tensor:
        x = self.start()
        for _ in range(steps):
            self.step(x)
        return x


def run(orbits: Orbits, steps: int, every: int, leaves=None, first_look: int = 0, **settings):
    """The loop as an attack runs it: (result, stats, rows computed a step). leaves: row -> step at which it stops."""
    x = orbits.start()
    result = torch.full_like(x, torch.nan)
    alive = torch.arange(len(x))
    cycles = Cycles(steps, x, **settings)
    computed = []
    if first_look == 0:
        cycles.look(0, x)
    for step in range(1, steps + 1):
        orbits.step(x)
        computed.append(len(x))
        if step >= first_look:
            cycles.look(step, x)
        if step % every or step == steps or step < first_look:
            continue
        done = cycles.finished(x)
        for row, at in (leaves or {}).items():
            if step >= at:
                done |= alive == row
        if done.any():
            result[alive[done]] = x[done]
            stay = (~done).nonzero()[:, 0]
            cycles.keep(stay)
            x, alive = x[stay], alive[stay]
            if not len(x):
                break
    result[alive] = x
    return result, cycles.stats(), computed


MIXED = [(0, 1), (3, 2), (5, 3), (2, 7), (11, 1), (40, 5), (100, 2), (6, 2), (0, 4), (0, 11)]


@pytest.mark.parametrize("every", [1, 2, 3, 5, 8, 50])
def test_every_length_gives_the_iterate_of_the_full_run(every):
    orbits = Orbits(MIXED)
    for steps in range(1, 48):
        result, _, _ = run(orbits, steps, every)
        assert torch.equal(result, orbits.after(steps)), steps


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=8),
    st.integers(1, 70),
    st.integers(1, 12),
    st.integers(1, 9),
    st.sampled_from([torch.float32, torch.float64]),
)
@hypothesis.settings(max_examples=60)
def test_any_map_any_window(shapes, steps, every, window, dtype):
    orbits = Orbits(shapes, dtype)
    result, _, _ = run(orbits, steps, every, window=window)
    assert torch.equal(result, orbits.after(steps))


def test_finds_periods_and_stops_early():
    steps, every = 200, 5
    _, stats, computed = run(Orbits(MIXED), steps, every)
    assert stats.periods == {1: 2, 2: 3, 3: 1, 4: 1, 5: 1, 7: 1, 11: 1}
    assert stats.found == stats.rows == len(MIXED)
    # Found at the first look after one turn, confirmed one turn later, reported at the look after that.
    limit = [tail + 2 * period + 2 * every for tail, period in MIXED]
    for step, rows in enumerate(computed, start=1):
        assert rows <= sum(step <= last for last in limit), step
    assert stats.skipped == len(MIXED) * steps - sum(computed)
    assert stats.share == stats.skipped / (len(MIXED) * steps)


def test_longer_periods_than_the_window_run_in_full():
    orbits = Orbits([(0, 9), (4, 8)])
    result, stats, _ = run(orbits, 60, 4, window=8)
    assert torch.equal(result, orbits.after(60))
    assert stats.periods == {8: 1}


@pytest.mark.parametrize(("steps", "copied"), [(8, False), (9, True)])
def test_no_copy_where_confirming_takes_all_that_is_left(steps, copied):
    orbits = Orbits([(0, 4)])
    x = orbits.start()
    cycles = Cycles(steps, x)
    for step in range(5):
        cycles.look(step, x)
        orbits.step(x)
    assert not cycles.finished(x).any()
    assert bool(cycles._suspects) == copied


@pytest.mark.parametrize(
    "hash_rows",
    [
        pytest.param(lambda x: torch.zeros(len(x), dtype=torch.int64), id="one"),
        pytest.param(lambda x: x[:, -1].long() % 3, id="mod3"),
        pytest.param(lambda x: (x[:, 0] * 4).long(), id="coarse"),
    ],
)
@pytest.mark.parametrize("every", [1, 3, 5])
def test_collisions_never_change_the_result(hash_rows, every):
    orbits = Orbits([*MIXED, (0, 3), (1, 6)])
    for steps in (7, 20, 41, 42, 43):
        result, _, _ = run(orbits, steps, every, hash_rows=hash_rows)
        assert torch.equal(result, orbits.after(steps))


def test_a_multiple_of_the_period_is_a_period():
    # Looks equal every third step: period 6 is found for period 2 only by what hash equality says, and holds.
    orbits = Orbits([(0, 2)])
    numbers = iter(range(1000))
    result, stats, _ = run(
        orbits, 41, 1, hash_rows=lambda x: torch.full((len(x),), next(numbers) % 6)
    )
    assert torch.equal(result, orbits.after(41))
    assert stats.periods == {6: 1}


def test_signs_of_zero_tell_iterates_apart():
    signs = torch.tensor([0.0, -0.0])
    x = torch.zeros(1, 3)
    cycles = Cycles(100, x, hash_rows=lambda x: torch.zeros(1, dtype=torch.int64))
    for step in range(6):
        x[:, 0] = signs[step % 2]
        cycles.look(step, x)
        assert not cycles.finished(x).any()


def test_rows_may_leave_for_other_reasons():
    orbits = Orbits(MIXED)
    for every in (1, 2, 3, 5):
        leaves = {0: 1, 1: 6, 3: 12, 5: 20, 8: 5}
        result, _, _ = run(orbits, 43, every, leaves=leaves)
        expected = orbits.after(43)
        others = [row for row in range(len(MIXED)) if row not in leaves]
        assert torch.equal(result[others], expected[others])


@pytest.mark.parametrize("steps", [40, 41, 42])
def test_one_of_several_rows_that_are_being_confirmed_leaves(steps):
    orbits = Orbits([(0, 3), (0, 3), (0, 3), (1, 3)])
    for row in range(3):
        for at in (3, 4, 5):
            result, stats, _ = run(orbits, steps, 1, leaves={row: at})
            others = [other for other in range(4) if other != row]
            assert torch.equal(result[others], orbits.after(steps)[others])
            assert stats.periods == {3: 3}


def test_each_row_is_copied_once_and_none_without_a_hit():
    orbits = Orbits(MIXED)
    x = orbits.start()
    cycles = Cycles(80, x, hash_rows=lambda x: (x[:, -1] * 16 + x[:, -2]).long() - 1)
    for step in range(40):
        cycles.look(step, x)
        cycles.finished(x)
        pending = [row for suspects in cycles._suspects for row in suspects.rows.tolist()]
        assert len(set(pending)) == len(pending)
        assert step or not pending
        orbits.step(x)


@pytest.mark.parametrize("every", [1, 3])
def test_rows_that_were_found_may_stay(every):
    orbits = Orbits(MIXED)
    x, steps = orbits.start(), 60
    cycles = Cycles(steps, x)
    cycles.look(0, x)
    result, before = torch.full_like(x, torch.nan), torch.zeros(len(x), dtype=torch.bool)
    for step in range(1, steps + 1):
        orbits.step(x)
        cycles.look(step, x)
        if step % every == 0:
            done = cycles.finished(x)
            assert (done | ~before).all()
            result[done & ~before] = x[done & ~before]
            x[done] = orbits.iterates[:, 0][done]  # anything
            before = done
    assert before.sum() == cycles.stats().found == 9
    result[~before] = x[~before]
    assert torch.equal(result, orbits.after(steps))


def test_looking_may_begin_late():
    orbits = Orbits(MIXED)
    for first in (1, 5, 17):
        result, stats, _ = run(orbits, 77, 5, first_look=first)
        assert torch.equal(result, orbits.after(77))
        assert stats.found >= 8


def test_a_skipped_step_is_an_error():
    x = torch.zeros(2, 3)
    cycles = Cycles(10, x)
    cycles.look(0, x)
    with pytest.raises(ValueError, match="expected 1, got 2"):
        cycles.look(2, x)


def test_no_copies_while_nothing_repeats():
    class Watched(Cycles):
        copies = 0

        def _suspect(self, found, x):
            super()._suspect(found, x)
            Watched.copies += len(self._suspects)

    x = torch.rand(4, 5)
    cycles = Watched(50, x)
    for step in range(50):
        x += 1
        cycles.look(step, x)
        assert not cycles.finished(x).any()
    assert Watched.copies == 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_in_either_layout(layout):
    x = torch.rand(3, 2, 4, 4).to(memory_format=layout)
    a, b = x.clone(), 1 - x
    cycles = Cycles(21, x)
    for step in range(12):
        x.copy_(b if step % 2 else a)
        cycles.look(step, x)
        done = cycles.finished(x)
        if step >= 4:
            assert done.all()
            assert torch.equal(x, b)  # the odd one, as after 21 steps
            break
