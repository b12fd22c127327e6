"""How a kernel's time and memory grow with samples, readouts and width: a CSV and a picture.

    python benchmarks/ntk_scaling.py [--quick] [--threads 2] [--out FILE.csv] [--picture docs/ntk_scaling.png]
    python benchmarks/ntk_scaling.py --from benchmarks/results/ntk_scaling_cpu.csv --picture docs/ntk_scaling.png

ResNet-18 on 32x32 images; from 32 samples, 10 readouts and width 16 one of the three is varied at a time. `advfast` is
`ntk` as it comes, `advfast_M` the same with method="M" (products of gradients in every layer), `hooks` the whole
Jacobian of a layer at once (ntk_providers.py). Time is the median of the rounds, taken in turns; memory is the peak of
the resident memory of one call above what was there before.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import matplotlib
import memory
import networks
import ntk_providers
import torch
from records import Row as Shared
from records import environment
from timing import HostClock, Timed, take_turns
from torch import Tensor

from advfast import ntk

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BASE = {"samples": 32, "readouts": 10, "width": 16}
AXES = {"samples": (8, 16, 32, 64), "readouts": (1, 2, 5, 10), "width": (4, 8, 16)}
QUICK_BASE = {"samples": 2, "readouts": 2, "width": 4}
QUICK_AXES = {"samples": (2, 4), "readouts": (1, 2), "width": (4, 8)}
SIDE, QUICK_SIDE = 32, 16
# Jacobians of more than this are not made by hand here.
MOST_BYTES = 4 << 30
# Of Okabe and Ito; the marks differ too.
STYLES = {
    "advfast": ("#D55E00", "D", "-"), "advfast_M": ("#0072B2", "o", "--"),
    "hooks": ("#000000", "s", ":"),
}  # fmt: skip
LABELS = {"samples": "samples N", "readouts": "readouts R", "width": "width of ResNet-18"}


@dataclass(frozen=True)
class Row:
    date: str
    commit: str
    machine: str
    threads: int
    torch: str
    provider: str
    axis: str  # what is varied
    samples: int
    readouts: int
    width: int
    ms: float  # median
    peak_bytes: int


def providers(width: int, images: Tensor, readouts: int) -> dict[str, Callable[[], Tensor]]:
    model = networks.make(f"resnet18-w{width}", 3, side=images.shape[2])
    picked = torch.eye(10)[:readouts]

    def engine(method: str) -> Tensor:
        return ntk.ntk(
            model, images, readout=picked, method=method, precision="fp32", check=False
        ).tensor

    found: dict[str, Callable[[], Tensor]] = {
        "advfast": lambda: engine("auto"), "advfast_M": lambda: engine("M"),
    }  # fmt: skip
    largest = max(p.numel() for p in model.parameters())
    # The rows of a layer, once more while they are made.
    if 8 * largest * len(images) * readouts <= MOST_BYTES:
        scene = ntk_providers.Scene(f"resnet18-w{width}", model, images, picked)
        found["hooks"] = ntk_providers.with_hooks(scene)
    return found


def measure(shared: Shared, axis: str, at: dict[str, int], side: int, *, quick: bool) -> list[Row]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(at["samples"], 3, side, side, generator=generator)
    calls = providers(at["width"], images, at["readouts"])
    calls["advfast"]()  # the first call in the process measures the planner's rates
    peaks = {
        name: memory.host_peak(lambda call=call: call, rounds=1) for name, call in calls.items()
    }
    times = take_turns(
        {name: Timed(call) for name, call in calls.items()}, HostClock("cpu"),
        seconds=0.2 if quick else 4.0, min_rounds=2 if quick else 3, warmups=1,
        rounds_of=lambda ms: 2 if ms > 4e3 else 20,
    )  # fmt: skip
    return [
        Row(
            shared.date, shared.commit, shared.machine, shared.threads, shared.torch, name, axis,
            ms=float(text(times[name].median)), peak_bytes=peaks[name] or 0, **at,
        )
        for name in calls
    ]  # fmt: skip


def picture(rows: list[Row]) -> Any:
    made, grid = plt.subplots(2, 3, figsize=(9, 5.2), sharey="row", layout="constrained")
    for column, axis in enumerate(AXES):
        for line, (what, unit) in enumerate((("ms", 1e3), ("peak_bytes", 2.0**20))):
            axes = grid[line, column]
            for name, (color, mark, dash) in STYLES.items():
                own = sorted(
                    (getattr(row, axis), getattr(row, what) / unit)
                    for row in rows
                    if row.axis == axis and row.provider == name
                )
                if own:
                    axes.plot(*zip(*own, strict=True), dash, marker=mark, color=color, label=name)
            ticks = sorted({getattr(row, axis) for row in rows if row.axis == axis})
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(ticks, [str(t) for t in ticks], fontsize=8)
            axes.minorticks_off()
            axes.tick_params(axis="y", labelsize=8)
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
            if line == 1:
                axes.set_xlabel(LABELS[axis], fontsize=9)
        fixed = [f"{k} {held_at(rows)[k]}" for k in AXES if k != axis]
        grid[0, column].set_title(", ".join(fixed), fontsize=8)
    grid[0, 0].set_ylabel("seconds", fontsize=9)
    grid[1, 0].set_ylabel("peak memory, MiB", fontsize=9)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    first = rows[0]
    commit, changes, _ = first.commit.partition("+changes")
    made.suptitle(
        f"kernel of ResNet-18, fp32: {first.machine}, {first.threads} threads; torch {first.torch}, "
        f"{commit[:8]}{changes}, {first.date[:10]}",
        fontsize=9,
    )
    return made


def held_at(rows: list[Row]) -> dict[str, int]:
    """What the others are held at: of each axis, the value in the rows of another."""
    return {axis: next(getattr(row, axis) for row in rows if row.axis != axis) for axis in AXES}


def read(path: Path) -> list[Row]:
    kinds = {"int": int, "float": float, "str": str}
    with path.open(newline="") as file:
        return [
            Row(**{f.name: kinds[str(f.type)](row[f.name]) for f in fields(Row)})
            for row in csv.DictReader(file)
        ]


def write(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({n: text(v) for n, v in asdict(row).items()} for row in rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny shapes: a trial, no result")
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own")
    parser.add_argument("--out", type=Path, help="CSV to write")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    parser.add_argument("--from", dest="source", type=Path, help="draw this CSV, measure nothing")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    ntk_providers.measure_rates_anew()
    rows = read(options.source) if options.source is not None else []
    if not rows:
        shared = environment("cpu")
        base, axes = (QUICK_BASE, QUICK_AXES) if options.quick else (BASE, AXES)
        for axis, values in axes.items():
            for value in values:
                own = measure(
                    shared, axis, base | {axis: value}, QUICK_SIDE if options.quick else SIDE,
                    quick=options.quick,
                )  # fmt: skip
                rows += own
                if options.out is not None:  # what is measured is not lost
                    write(options.out, rows)
                for row in own:
                    print(
                        f"{axis} {value}: {row.provider:10} {row.ms:10.1f} ms "
                        f"{row.peak_bytes / 2**20:8.1f} MiB",
                        flush=True,
                    )
    if options.picture is not None:
        made = picture(rows)
        made.savefig(options.picture, dpi=150)
        plt.close(made)
        print(options.picture)
    return 0


def text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
