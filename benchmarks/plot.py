"""Draws a results file: plot.py FILE.csv [--out PICTURE.png|.svg]. One picture a machine: CPU and GPU never share one.

Each row of a picture is a case; each mark is a provider's median, its line goes from p20 to p80. For the kernels a tall
bar shows the copy bandwidth of the same run, for attacks the passes of the plain network alone, for the ntk suite its
arithmetic at the rate of a matrix product.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
from records import read

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# The palette of Okabe and Ito, which stays apart for every kind of colour vision; the marks differ too.
STYLES = {
    "torch": ("#000000", "o"),
    "torch_inplace": ("#E69F00", "s"),
    "torch_compile": ("#56B4E9", "^"),
    "reference": ("#999999", "x"),
    "cpp": ("#D55E00", "D"),
    "cuda": ("#D55E00", "D"),
    "triton": ("#009E73", "v"),
    "advfast": ("#D55E00", "D"),
    "advfast_exact": ("#CC79A7", "P"),
    "torchattacks": ("#0072B2", "<"),
    "foolbox": ("#56B4E9", ">"),
    "art": ("#E69F00", "s"),
    "cleverhans": ("#009E73", "v"),
    "torch_func": ("#000000", "o"),
    "torch_func_once": ("#555555", "o"),
    "hooks": ("#E69F00", "s"),
    "neural_tangents": ("#0072B2", "<"),
    "neural_tangents_jacobian": ("#56B4E9", "^"),
    "nngeometry": ("#009E73", "v"),
}
OTHER = ("#F0E442", "*")
Rows = list[dict[str, str]]


def machines(rows: Rows) -> dict[tuple[str, ...], Rows]:
    """The timed rows of each suite on each machine, keyed by (suite, device, machine, gpu, threads)."""
    found: dict[tuple[str, ...], Rows] = {}
    for row in rows:
        if row["ms_p50"]:
            name = tuple(row[column] for column in ("suite", "device", "machine", "gpu", "threads"))
            found.setdefault(name, []).append(row)
    return found


def by(rows: Rows, columns: Iterable[str]) -> dict[str, Rows]:
    """Rows with the same text in `columns`, in the order of the file."""
    found: dict[str, Rows] = {}
    for row in rows:
        found.setdefault(" ".join(filter(None, (row[c] for c in columns))), []).append(row)
    return found


def spread(row: dict[str, str], suite: str) -> tuple[float, float, float]:
    """(low, median, high) of what is drawn: GB/s for kernels, milliseconds for the rest."""
    low, middle, high = (float(row[name]) for name in ("ms_p20", "ms_p50", "ms_p80"))
    if suite != "kernels":
        return low, middle, high
    moved = float(row["bytes"]) / 1e6
    return moved / high, moved / middle, moved / low


def draw_panel(axes: Any, title: str, cases: dict[str, Rows], suite: str, seen: set[str]) -> None:
    for place, rows in enumerate(cases.values()):
        y = -place
        axes.axhline(y, color="#dddddd", linewidth=0.6, zorder=0)
        column = "copy_gb_per_s" if suite == "kernels" else "floor_ms"
        limit = next((row[column] for row in rows if row[column]), "")
        if limit:
            axes.plot([float(limit)] * 2, [y - 0.4, y + 0.4], color="#000000", linewidth=1.2)
        for row in rows:
            if row["provider"] in ("network", "matmul", "matmul_tf32"):
                continue  # drawn as the limit
            seen.add(row["provider"])
            color, mark = STYLES.get(row["provider"], OTHER)
            low, middle, high = spread(row, suite)
            axes.plot([low, high], [y, y], color=color, linewidth=1.5, alpha=0.6)
            axes.plot(middle, y, mark, color=color, markersize=6)
    axes.set_yticks([-place for place in range(len(cases))], list(cases), fontsize=8)
    axes.set_ylim(-len(cases) + 0.4, 0.6)
    axes.set_xscale("log")
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(axis="x", labelsize=8)


def figure(rows: Rows) -> Any:
    """One picture of the rows of one suite on one machine."""
    first = rows[0]
    suite = first["suite"]
    # The shape heads a panel of kernels; elsewhere the network does.
    heading = ("shape",) if suite == "kernels" else ("case", "shape")
    label = [c for c in ("op", "norm", "dtype", "layout", "case") if c not in heading]
    panels = {title: by(own, label) for title, own in by(rows, heading).items()}
    counts = [len(cases) for cases in panels.values()]
    made, grid = plt.subplots(
        len(panels), 1, figsize=(8.5, 1.4 + 0.3 * sum(counts) + 0.5 * len(panels)), squeeze=False,
        sharex=suite == "kernels", gridspec_kw={"height_ratios": [n + 0.8 for n in counts]},
        layout="constrained",
    )  # fmt: skip
    seen: set[str] = set()
    for axes, (title, cases) in zip(grid[:, 0], panels.items(), strict=True):
        draw_panel(axes, title, cases, suite, seen)
    kernels = suite == "kernels"
    unit = (
        "GB/s of the bytes that must move (right is better)" if kernels else "ms (left is better)"
    )
    grid[-1, 0].set_xlabel(unit, fontsize=9)
    marks = [
        plt.Line2D([], [], color=color, marker=mark, linestyle="", label=name)
        for name, (color, mark) in STYLES.items()
        if name in seen
    ]
    marks += [
        plt.Line2D([], [], color=OTHER[0], marker=OTHER[1], linestyle="", label=name)
        for name in sorted(seen - set(STYLES))
    ]
    if suite != "train":
        limit = {"kernels": "copy bandwidth", "ntk": "its arithmetic at a matmul's rate"}.get(
            suite, "network alone"
        )
        marks.append(
            plt.Line2D([], [], color="black", marker="|", markersize=10, linestyle="", label=limit)
        )
    made.legend(handles=marks, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    where = (
        first["gpu"]
        if first["device"] == "cuda"
        else f"{first['machine']}, {first['threads']} threads"
    )
    commit, changes, _ = first["commit"].partition("+changes")
    versions = f"torch {first['torch']}, {commit[:8]}{changes}, {first['date'][:10]}"
    made.suptitle(f"{suite}: {where}; {versions}", fontsize=9)
    return made


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--out", type=Path, help="default: beside the CSV, as .png")
    args = parser.parse_args(arguments)
    groups = machines(read(args.csv))
    if not groups:
        print(f"{args.csv} has no timed row", file=sys.stderr)
        return 1
    wanted = args.out or args.csv.with_suffix(".png")
    for number, rows in enumerate(groups.values()):
        path = wanted
        if len(groups) > 1:
            tag = f"{rows[0]['suite']}-{rows[0]['device']}-{number}"
            path = wanted.with_stem(f"{wanted.stem}-{tag}")
        made = figure(rows)
        made.savefig(path, dpi=150)
        plt.close(made)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
