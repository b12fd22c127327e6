"""Whether the planner is right: every order of every layer, predicted and measured through the engine's own kernels.

    python benchmarks/ntk_planner.py [--quick] [--threads 2] [--out benchmarks/results/ntk_planner_cpu.csv]

Layers of one shape are measured once. What is timed is what the engine does with a layer: making its factors (for M the
rows of gradients), the products of a diagonal block, which are half of it, and of a block above the diagonal. The time
of the layer is these times by the number of blocks. An order that takes more than 12 times the fewest multiply-adds
is not measured. `ratio` is the time of the order that the plan names over the least; the last row of a case ("all") has
sums over all layers of the network, each shape as often as it occurs.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import networks
import ntk_providers
import torch
from records import environment
from torch import Tensor, nn

from advfast import ntk
from advfast.ntk import contract, costs
from advfast.ntk.contract import Held
from advfast.ntk.planner import Choice, Plan
from advfast.ntk.terms import Factor, Layer, Product

MOST_WORK = 12.0
TARGET = 1.3
LEAST_SECONDS = 0.05  # of the repetitions of one measurement
NOT_MEASURED = "-"
CASES = (
    ("resnet18-w16", (3, 32, 32)), ("resnet18-w64", (3, 32, 32)), ("strided-cnn", (1, 28, 28)),
    ("vit-tiny", (3, 32, 32)),
)  # fmt: skip
QUICK = (("resnet18-w4", (3, 16, 16)), ("strided-cnn", (1, 28, 28)))


@dataclass(frozen=True)
class Row:
    date: str
    commit: str
    machine: str
    threads: int
    torch: str
    network: str
    samples: int
    readouts: int
    layer: str  # name of the first of this shape, or "all"
    layers: int  # of this shape
    S: int
    c: int
    d: int
    groups: int
    chosen: str
    best: str  # measured
    predicted_m: float | str  # ms of one such layer
    predicted_c: float | str
    predicted_g: float | str
    measured_m: float | str
    measured_c: float | str
    measured_g: float | str
    ratio: float  # measured: chosen order / best order


@dataclass(frozen=True)
class Found:
    """A shape: its first row in the plan, how often it occurs, milliseconds by order."""

    row: Choice
    count: int
    measured: dict[str, float]

    @property
    def predicted(self) -> dict[str, float]:
        return {order: 1e3 * seconds for order, seconds in self.row.seconds.items()}

    @property
    def best(self) -> str:
        return min(self.measured, key=lambda order: self.measured[order])

    @property
    def chosen_ms(self) -> float:
        # What was not measured has so much more to do that it may stand for itself.
        return self.measured.get(self.row.order, self.predicted[self.row.order])


def shape_of(layer: Layer) -> tuple[int, ...]:
    return (
        layer.positions, layer.channels, layer.features, layer.window, layer.groups, layer.pixels,
    )  # fmt: skip


def milliseconds(run: Callable[[], object]) -> float:
    """The best of a few: other programs only ever make it slower."""
    best, spent, calls = float("inf"), 0.0, 0
    while calls < 3 or (spent < LEAST_SECONDS and calls < 20):
        begin = time.perf_counter()
        run()
        own = time.perf_counter() - begin
        best, spent, calls = min(best, own), spent + own, calls + 1
        if own > 1.0 and calls > 1:
            break
    return 1e3 * best


def measure(row: Choice, order: str, plan: Plan, like: Tensor) -> float:
    """Milliseconds of a layer in this order, for all blocks of the plan."""
    layer, block, count = row.layer, plan.blocks1.block, plan.blocks1.count
    x = torch.randn(block, layer.groups, layer.pixels, layer.features, dtype=like.dtype)
    g = torch.randn(
        block, plan.readouts, layer.groups, layer.positions, layer.channels, dtype=like.dtype
    )
    factor: Factor = Product(x, g)

    def make() -> Held:
        return contract.held(layer, order, factor, trace=False)

    held = make()
    out = like.new_zeros(block * plan.readouts, block * plan.readouts)
    making = milliseconds(make)
    half = milliseconds(lambda: contract.add(out, held, held, plan.precision, upper=True))
    total = count * (making + half)
    if count > 1:
        whole = milliseconds(lambda: contract.add(out, held, held, plan.precision, upper=False))
        total += count * (count - 1) / 2 * whole
    return total


def of_network(
    model: nn.Module, images: Tensor, readouts: int, known: dict[tuple[object, ...], float]
) -> list[Found]:
    """`known` keeps what was measured: by shape, order, readouts and blocks."""
    picked = torch.eye(10)[:readouts]
    plan = ntk.plan(model, images, readout=picked, precision="fp32")
    groups: dict[tuple[int, ...], list[Choice]] = {}
    for row in plan.layers:
        if row.layer.kind == "product":
            groups.setdefault(shape_of(row.layer), []).append(row)
    n = len(images)
    size = costs.Size(n, n * (n + 1) / 2, readouts)
    found = []
    for shape, rows in groups.items():
        work = {order: costs.work(rows[0].layer, order, size).macs for order in rows[0].seconds}
        times = {}
        for order, macs in work.items():
            if macs > MOST_WORK * min(work.values()):
                continue
            key = (shape, order, readouts, plan.blocks1.block, plan.blocks1.count)
            if key not in known:
                known[key] = measure(rows[0], order, plan, images.new_empty(0))
            times[order] = known[key]
        found.append(Found(rows[0], len(rows), times))
    return found


def table(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        if row.layer == "all":
            lines.append(
                f"{row.network} N={row.samples} R={row.readouts}: orders {row.chosen}, chosen/best "
                f"{row.ratio:.3f} in total"
            )
        elif row.ratio > TARGET:
            lines.append(
                f"    {row.layer} (S {row.S}, c {row.c}, d {row.d}): {row.chosen} for {row.best}, "
                f"{row.ratio:.2f} times its time"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small networks: a trial, no result")
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own")
    parser.add_argument("--only", type=re.compile, metavar="REGEX", help="networks that it matches")
    parser.add_argument("--out", type=Path, help="CSV to write")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    shared = environment("cpu")
    ntk_providers.measure_rates_anew()
    rows: list[Row] = []
    known: dict[tuple[object, ...], float] = {}
    begin = time.perf_counter()
    for network, shape in QUICK if options.quick else CASES:
        if options.only is not None and not options.only.search(network):
            continue
        model = networks.make(network, shape[0], side=shape[1])
        for samples in (4,) if options.quick else (8, 64):
            for readouts in (1, 10):
                images = torch.rand(samples, *shape)
                found = of_network(model, images, readouts, known)
                own = [as_row(shared, network, samples, readouts, one) for one in found]
                own.append(total(shared, network, samples, readouts, found))
                rows += own
                print(table(own), flush=True)
    if not rows:
        print(f"--only {options.only.pattern} matches no network", file=sys.stderr)
        return 2
    if options.out is not None:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
            writer.writeheader()
            writer.writerows({n: text(v) for n, v in asdict(row).items()} for row in rows)
    worst = max(row.ratio for row in rows if row.layer == "all")
    print(f"worst total: {worst:.3f} ({TARGET} allowed), {time.perf_counter() - begin:.0f} s")
    return 0 if worst <= TARGET or options.quick else 1


def text(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _columns(kind: str, ms: dict[str, float]) -> dict[str, float | str]:
    return {f"{kind}_{order.lower()}": ms.get(order, NOT_MEASURED) for order in costs.ORDERS}


def as_row(shared, network: str, samples: int, readouts: int, one: Found) -> Row:
    layer = one.row.layer
    return Row(
        shared.date, shared.commit, shared.machine, shared.threads, shared.torch, network, samples,
        readouts, one.row.name, one.count, layer.positions, layer.channels,
        layer.window * layer.features, layer.groups, one.row.order, one.best,
        ratio=one.chosen_ms / one.measured[one.best],
        **_columns("predicted", one.predicted), **_columns("measured", one.measured),
    )  # fmt: skip


def total(shared, network: str, samples: int, readouts: int, found: list[Found]) -> Row:
    """Sums over all layers; of an order that was not measured in each of them there is none."""

    def summed(of: Callable[[Found], dict[str, float]]) -> dict[str, float]:
        return {
            order: sum(one.count * of(one)[order] for one in found)
            for order in costs.ORDERS
            if all(order in of(one) for one in found)
        }

    chosen = sum(one.count * one.chosen_ms for one in found)
    best = sum(one.count * one.measured[one.best] for one in found)
    orders = {o: sum(one.count for one in found if one.row.order == o) for o in costs.ORDERS}
    bests = {o: sum(one.count for one in found if one.best == o) for o in costs.ORDERS}
    return Row(
        shared.date, shared.commit, shared.machine, shared.threads, shared.torch, network, samples,
        readouts, "all", sum(one.count for one in found), 0, 0, 0, 0,
        " ".join(f"{n} {o}" for o, n in orders.items() if n),
        " ".join(f"{n} {o}" for o, n in bests.items() if n), ratio=chosen / best,
        **_columns("predicted", summed(lambda one: one.predicted)),
        **_columns("measured", summed(lambda one: one.measured)),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
