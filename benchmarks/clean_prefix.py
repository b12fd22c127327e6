"""Time-saving adversarial training: clean epochs at the beginning against robust accuracy.

    python benchmarks/clean_prefix.py --jobs 2                # -> results/clean_prefix_cpu.csv and .png
    python benchmarks/clean_prefix.py --jobs 2 --parts digits
    python benchmarks/clean_prefix.py --quick                 # a trial, no result

Three parts. "fashion": Fashion-MNIST, 8,000 training images, the small CNN, linf eps 0.1, PGD-7, 12 epochs, batches of
128, one cycle of the rate, for pgd-at (up to 0.1) and, in fewer cells and two seeds, trades (up to 0.05); E_s clean
epochs, "auto" (at most 3 here, a quarter of the epochs), and the steps ramp 0-1-3-5-7. "digits-12" and "digits-60": the
three convolutions with batch normalisation of ntk_digits.py on the 8x8 digits, eps 0.2, PGD-7, batches of 64, 12 epochs
of one cycle and 60 (two seeds) of a triangular rate. Tested: the best (held out) and the last epoch on the first 1,000
test images (digits: all 500): clean and PGD-20; AutoAttack is minutes a network, so it is of pgd-at on "fashion" with
E_s = 0, 4, auto and the ramp alone, last epoch, seed 0. Two runs at a time have a thread each. Rows come as they are
made; those that the file has are not measured again.

Expected, written down before the first run (2026-11-30), PGD-20 of the last epoch, means over the seeds:
 * digits-12: a prefix is not free on a short schedule: it falls with E_s, 0 > 3 > 6 > 8 (59.5, 45.7, 37.3, 30.7 in an
   earlier study of a like network);
 * digits-60: E_s = 10 (15 % of the epochs' passes saved) costs less than 5 points; it falls with E_s, 0 > 10 > 20 > 30;
 * fashion: "auto" costs less than 2 points against E_s = 0, for pgd-at and for trades, and saves time;
 * fashion, pgd-at: E_s = 6 costs more than "auto" does;
 * fashion, pgd-at: the ramp, which saves about as many passes as E_s = 6, is more robust than that;
 * the checks of "auto" take less than 3 % of the seconds of a run.
The program says of each whether it held.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from records import ROOT, environment
from rows import as_text, read, write
from torch import nn

import advfast
from advfast.data import load, pixel_statistics, stratified_split
from advfast.evaluation.canvas import new_figure, write_png
from advfast.studies.networks import conv_bn_net
from advfast.training.clean_prefix import saved_share
from advfast.training.modifiers import StepsRamp, make

STEPS, CLEAN, RAMP = 7, 3.0, "steps-ramp:stages=0-1-3-5-7"
PARTS = ("fashion", "digits-12", "digits-60")
OUT = ROOT / "benchmarks/results/clean_prefix_cpu.csv"


@dataclass(frozen=True)
class Case:
    part: str
    method: str
    prefix: str  # E_s | auto | ramp
    seed: int
    epochs: int
    images: int = 8000
    tested: int = 1000
    autoattack: int = 0  # images


@dataclass(frozen=True)
class Row:
    date: str
    commit: str
    machine: str
    threads: int
    load: float
    torch: str
    part: str
    method: str
    prefix: str
    seed: int
    epochs: int
    clean_epochs: int
    reason: str
    which: str  # best (held out) | last
    epoch: int
    clean: float
    pgd20: float
    autoattack: str  # of the last epoch
    tested: int
    autoattacked: int
    seconds: float  # of all epochs, without validation, with the checks
    check_seconds: float
    saved: float  # share of the pass-units, by the formula


KEY = ("part", "method", "prefix", "seed")


def cases(parts: list[str], seeds: list[int], autoattack: int, quick: bool) -> list[Case]:
    if quick:
        small = {"epochs": 4, "images": 1500, "tested": 100}
        found = [
            Case("fashion", "pgd-at", name, 0, autoattack=10, **small)
            for name in ("0", "auto", "ramp")
        ]
        return [*found, Case("digits-12", "pgd-at", "1", 0, 2)]
    found = []
    for seed in seeds:
        if "fashion" in parts:
            for name in ("0", "1", "2", "4", "6", "auto", "ramp"):
                of = autoattack if seed == 0 and name in ("0", "4", "auto", "ramp") else 0
                found.append(Case("fashion", "pgd-at", name, seed, 12, autoattack=of))
            if seed < 2:
                found += [Case("fashion", "trades", name, seed, 12) for name in ("0", "4", "auto")]
        if "digits-12" in parts:
            found += [Case("digits-12", "pgd-at", name, seed, 12) for name in ("0", "3", "6", "8")]
        if "digits-60" in parts and seed < 2:
            found += [
                Case("digits-60", "pgd-at", name, seed, 60) for name in ("0", "10", "20", "30")
            ]
    return found  # fmt: skip


def given(case: Case) -> tuple[nn.Module, Any, dict[str, Any]]:
    """(network, training data, arguments of `train`)."""
    settings: dict[str, Any] = {"method": case.method, "steps": STEPS, "epochs": case.epochs}
    settings |= {"modifiers": [RAMP]} if case.prefix == "ramp" else {}
    if case.prefix != "ramp":
        settings["clean_prefix"] = case.prefix
    torch.manual_seed(case.seed)
    if case.part != "fashion":
        schedule = "triangular" if case.part == "digits-60" else "one-cycle"
        digits = {"eps": 0.2, "batch_size": 64, "lr": 0.1, "schedule": schedule}
        return conv_bn_net((1, 8, 8), 10), "digits", settings | digits
    splits = load("fashion-mnist")
    kept, held_out = stratified_split(splits.train.labels, 1000, seed=0)
    source = splits.train.subset(kept[: case.images])
    assert splits.test is not None
    mean, std = pixel_statistics(source)
    model = advfast.models.make("small-cnn", in_shape=(1, 28, 28), classes=10, mean=mean, std=std)
    return model, source, settings | {
        "eps": 0.1, "batch_size": 128, "lr": 0.05 if case.method == "trades" else 0.1,
        "val": splits.train.subset(held_out), "test": splits.test.subset(torch.arange(case.tested)),
    }  # fmt: skip


def measure(case: Case) -> list[Row]:
    """In a process of its own, on one thread."""
    torch.set_num_threads(1)
    shared = environment("cpu")
    model, data, settings = given(case)
    with tempfile.TemporaryDirectory() as folder:
        result = advfast.train(
            model, data, seed=case.seed, out=folder, progress=False, **settings
        )  # fmt: skip
        told = result.clean_prefix
        seconds = sum(row["seconds"] for row in result.history)
        autoattack = "none"
        if case.autoattack:
            last = advfast.load(result.last.checkpoint)
            report = advfast.evaluate(
                last, settings["test"], attacks=("clean", "autoattack"), eps=settings["eps"],
                limit=case.autoattack, progress=False,
            )  # fmt: skip
            autoattack = f"{report['autoattack'].value:.6g}"
    rows = []
    for which, of in (("best", result.best), ("last", result.last)):
        assert of.test is not None
        rows.append(
            Row(
                shared.date, shared.commit, shared.machine, shared.threads, shared.load or 0.0, shared.torch,
                case.part, case.method, case.prefix, case.seed, case.epochs, told.get("epochs", 0),
                told.get("reason", case.prefix), which, of.epoch, of.test["clean"].value,
                of.test["pgd-20"].value, autoattack if which == "last" else "none", of.test["clean"].total,
                case.autoattack, seconds + told.get("seconds", 0.0), told.get("seconds", 0.0),
                ramp_share(case) if case.prefix == "ramp" else told.get("saved", 0.0),
            )
        )  # fmt: skip
    return rows


def ramp_share(case: Case) -> float:
    """Of pgd-at, whose step costs 2 K + 3; counted in a hundred places of the run."""
    ramp = make(RAMP)
    assert isinstance(ramp, StepsRamp)
    places = 100 * case.epochs
    units = [2.0 * ramp.planned(step, case.epochs, 100, STEPS) + 3 for step in range(places)]
    return saved_share(units, 2.0 * STEPS + 3)


Group = tuple[str, str, str]


def grouped(rows: list[dict[str, str]], which: str) -> dict[Group, list[dict[str, str]]]:
    """By part, method and prefix, in the order of the seeds."""
    found: dict[Group, list[dict[str, str]]] = {}
    order = ["0", "1", "2", "3", "4", "6", "8", "10", "20", "30", "auto", "ramp"]
    for row in sorted(
        rows, key=lambda r: (r["part"], r["method"], order.index(r["prefix"]), r["seed"])
    ):
        if row["which"] == which:
            found.setdefault((row["part"], row["method"], row["prefix"]), []).append(row)
    return found  # fmt: skip


def mean(rows: list[dict[str, str]], name: str) -> float:
    return statistics.fmean(float(row[name]) for row in rows)


def measured(groups: dict[Group, list[dict[str, str]]], key: Group) -> float:
    """Share of the seconds that is saved against no prefix, mean over the seeds; nan without such a run."""
    base = {row["seed"]: float(row["seconds"]) for row in groups.get((*key[:2], "0"), [])}
    shares = [
        1 - float(row["seconds"]) / base[row["seed"]] for row in groups[key] if row["seed"] in base
    ]
    return statistics.fmean(shares) if shares else float("nan")


def cell(rows: list[dict[str, str]], name: str) -> str:
    values = [100 * float(row[name]) for row in rows if row[name] != "none"]
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{deviation}"


def table(rows: list[dict[str, str]]) -> str:
    """Means and sample deviations over the seeds."""
    lines = [
        "| part, method | E_s | seconds | saved, % | by the formula, % | clean, % | PGD-20, % | AutoAttack, % "
        "| PGD-20, best, % | checks, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    last, best = grouped(rows, "last"), grouped(rows, "best")
    for key, of in last.items():
        part, method, prefix = key
        ends = "/".join(row["clean_epochs"] for row in of)
        name = f"auto ({ends})" if prefix == "auto" else prefix
        lines.append(
            f"| {part}, `{method}` | {name} | {mean(of, 'seconds'):.1f} | {100 * measured(last, key):.1f} "
            f"| {100 * mean(of, 'saved'):.1f} | {cell(of, 'clean')} | {cell(of, 'pgd20')} | {cell(of, 'autoattack')} "
            f"| {cell(best[key], 'pgd20')} | {mean(of, 'check_seconds'):.2f} |"
        )
    return "\n".join(lines)


def expectations(rows: list[dict[str, str]]) -> list[tuple[str, bool]]:
    """What the docstring expects, and whether it held; of what was not measured, nothing."""
    groups = grouped(rows, "last")
    points = {key: 100 * mean(of, "pgd20") for key, of in groups.items()}
    said: list[tuple[str, bool]] = []

    def falls(part: str, names: tuple[str, ...]) -> None:
        keys = [(part, "pgd-at", name) for name in names]
        if all(key in points for key in keys):
            values = [points[key] for key in keys]
            shown = ", ".join(f"{value:.1f}" for value in values)
            ordered = all(a > b for a, b in itertools.pairwise(values))
            said.append((f"{part}: PGD-20 falls with E_s = {', '.join(names)}: {shown}", ordered))

    falls("digits-12", ("0", "3", "6", "8"))
    falls("digits-60", ("0", "10", "20", "30"))
    base, ten = ("digits-60", "pgd-at", "0"), ("digits-60", "pgd-at", "10")
    if base in points and ten in points:
        lost = points[base] - points[ten]
        said.append((f"digits-60: E_s = 10 costs less than 5 points: {lost:.1f}", lost < 5))
    for method in ("pgd-at", "trades"):
        none, auto = (("fashion", method, name) for name in ("0", "auto"))
        if none in points and auto in points:
            lost, saved = points[none] - points[auto], measured(groups, auto)
            said.append((f"fashion, {method}: auto costs less than 2 points: {lost:.1f}", lost < 2))
            said.append((f"fashion, {method}: auto saves time: {saved:.1%}", saved > 0))
            share = mean(groups[auto], "check_seconds") / mean(groups[auto], "seconds")
            said.append(
                (f"fashion, {method}: the checks take below 3 %: {share:.1%}", share < 0.03)
            )
    six, auto, ramp = (("fashion", "pgd-at", name) for name in ("6", "auto", "ramp"))
    for what, a, b in (("auto", auto, six), ("the ramp", ramp, six)):
        if a in points and b in points:
            shown = f"{points[a]:.1f} against {points[b]:.1f}"
            said.append(
                (
                    f"fashion, pgd-at: {what} is more robust than E_s = 6: {shown}",
                    points[a] > points[b],
                )
            )
    return said  # fmt: skip


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """PGD-20 of the last epoch against seconds: one picture a part and method, a point a prefix."""
    groups = grouped(rows, "last")
    panels = list(dict.fromkeys(key[:2] for key in groups))
    figure = new_figure(4.2 * len(panels), 3.6)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for key, of in groups.items():
            if key[:2] != panel:
                continue
            values = [100 * float(row["pgd20"]) for row in of]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            special = key[2] in ("auto", "ramp")
            x, y = mean(of, "seconds"), statistics.fmean(values)
            axes.errorbar(x, y, yerr=spread, fmt="s" if special else "o", capsize=3,
                          color={"auto": "C1", "ramp": "C2"}.get(key[2], "C0"))  # fmt: skip
            axes.annotate(
                key[2] if special else f"$E_s$ = {key[2]}", (x, y), xytext=(6, 4),
                textcoords="offset points", fontsize=8,
            )  # fmt: skip
        axes.set_title(f"{panel[0]}, {panel[1]}", fontsize=10)
        axes.set_xlabel("seconds of training")
        axes.set_ylabel("PGD-20 accuracy, %")
        axes.margins(x=0.2, y=0.15)
        axes.grid(alpha=0.3)
    with path.open("wb") as stream:
        write_png(figure, stream)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few images, one seed; no result")
    parser.add_argument("--parts", default=",".join(PARTS), help="such as fashion,digits-12")
    parser.add_argument(
        "--seeds", default="0,1,2", help="such as 0,1,2 (trades and digits-60: of 0,1)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one thread")
    parser.add_argument("--autoattack", type=int, default=1000, help="images; 0 for none")
    parser.add_argument("--out", type=Path, help=f"CSV; default: {OUT.relative_to(ROOT)}")
    parser.add_argument("--figure", type=Path, help="PNG; default: beside the CSV")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--parts must be some of {', '.join(PARTS)}, got {', '.join(unknown)}")
    out = options.out or (None if options.quick else OUT)
    rows = [] if out is None else read(out)
    have = {tuple(row[name] for name in KEY) for row in rows}
    seeds = [int(seed) for seed in options.seeds.split(",")]
    wanted = [
        case
        for case in cases(parts, seeds, options.autoattack, options.quick)
        if tuple(str(getattr(case, name)) for name in KEY) not in have
    ]
    # OpenMP does not survive a fork, and two processes of many threads would wait for one another.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        for done in as_completed([pool.submit(measure, case) for case in wanted]):
            found = [as_text(row) for row in done.result()]
            rows += found
            shown = (
                "part",
                "method",
                "prefix",
                "seed",
                "clean_epochs",
                "clean",
                "pgd20",
                "autoattack",
                "seconds",
            )
            print(json.dumps({name: found[-1][name] for name in shown}), flush=True)
            if out is not None:
                write(rows, out)
    print(table(rows))
    for what, held in expectations(rows):
        print(f"{what}: {'held' if held else 'FAILED'}")
    figure = options.figure or (None if out is None else out.with_suffix(".png"))
    if figure is not None and rows:
        draw(rows, figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
