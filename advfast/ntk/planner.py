"""Which order each layer is contracted in, what that costs, and how the work is cut up under a memory budget."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import costs
from .blocks import Blocks, cut
from .costs import ORDERS, Size, Work
from .rates import Rates, rates
from .terms import Layer

METHODS = ("auto", *ORDERS)


@dataclass(frozen=True)
class Choice:
    """One layer's row of a plan. Seconds are predicted from the device's rates."""

    layer: Layer
    order: str
    work: Work
    seconds: dict[str, float]  # by order that the layer can take

    @property
    def name(self) -> str:
        return self.layer.name


@dataclass(frozen=True)
class Plan:
    """How a kernel is computed; str() is a table. May be given as `method=` to compute another in the same orders."""

    layers: tuple[Choice, ...]
    readouts: int
    symmetric: bool
    blocks1: Blocks
    blocks2: Blocks
    tile: int  # samples of x1 whose factors are held at once
    precision: str
    trace: bool
    capture_macs: float  # forward and R backward passes, all captures
    capture_bytes: int  # while a chunk is captured
    sample_bytes: int  # a sample of a tile
    result_bytes: int  # of the result in memory
    device: str
    unused: tuple[str, ...] = ()
    generic: tuple[str, ...] = ()

    @property
    def orders(self) -> dict[str, str]:
        return {row.name: row.order for row in self.layers}

    @property
    def contraction_macs(self) -> float:
        return sum(row.work.macs for row in self.layers)

    @property
    def seconds(self) -> float:
        """Predicted time of the contraction."""
        return sum(row.seconds[row.order] for row in self.layers)

    @property
    def peak_bytes(self) -> int:
        """Beyond the model and the images: tile, column block, a chunk in capture, the result."""
        held = self.tile + (
            0 if self.symmetric and self.tile >= self.blocks1.samples else self.blocks2.block
        )
        return self.capture_bytes + held * self.sample_bytes + self.result_bytes

    def __str__(self) -> str:
        head = (
            "layer",
            "S",
            "c",
            "d",
            "groups",
            "order",
            "Gmac",
            "ms",
            *(f"{o} ms" for o in ORDERS),
        )
        body = []
        for row in self.layers:
            layer = row.layer
            if layer.kind == "rows" and len(self.layers) > 1 and layer.columns < 10_000:
                continue
            body.append((
                layer.name, str(layer.positions), str(layer.channels), str(layer.window * layer.features),
                str(layer.groups), row.order, f"{row.work.macs / 1e9:.3g}", f"{row.seconds[row.order] * 1e3:.3g}",
                *(f"{row.seconds[o] * 1e3:.3g}" if o in row.seconds else "-" for o in ORDERS),
            ))  # fmt: skip
        small = [
            row for row in self.layers if row.layer.kind == "rows" and row.layer.columns < 10_000
        ]
        if small and len(small) < len(self.layers):
            columns = sum(row.layer.columns for row in small)
            macs, seconds = sum(r.work.macs for r in small), sum(r.seconds["M"] for r in small)
            body.append((
                f"{len(small)} biases, norms, ...", "", "", str(columns), "", "M", f"{macs / 1e9:.3g}",
                f"{seconds * 1e3:.3g}", f"{seconds * 1e3:.3g}", "-", "-",
            ))  # fmt: skip
        widths = [max(len(line[k]) for line in (head, *body)) for k in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(w) if k == 0 else cell.rjust(w)
                for k, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in (head, *body)
        ]
        n1, n2 = self.blocks1.samples, self.blocks2.samples
        half = ", upper half" if self.symmetric else ""
        lines += [
            "",
            f"{n1} x {n2} samples{half}, {self.readouts} readouts{' (trace)' if self.trace else ''}, "
            f"{self.precision} on {self.device}: capture {self.capture_macs / 1e9:.3g} Gmac, contraction "
            f"{self.contraction_macs / 1e9:.3g} Gmac, predicted {self.seconds:.3g} s",
            f"blocks of {self.blocks1.block}, chunks of {self.blocks1.chunk}, tile {self.tile} samples, "
            f"about {self.peak_bytes / 2**20:,.0f} MiB",
        ]
        if self.generic:
            lines.append(f"by the generic fallback: {', '.join(self.generic)}")
        if self.unused:
            lines.append(f"not used by the network, zero: {', '.join(self.unused)}")
        return "\n".join(lines)


def free_bytes(device: torch.device) -> int:
    """What may be used without being asked: half of what is free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":") for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024 // 2
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def make(
    layers: tuple[Layer, ...],
    n1: int,
    n2: int | None,
    readouts: int,
    *,
    trace: bool = False,
    method: str | dict[str, str] | Plan = "auto",
    precision: str = "fp32",
    tile: int | None = None,
    max_bytes: int | None = None,
    result_bytes: int = 0,
    device: torch.device,
    dtype: torch.dtype,
    unused: tuple[str, ...] = (),
    generic: tuple[str, ...] = (),
) -> Plan:
    """The plan for these layers.

    Raises:
        ValueError: unknown method, an order that a layer cannot take, a budget too small for one block (names the
            least).
    """
    named = method.orders if isinstance(method, Plan) else method
    _check_method(named, layers)
    symmetric = n2 is None
    itemsize = torch.empty(0, dtype=dtype).element_size()
    captured = itemsize * sum(_captured(layer, readouts) for layer in layers)
    size = Size(n1 + (n2 or 0), n1 * (n1 + 1) / 2 if n2 is None else n1 * n2, readouts, trace)
    known = None if named in ORDERS else rates(device, dtype, precision)

    def planned(weigh_memory: bool, parts: int) -> Plan:
        rows = tuple(_choose(layer, named, size, known, weigh_memory) for layer in layers)
        kept = itemsize * sum(row.work.kept for row in rows)
        blocks1, blocks2 = (
            cut(n, readouts, captured, kept, device.type, parts)
            for n in (n1, n1 if n2 is None else n2)
        )
        return Plan(
            rows, readouts, symmetric, blocks1, blocks2, blocks1.padded, precision, trace, 0.0,
            captured * max(blocks1.chunk, blocks2.chunk), kept, result_bytes, str(device), unused, generic,
        )  # fmt: skip

    limit = free_bytes(device) if max_bytes is None else max_bytes
    plan, parts, lean = planned(False, 1), 1, False
    # Where a block does not fit: smaller ones first, then the orders that keep least.
    while _tile(plan, limit) < plan.blocks1.block:
        if max(plan.blocks1.block, plan.blocks2.block) > 1:
            parts *= 2
        elif not lean:
            parts, lean = 1, True
        else:
            least = replace(plan, tile=1).peak_bytes
            given = "the memory that is free" if max_bytes is None else f"max_bytes={max_bytes}"
            raise ValueError(
                f"{given} does not hold one sample a side: it takes {least} bytes ({least / 2**20:,.0f} MiB)"
                + ("; out= a file keeps the result on disk" if result_bytes > least // 4 else "")
            )
        plan = planned(lean, parts)
    most = _tile(plan, limit)
    if tile is not None:
        wanted = -(-tile // plan.blocks1.block) * plan.blocks1.block
        most = min(most, wanted)
    plan = replace(plan, tile=min(most, plan.blocks1.padded))
    return replace(plan, capture_macs=_captures(plan) * costs.forward_macs(layers) * (1 + readouts))


def _tile(plan: Plan, limit: int) -> int:
    """The most samples of x1 that fit, in whole blocks; 0 if not one block does."""
    block = plan.blocks1.block
    whole = replace(plan, tile=plan.blocks1.padded)
    if whole.peak_bytes <= limit:
        return whole.tile
    free = limit - plan.capture_bytes - plan.result_bytes - plan.blocks2.block * plan.sample_bytes
    return max(0, int(free // max(plan.sample_bytes, 1)) // block * block)


def _captures(plan: Plan) -> float:
    """Samples captured in all: each tile, and for each tile the columns beside it."""
    n1, n2, total = plan.blocks1.samples, plan.blocks2.samples, 0
    for start in range(0, n1, plan.tile):
        own = min(plan.tile, n1 - start)
        total += own + (n1 - start - own if plan.symmetric else n2)
    return total


def _captured(layer: Layer, readouts: int) -> int:
    """Numbers a sample while it is captured."""
    if layer.kind == "rows":
        return readouts * layer.columns
    features = layer.pixels * layer.features if layer.kind == "product" else 1
    return layer.groups * (features + readouts * layer.positions * layer.channels)


def _check_method(method: Any, layers: tuple[Layer, ...]) -> None:
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(
                f"method must be one of {', '.join(METHODS)}, a dict of orders by layer, or a Plan, got {method!r}"
            )
        return
    if not isinstance(method, dict):
        raise TypeError(f"method must be a name, a dict or a Plan, got {type(method).__name__}")
    names = {layer.name: layer for layer in layers}
    for name, order in method.items():
        if name not in names:
            raise ValueError(
                f"method: the network has no layer {name!r}; it has {', '.join(names)}"
            )
        possible = costs.orders_of(names[name])
        if order not in possible:
            raise ValueError(
                f"method: {name} can be contracted in {', '.join(possible)}, got {order!r}"
            )


def _choose(
    layer: Layer,
    method: str | dict[str, str],
    size: Size,
    known: Rates | None,
    weigh_memory: bool,
) -> Choice:
    possible = costs.orders_of(layer)
    works = {order: costs.work(layer, order, size) for order in possible}
    seconds = {order: _seconds(layer, order, works[order], size, known) for order in possible}
    named = method.get(layer.name) if isinstance(method, dict) else method
    if named in possible:
        order = named
    elif weigh_memory:
        order = min(possible, key=lambda o: works[o].kept)
    else:
        order = min(possible, key=lambda o: seconds[o])
    return Choice(layer, order, works[order], seconds)


def _seconds(layer: Layer, order: str, work: Work, size: Size, known: Rates | None) -> float:
    if known is None:  # a fixed order: nothing to compare
        return float("nan")
    r, s = size.readouts, layer.positions
    if order == "M":
        return work.rows / known.at("rows", s, r) + work.gram / known.gram
    if layer.kind == "tokens":
        return work.macs / known.at("C", s, r)
    return (work.patch + work.pair) / known.at(order, s, r)
