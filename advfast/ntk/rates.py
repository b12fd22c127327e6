"""How fast this device multiplies in each order: measured once, kept in a file.

The planner divides counts of multiply-adds (costs.py) by these rates. They depend on the shape, mostly on the number of
positions S, so each kind is measured at a few S and read off between them.
"""

from __future__ import annotations

import bisect
import functools
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from advfast import __version__, _backend, kernels
from advfast.files import write_json

_POSITIONS = {"rows": (1, 16, 64, 256, 1024), "C": (4, 16, 64, 256), "G": (4, 16, 64)}
_READOUTS = (1, 10)
_SECONDS = 0.02  # a measurement lasts at least this long


class Rates:
    """Multiply-adds a second: `table[kind][R]` is a list of (S, rate), `gram` that of a plain matrix product."""

    def __init__(self, table: dict[str, dict[str, list[tuple[int, float]]]], gram: float):
        self.table, self.gram = table, gram

    def at(self, kind: str, positions: int, readouts: int) -> float:
        """The rate of `kind` ("rows", "C", "G") at S = positions, straight lines between the logarithms."""
        if kind == "G" and positions == 1:
            return self.gram  # two matrix products
        rows = self.table[kind]
        low, high = (_between(rows[str(r)], positions) for r in _READOUTS)
        share = min(math.log(readouts) / math.log(_READOUTS[-1]), 1.0)
        return math.exp((1 - share) * math.log(low) + share * math.log(high))


def _between(points: list[tuple[int, float]], positions: int) -> float:
    places = [math.log(s) for s, _ in points]
    values = [math.log(rate) for _, rate in points]
    x = math.log(positions)
    i = bisect.bisect_left(places, x)
    if i == 0 or i == len(places):
        return math.exp(values[min(i, len(values) - 1)])
    share = (x - places[i - 1]) / (places[i] - places[i - 1])
    return math.exp((1 - share) * values[i - 1] + share * values[i])


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one call: the best of several, as other programs only ever make it slower."""
    # On a CPU the time of this thread, which works in every parallel region: what other programs take is not in it.
    clock = time.thread_time if device.type == "cpu" else time.perf_counter

    def once() -> float:
        start = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - start

    once()
    first = max(once(), 1e-7)
    return max(min([first] + [once() for _ in range(max(2, min(8, int(_SECONDS / first))))]), 1e-7)


def _taps(side: int, device: torch.device) -> Tensor:
    """Of a 3x3 convolution with padding 1 on side x side pixels."""
    at = torch.arange(side)
    offset = torch.arange(-1, 2)
    rows = (at[:, None, None, None] + offset[None, None, :, None]).expand(side, side, 3, 3)
    columns = (at[None, :, None, None] + offset[None, None, None, :]).expand(side, side, 3, 3)
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    taps = torch.where(inside, rows * side + columns, -1)
    return taps.reshape(side * side, 9).to(device=device, dtype=torch.int32)


def measure(device: torch.device, dtype: torch.dtype, precision: str) -> Rates:
    """Runs each kernel on made-up operands of the sizes that networks have; about two seconds on a laptop."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    table: dict[str, dict[str, list[tuple[int, float]]]] = {kind: {} for kind in _POSITIONS}
    scale = 1 if device.type == "cpu" else 4
    for r in _READOUTS:
        for kind, positions in _POSITIONS.items():
            points = []
            for s in positions:
                # As in ResNets: fewer positions, more channels.
                channels = max(16, min(256, 1024 // math.isqrt(s)))
                side = math.isqrt(s)
                n = scale * (2 if kind == "rows" else 4 if s < 256 else 2)
                taps = _taps(side, device) if side * side == s and s > 1 else None
                window = 1 if taps is None else 9
                x, g = random(n, 1, s, channels), random(n, r, 1, s, channels)
                if kind == "rows":
                    macs = n * r * s * channels * channels * window
                    run = functools.partial(kernels.ntk_rows, x, g, taps)
                else:
                    out = torch.zeros(n * r, n * r, device=device, dtype=dtype)
                    op = kernels.ntk_chain_ if kind == "C" else kernels.ntk_hadamard_
                    own = r * s * s * channels + r * r * s * channels
                    if kind == "G":
                        own = r * r * s * s * (channels + 1)
                    macs = (
                        n * n * (own + min(s * s * channels * window, s * s * (channels + window)))
                    )
                    run = functools.partial(op, out, x, g, x, g, taps, taps, precision=precision)
                points.append((s, macs / _seconds(run, device)))
            table[kind][str(r)] = points
    rows = 160 if device.type == "cpu" else 2048
    j = random(1, rows, 2048)
    out = torch.zeros(rows, rows, device=device, dtype=dtype)
    seconds = _seconds(lambda: kernels.ntk_gram_(out, j, j, precision=precision), device)
    return Rates(table, rows * rows * 2048 / seconds)


def _file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "advfast" / "ntk-rates.json"


def _key(device: torch.device, dtype: torch.dtype, precision: str) -> str:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        core = _backend.native()
        name = f"{core.cpu_isa() if core else 'no core'}, {torch.get_num_threads()} threads"
    return f"{name}; {dtype}; {precision}; torch {torch.__version__}; advfast {__version__}"


_known: dict[str, Rates] = {}


def rates(device: torch.device, dtype: torch.dtype, precision: str) -> Rates:
    """The rates of this device: from memory, from the file (~/.cache/advfast), or measured now and written there."""
    key = _key(device, dtype, precision)
    if key in _known:
        return _known[key]
    path = _file()
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError):
        stored = {}
    if key in stored:
        found = Rates(stored[key]["table"], stored[key]["gram"])
    else:
        found = measure(device, dtype, precision)
        stored[key] = {"table": found.table, "gram": found.gram}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, stored)
        except OSError:
            pass  # a home that cannot be written: measured again next time
    _known[key] = found
    return found
