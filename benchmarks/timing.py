"""Times several providers of the same work in turns, so that a disturbance hits all alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

Call = Callable[[], object]
SLOW_MS = 500.0  # a provider slower than this is timed in the first rounds only
SLOW_ROUNDS = 5
MAX_ROUNDS = 200
_FLUSH_BYTES = 2**28  # more than any L2 cache
_WAIT_CYCLES = 2_000_000  # about 1 ms of the GPU's clock


class Timed(NamedTuple):
    """prepare() runs before each call, outside of its time, and restores what it overwrites."""

    call: Call
    prepare: Call | None = None


@dataclass(frozen=True)
class Times:
    """Milliseconds of each call, in the order of the rounds."""

    ms: tuple[float, ...]

    def percentile(self, percent: float) -> float:
        ordered = sorted(self.ms)
        place = (len(ordered) - 1) * percent / 100
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    @property
    def median(self) -> float:
        return statistics.median(self.ms)


def ratio(times: dict[str, Times], peer: str, provider: str) -> float | None:
    """How many times faster `provider` is than `peer`: of the medians of the same rounds."""
    return times[peer].median / times[provider].median if peer in times else None


class HostClock:
    """Wall clock, with the device idle at both ends: what a caller waits for."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def __call__(self, item: Timed) -> float:
        if item.prepare is not None:
            item.prepare()
        if self.cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        item.call()
        if self.cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3


class DeviceClock:
    """CUDA events around the work of the GPU alone, with a cold L2 cache.

    The GPU is kept waiting until the host has launched everything, so that launches do not count:
    they are measured, with all else, in the attack suite.
    """

    def __init__(self) -> None:
        self.flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def __call__(self, item: Timed) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if item.prepare is not None:
            item.prepare()
        self.flush.zero_()
        torch.cuda._sleep(_WAIT_CYCLES)
        start.record()
        item.call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


Clock = Callable[[Timed], float]


def usual_rounds(ms: float) -> int:
    return SLOW_ROUNDS if ms > SLOW_MS else MAX_ROUNDS


def take_turns(
    items: dict[str, Timed],
    clock: Clock,
    *,
    seconds: float,
    min_rounds: int,
    warmups: int = 2,
    known: Mapping[str, float] | None = None,
    rounds_of: Callable[[float], int] = usual_rounds,
) -> dict[str, Times]:
    """Times every item once a round, in an order that rotates with the rounds.

    Args:
        items: at least one; all but those in `known` are called `warmups` times first.
        clock: HostClock or DeviceClock, or anything that returns milliseconds.
        seconds: rounds go on for about this long, at most MAX_ROUNDS of them.
        min_rounds: at least this many, however long they take.
        known: milliseconds of items that have been called already.
        rounds_of: the most rounds of an item that takes so many milliseconds, at least 1.
    """
    taken: dict[str, list[float]] = {name: [] for name in items}
    known = known or {}
    warm = {
        name: known[name] if name in known else min(clock(item) for _ in range(warmups))
        for name, item in items.items()
    }
    most = {name: rounds_of(ms) for name, ms in warm.items()}
    names = list(items)
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for turn in range(MAX_ROUNDS):
            if turn >= min_rounds and time.perf_counter() - start > seconds:
                break
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                if turn < most[name]:
                    taken[name].append(clock(items[name]))
    finally:
        if was_enabled:
            gc.enable()
    return {name: Times(tuple(ms)) for name, ms in taken.items()}
