"""The remedies of catastrophic overfitting on digits with an injected feature: noise from the start, or by the monitor.

    python benchmarks/collapse_remedy.py --jobs 2        # -> results/collapse_remedy_cpu.csv, ..._checks_cpu.csv, .png
    python benchmarks/collapse_remedy.py --quick         # a trial of the program, no result

Data, network and schedule are those of catastrophic.py, at beta 0.10 and eps 0.25, where fgsm collapses. n-fgsm adds
noise of the same mean magnitude (k 2) of three kinds: isotropic, lognormal (sigma 0.5), saliency; each from the first
step on ("always"), or off (fgsm, bit for bit) until the monitor fires, which then puts back the weights of the check
before ("monitor"). All runs are watched by a KernelMonitor after each epoch: 256 training images (drop 0.2, gap 0.5),
the kernel of 64 of them. One row a run, and in the second file one a check. PGD-50x10 are 10 restarts, of a sample the
worst. A remedy is judged by it, and not by FGSM. The room that catastrophic.py leaves for n-fgsm is 3 eps: lognormal
and saliency noise reach further in some pixels, and are cut by the box there.

Expected, written down before the first run (2026-11-30), of every seed:
 * fgsm collapses: FGSM minus PGD-50 test accuracy above 0.9;
 * the monitor fires for fgsm at most one check after the collapse, which is the first check whose PGD-10 accuracy is
   below half of the best before it (the first run met that in epoch 8, by the noise of the high rate, and then rose to
   a new best: since then it is the first check from which on PGD-10 accuracy stays below half of its best);
 * at the check of fgsm that fires, the kernel distance of clean and attacked images is above twice the mean of the five
   checks before: K' has become that of images which were not trained on;
 * each of the six remedies: FGSM minus PGD-50 below 0.5, and PGD-50 above 0.3;
 * anisotropic noise of either kind is within 0.05 of isotropic noise in PGD-50x10 (mean over the seeds, "always"): on
   8x8 images there is little that tells pixels apart;
 * lambda_1 / tr K' and the effective rank: nothing is expected of their direction. Whether a kernel number could have
   flagged as early as the accuracies is worked out from the second file and printed (`kernel_rules`).
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from catastrophic import BATCH, EPOCHS, EPS, LR, SCALE, accuracies, images, network
from records import ROOT, environment
from rows import as_text, mean_std, read, write

import advfast
from advfast.attacks import PGDAttack
from advfast.evaluation.canvas import new_figure, write_png
from advfast.files import write_atomic
from advfast.training import KernelMonitor

BETA = 0.10
NOISES = ("isotropic", "lognormal", "saliency")
OUT = ROOT / "benchmarks/results/collapse_remedy_cpu.csv"
KERNEL = ("top_share", "effective_rank", "clean_distance")
CHECK_COLUMNS = ("fgsm", "pgd", *KERNEL, "velocity")


@dataclass(frozen=True)
class Case:
    noise: str  # none | isotropic | lognormal | saliency
    start: str  # never | always | monitor
    seed: int
    epochs: int


@dataclass(frozen=True)
class Row:
    date: str
    commit: str
    machine: str
    threads: int
    load: float
    torch: str
    jobs: int  # runs at a time, each on one thread
    noise: str
    start: str
    seed: int
    epochs: int
    clean: float  # accuracy on the test images, last epoch
    fgsm: float
    pgd50: float
    pgd50x10: float
    tested: int
    flagged: str  # epoch of the first check that fired, or "none"
    collapsed: str  # of the check from which on PGD-10 stays below half of its best, or "none"
    top_share_before: (
        str  # lambda_1 / tr K': of the check before the flag, at it, of the last check
    )
    top_share_at: str
    top_share_last: float
    rank_before: str  # effective rank of K'
    rank_at: str
    rank_last: float
    distance_before: str  # of K and K'
    distance_at: str
    distance_last: float
    kernel_share: float  # of the time of training
    seconds: float  # training


def cases(seeds: list[int], epochs: int) -> list[Case]:
    kinds = [("none", "never"), *((n, s) for s in ("always", "monitor") for n in NOISES)]
    return [Case(noise, start, seed, epochs) for seed in seeds for noise, start in kinds]


def measure(case: Case, jobs: int) -> tuple[Row, list[dict[str, str]]]:
    torch.set_num_threads(1)
    shared = environment("cpu")
    parts = images(BETA)
    switched = case.start == "monitor"
    monitor = KernelMonitor(gap=0.5, action="noise" if switched else "report")
    method: dict[str, Any] = {"method": "fgsm"}
    if case.noise != "none":
        options = {"noise": case.noise, "start": case.start}
        method = {"method": "n-fgsm", "method_options": options}
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = advfast.train(
            network(case.seed), parts["train"], val=parts["val"], eps=SCALE * EPS, bn="train-update",
            epochs=case.epochs, batch_size=BATCH, lr=LR, schedule="triangular", seed=case.seed,
            callbacks=[monitor], out=folder, overwrite=True, progress=False, **method,
        )  # fmt: skip
        seconds = time.perf_counter() - begun
        model = advfast.load(result.last.checkpoint, network(case.seed))
    x, y = parts["test"]
    found = accuracies(model, x, y)
    history = monitor.history
    flag = next((number for number, row in enumerate(history) if row["fired"]), None)

    def at(name: str, offset: int) -> str:
        return (
            "none" if flag is None or flag + offset < 0 else f"{history[flag + offset][name]:.6g}"
        )

    spread = [at(name, offset) for name in KERNEL for offset in (-1, 0)]
    last = [history[-1][name] for name in KERNEL]
    row = Row(
        shared.date, shared.commit, shared.machine, shared.threads, shared.load or 0.0, shared.torch, jobs,
        case.noise, case.start, case.seed, case.epochs,
        found["clean"], found["fgsm"], found["pgd50"], strongest(model, x, y), len(y),
        "none" if flag is None else str(history[flag]["epoch"]), collapse(history),
        spread[0], spread[1], last[0], spread[2], spread[3], last[1], spread[4], spread[5], last[2],
        history[-1]["share"], seconds,
    )  # fmt: skip
    named = {
        "date": shared.date, "commit": shared.commit, "machine": shared.machine, "torch": shared.torch,
        "noise": case.noise, "start": case.start, "seed": str(case.seed),
    }  # fmt: skip
    checks = [
        named | {"epoch": str(check["epoch"]), "fired": str(check["fired"])}
        | {name: f"{check[name]:.6g}" for name in CHECK_COLUMNS}
        for check in history
    ]  # fmt: skip
    return row, checks


def strongest(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """PGD-50, 10 restarts. As in `accuracies`, on the attacked images alone."""
    eps = SCALE * EPS
    attack = PGDAttack(model.eval(), eps, eps / 4, 50, restarts=10, seed=1, early_stop=True)
    with torch.no_grad():
        return float((model(attack(x, y)).argmax(1) == y).double().mean())


def collapse(history: list[dict[str, Any]]) -> str:
    half = max(row["pgd"] for row in history) / 2
    above = max(number for number, row in enumerate(history) if row["pgd"] >= half)
    return "none" if above + 1 == len(history) else str(history[above + 1]["epoch"])


def expectations(rows: list[dict[str, str]], checks: list[dict[str, str]]) -> list[str]:
    """What the docstring expects, and whether it held; the first is that of the collapse."""
    said = []

    def say(what: str, values: list[float], held: bool) -> None:
        if values:
            shown = ", ".join(f"{value:.3f}" for value in values)
            said.append(f"{what}: {shown}: {'held' if held else 'FAILED'}")

    def of(noise: str, start: str) -> list[dict[str, str]]:
        return [row for row in rows if (row["noise"], row["start"]) == (noise, start)]

    def gaps(found: list[dict[str, str]]) -> list[float]:
        return [float(row["fgsm"]) - float(row["pgd50"]) for row in found]

    plain = of("none", "never")
    say("fgsm: FGSM - PGD-50 above 0.9", gaps(plain), min(gaps(plain), default=1) > 0.9)
    late = [
        math.inf if "none" in (row["flagged"], row["collapsed"]) else int(row["flagged"]) - int(row["collapsed"])
        for row in plain
    ]  # fmt: skip
    say("fgsm: checks from the collapse to the flag, at most 1", late, max(late, default=0) <= 1)
    ratios = [
        jump([c for c in checks if c["noise"] == "none" and c["seed"] == row["seed"]])
        for row in plain
    ]
    what = "fgsm: clean distance at the flag over the mean of five before, above 2"
    say(what, ratios, min(ratios, default=3) > 2)
    for start in ("always", "monitor"):
        for noise in NOISES:
            found, name = of(noise, start), f"{noise} noise, {start}"
            robust = [float(row["pgd50"]) for row in found]
            say(f"{name}: FGSM - PGD-50 below 0.5", gaps(found), max(gaps(found), default=0) < 0.5)
            say(f"{name}: PGD-50 above 0.3", robust, min(robust, default=1) > 0.3)
    means = {
        noise: statistics.fmean(float(row["pgd50x10"]) for row in of(noise, "always"))
        for noise in NOISES
        if of(noise, "always")
    }
    for noise in NOISES[1:]:
        if {"isotropic", noise} <= means.keys():
            off = means[noise] - means["isotropic"]
            say(f"{noise} less isotropic noise, PGD-50x10, within 0.05", [off], abs(off) <= 0.05)
    return said


def jump(checks: list[dict[str, str]]) -> float:
    """The kernel distance of clean and attacked images at the flag, over its mean at the five checks before."""
    flag = next((number for number, row in enumerate(checks) if row["fired"] == "1"), 0)
    before = [float(row["clean_distance"]) for row in checks[max(flag - 5, 0) : flag]]
    return float(checks[flag]["clean_distance"]) / statistics.fmean(before) if before else 0.0


def kernel_rules(checks: list[dict[str, str]]) -> list[str]:
    """Whether a kernel number, over its mean at the five checks before, could flag as early as the accuracies do.

    It could if there were a threshold that every run of fgsm passes at its flag or earlier, and no run with noise from
    the start passes at all.
    """
    runs: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for check in checks:
        runs.setdefault((check["noise"], check["start"], check["seed"]), []).append(check)
    said = []
    for name in (*KERNEL, "velocity"):
        for way, power in (("rises", 1), ("falls", -1)):
            collapsing, quiet = [], []
            for (_, start, _), run in runs.items():
                flag = next((n for n, row in enumerate(run) if row["fired"] == "1"), len(run) - 1)
                end = flag if start == "never" else len(run) - 1
                values = [float(row[name]) for row in run]
                # The first velocity is nan.
                most = [
                    (values[i] / statistics.fmean(values[i - 5 : i])) ** power
                    for i in range(6, end + 1)
                ]
                if most and start != "monitor":
                    (collapsing if start == "never" else quiet).append(max(most))
            if collapsing and quiet:
                could = "could" if min(collapsing) > max(quiet) else "no rule"
                said.append(
                    f"{name} {way}: {min(collapsing):.2f} times at least by the flag of fgsm, {max(quiet):.2f} times "
                    f"at most in runs that do not collapse: {could}"
                )
    return said


def table(rows: list[dict[str, str]]) -> str:
    """Means and sample deviations over the seeds."""
    lines = [
        "| noise | from | clean, % | FGSM, % | PGD-50, % | PGD-50x10, % | flagged in epoch | kernel, share of time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for noise, start in dict.fromkeys((row["noise"], row["start"]) for row in rows):
        found = [row for row in rows if (row["noise"], row["start"]) == (noise, start)]
        cells = [mean_std(found, name) for name in ("clean", "fgsm", "pgd50", "pgd50x10")]
        flags = ", ".join(row["flagged"] for row in found)
        share = statistics.fmean(float(row["kernel_share"]) for row in found)
        lines.append(f"| {noise} | {start} | {' | '.join(cells)} | {flags} | {share:.2f} |")
    return "\n".join(lines)


def draw(checks: list[dict[str, str]], path: Path) -> None:
    """Accuracies and lambda_1 / tr K' of the first seed against the epoch: fgsm, and a remedy by the monitor."""
    shown = [("none", "never", "fgsm"), ("lognormal", "monitor", "lognormal noise by the monitor")]
    figure = new_figure(9, 3.8)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (noise, start, title) in zip(panels, shown, strict=True):
        mine = [row for row in checks if (row["noise"], row["start"]) == (noise, start)]
        mine = [row for row in mine if row["seed"] == mine[0]["seed"]]
        epochs = [int(row["epoch"]) for row in mine]
        for name, label in (
            ("fgsm", "FGSM"), ("pgd", "PGD-10"), ("top_share", "λ₁ / tr K'"), ("clean_distance", "distance of K, K'"),
        ):  # fmt: skip
            axes.plot(epochs, [float(row[name]) for row in mine], label=label)
        flags = [epoch for epoch, row in zip(epochs, mine, strict=True) if row["fired"] == "1"]
        if flags:
            axes.axvline(flags[0], color="black", linestyle=":", label="flag")
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("training images, eval mode")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    write_atomic(path, lambda stream: write_png(figure, stream))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three epochs, no result")
    parser.add_argument("--seeds", default="0,1,2", help="such as 0,1,2")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one thread")
    parser.add_argument("--noises", help="only these: none, isotropic, lognormal, saliency")
    parser.add_argument("--out", type=Path, help=f"CSV; default: {OUT.relative_to(ROOT)}")
    options = parser.parse_args(arguments)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    wanted = cases(seeds[:1] if options.quick else seeds, 3 if options.quick else EPOCHS)
    if options.noises:
        wanted = [case for case in wanted if case.noise in options.noises.split(",")]
    out = options.out or (None if options.quick else OUT)
    beside = None if out is None else out.with_name(out.name.replace("_cpu", "_checks_cpu"))
    rows = [] if out is None else read(out)
    checks = [] if beside is None else read(beside)
    have = {(row["noise"], row["start"], row["seed"]) for row in rows}
    wanted = [case for case in wanted if (case.noise, case.start, str(case.seed)) not in have]
    # OpenMP does not survive a fork, and two processes of many threads would wait for one another.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        for done in as_completed([pool.submit(measure, case, options.jobs) for case in wanted]):
            row, more = done.result()
            rows.append(as_text(row))
            checks += more
            print(table(rows[-1:]).splitlines()[-1], flush=True)
            if out is not None and beside is not None:
                write(checks, beside)
                write(rows, out)
    print(table(rows))
    found = expectations(rows, checks)
    print("\n".join([*found, *kernel_rules(checks)]))
    if out is not None and {"none", "lognormal"} <= {row["noise"] for row in rows}:
        draw(checks, out.with_suffix(".png"))
    return 0 if options.quick or not found or found[0].endswith("held") else 1


if __name__ == "__main__":
    sys.exit(main())
