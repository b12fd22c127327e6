"""Every training method on Fashion-MNIST: accuracy under strong PGD, seconds, pass-units.

    python benchmarks/methods_fashion.py --threads 2                    # small CNN, 58,000 images, 3 seeds
    python benchmarks/methods_fashion.py --threads 2 --network resnet18 # width 16, 10,000 images: three methods, 1 seed
    python benchmarks/methods_fashion.py --quick                        # a trial, no result

linf, eps 0.1, batches of 128, SGD with momentum 0.9 and weight decay 5e-4, one learning-rate cycle; 2,000 training
images are held out and choose the best epoch (PGD-10), the test set does not. Tested are the best and the last epoch on
the first 1,000 test images (resnet18: 500): clean, PGD-20, and PGD-50 with 10 restarts (alpha = eps/4), each sample by
its worst restart. Every method has the same number of epochs, except free, whose epochs are divided by its repeats,
rounded up. Rows go to results/methods_fashion_cpu.csv as they come; rows that the file has are not measured again.

Expected, written down before the first run (2026-11-30):
 * PGD-50-10 of pgd-at and trades is above that of fgsm-rs, mean over the seeds, last epoch;
 * mart has the highest PGD-20 or is within 2 points of pgd-at; its clean accuracy is below that of pgd-at;
 * fgsm (zero start) may collapse at eps 0.1: if its PGD-50-10 is below 10 % in any seed it is called collapsed;
 * standard is at 0 to 5 % in PGD-50-10;
 * PGD-50-10 is below PGD-20 by less than 3 points for pgd-at, trades and mart.
The program says of each whether it held.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from records import ROOT, environment
from torch import nn

import advfast
from advfast.data import TensorSource, pixel_statistics, stratified_split
from advfast.evaluation import EvalReport
from advfast.training import TrainResult
from advfast.training.methods import METHODS, Settings, make

EPS, STEPS, BATCH, LR, HELD_OUT, TESTED = 0.1, 7, 128, 0.1, 2000, 1000
FREE = 4  # repeats
OPTIONS: dict[str, dict[str, Any]] = {
    "free": {"method_options": {"m": FREE}},
    # It sums the gradients of its m rounds; the published rate is lower too.
    "yopo": {"method_options": {"m": 3, "n": 3}, "lr": 0.04},
}
OUT = ROOT / "benchmarks/results/methods_fashion_cpu.csv"


@dataclass(frozen=True)
class Row:
    date: str
    commit: str
    machine: str
    threads: int
    load: float
    torch: str
    network: str
    images: int
    epochs: int
    method: str
    seed: int
    which: str  # best (held out) | last
    epoch: int
    val_robust: float  # PGD-10, held out
    clean: float
    pgd20: float
    pgd50x10: float
    tested: int
    train_seconds: float  # the epochs alone
    images_per_second: float
    pass_units: float  # of a step


KEY = ("network", "images", "method", "seed", "which", "threads")


@dataclass(frozen=True)
class Task:
    network: str
    images: int
    epochs: int
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    tested: int = TESTED
    restarts: int = 10
    steps: int = 50


def tasks(network: str, quick: bool) -> Task:
    if quick:
        return Task("small-cnn", 1500, 1, ("standard", "pgd-at"), (0,), 100, 2, 10)
    if network == "resnet18":
        return Task("resnet18", 10000, 5, ("fgsm-rs", "pgd-at", "trades"), (0,), tested=500)
    return Task("small-cnn", 58000, 5, tuple(METHODS), (0, 1, 2))


def make_network(task: Task, source: TensorSource, seed: int) -> nn.Module:
    mean, std = pixel_statistics(source)
    torch.manual_seed(seed)
    width = {"width": 16} if task.network == "resnet18" else {}
    return advfast.models.make(
        task.network, in_shape=(1, 28, 28), classes=10, mean=mean, std=std, **width
    )


def run(task: Task, method: str, seed: int, splits: Any, folder: str) -> TrainResult:
    kept, held_out = stratified_split(splits.train.labels, HELD_OUT, seed=0)
    source = splits.train.subset(kept[: task.images])
    settings = {"lr": LR} | OPTIONS.get(method, {})
    return advfast.train(
        make_network(task, source, seed), source, val=splits.train.subset(held_out),
        method=method, eps=EPS, steps=STEPS, epochs=epochs_of(task, method), batch_size=BATCH,
        seed=seed, out=folder, overwrite=True, progress=False, **settings,
    )  # fmt: skip


def epochs_of(task: Task, method: str) -> int:
    return -(-task.epochs // FREE) if method == "free" else task.epochs


def pass_units(method: str, model: nn.Module) -> float:
    options = OPTIONS.get(method, {}).get("method_options", {})
    settings = Settings(eps=EPS, alpha=None, steps=STEPS, norm="linf", options=options)
    return make(method, model, settings).passes()


def measure(task: Task, have: set[tuple[str, ...]]) -> Iterator[list[Row]]:
    splits = advfast.data.load("fashion-mnist")
    test = splits.test.subset(torch.arange(task.tested))
    for seed in task.seeds:
        # Another one begins each time, so that a slow minute of the machine does not hit the same one.
        order = task.methods[seed:] + task.methods[:seed]
        for method in order:
            key = (task.network, str(task.images), method, str(seed), "last")
            if (*key, str(torch.get_num_threads())) in have:
                continue
            shared = environment("cpu")
            with tempfile.TemporaryDirectory() as folder:
                result = run(task, method, seed, splits, folder)
                rows, reports = [], {}
                for which, selected in (("best", result.best), ("last", result.last)):
                    if selected.epoch not in reports:
                        model = advfast.load(selected.checkpoint)
                        reports[selected.epoch] = tested(task, model, test)
                    report = reports[selected.epoch]
                    rows.append(
                        Row(
                            shared.date, shared.commit, shared.machine, shared.threads, shared.load or 0.0,
                            shared.torch, task.network, task.images, epochs_of(task, method), method, seed,
                            which, selected.epoch, selected.metrics["val_robust"],
                            report["clean"].value, report["pgd-20"].value, report["strong"].value,
                            task.tested, sum(row["seconds"] for row in result.history),
                            statistics.median(row["images_per_second"] for row in result.history),
                            pass_units(method, result.model),
                        )
                    )  # fmt: skip
            yield rows


def tested(task: Task, model: nn.Module, test: TensorSource) -> EvalReport:
    strong = advfast.PGDAttack(
        model, eps=EPS, alpha=EPS / 4, steps=task.steps, restarts=task.restarts, seed=0, early_stop=True
    )  # fmt: skip
    attacks = {"clean": "clean", "pgd-20": "pgd-20", "strong": strong}
    return advfast.evaluate(model, test, attacks=attacks, eps=EPS, seed=0, progress=False)


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(rows: list[dict[str, str]], path: Path) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def as_text(row: Row) -> dict[str, str]:
    return {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in asdict(row).items()}


def table(rows: list[dict[str, str]], network: str) -> str:
    """Means and sample deviations over the seeds, last and best epoch; times are medians."""
    lines = [
        "| method | clean, % | PGD-20, % | PGD-50x10, % | the same, best epoch | training, s | pass-units |",
        "|---|---|---|---|---|---|---|",
    ]
    mine = [row for row in rows if row["network"] == network]
    for method in dict.fromkeys(row["method"] for row in mine):
        of = {w: [r for r in mine if (r["method"], r["which"]) == (method, w)] for w in ("last", "best")}  # fmt: skip
        cells = [mean_std(of["last"], name) for name in ("clean", "pgd20", "pgd50x10")]
        cells.append(mean_std(of["best"], "pgd50x10"))
        seconds = statistics.median(float(row["train_seconds"]) for row in of["last"])
        lines.append(
            f"| `{method}` | {' | '.join(cells)} | {seconds:.1f} | {float(of['last'][0]['pass_units']):g} |"
        )
    return "\n".join(lines)


def mean_std(rows: list[dict[str, str]], name: str) -> str:
    values = [100 * float(row[name]) for row in rows]
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{deviation}"


def expectations(rows: list[dict[str, str]], network: str) -> list[str]:
    """What the docstring expects, and whether it held."""

    def values(method: str, name: str) -> list[float]:
        return [
            100 * float(row[name])
            for row in rows
            if (row["network"], row["method"], row["which"]) == (network, method, "last")
        ]

    def mean(method: str, name: str) -> float:
        return statistics.fmean(values(method, name))

    found = {row["method"] for row in rows if row["network"] == network}
    said = []
    for method in ("pgd-at", "trades"):
        if {method, "fgsm-rs"} <= found:
            a, b = mean(method, "pgd50x10"), mean("fgsm-rs", "pgd50x10")
            said.append(
                f"{method} above fgsm-rs in PGD-50x10: {a:.1f} against {b:.1f}: {_held(a > b)}"
            )
    if {"mart", "pgd-at"} <= found:
        a, b = mean("mart", "pgd20"), mean("pgd-at", "pgd20")
        said.append(
            f"mart not 2 points below pgd-at in PGD-20: {a:.1f} against {b:.1f}: {_held(a > b - 2)}"
        )
        a, b = mean("mart", "clean"), mean("pgd-at", "clean")
        said.append(f"mart below pgd-at in clean accuracy: {a:.1f} against {b:.1f}: {_held(a < b)}")
    if "fgsm" in found:
        least = min(values("fgsm", "pgd50x10"))
        said.append(
            f"fgsm collapsed in a seed: {'yes' if least < 10 else 'no'} (least {least:.1f})"
        )
    if "standard" in found:
        most = max(values("standard", "pgd50x10"))
        said.append(f"standard at most 5 % in PGD-50x10: {most:.1f}: {_held(most <= 5)}")
    for method in ("pgd-at", "trades", "mart"):
        if method in found:
            gap = mean(method, "pgd20") - mean(method, "pgd50x10")
            said.append(
                f"PGD-50x10 of {method} within 3 points of PGD-20: {gap:.1f}: {_held(gap < 3)}"
            )
    return said


def _held(true: bool) -> str:
    return "held" if true else "FAILED"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few images, two methods, one seed")
    parser.add_argument("--network", default="small-cnn", choices=("small-cnn", "resnet18"))
    parser.add_argument("--methods", help="only these, such as pgd-at,trades")
    parser.add_argument("--seeds", help="such as 0,1,2")
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own")
    parser.add_argument("--out", type=Path, help=f"CSV; default: {OUT.relative_to(ROOT)}")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    task = tasks(options.network, options.quick)
    changes: dict[str, Any] = {}
    if options.methods:
        changes["methods"] = tuple(options.methods.split(","))
    if options.seeds:
        changes["seeds"] = tuple(int(seed) for seed in options.seeds.split(","))
    task = Task(**{**asdict(task), **changes})
    out = options.out or (None if options.quick else OUT)
    rows = read(out) if out is not None else []
    have = {tuple(row[name] for name in KEY) for row in rows}
    for found in measure(task, have):
        for row in found:
            print(
                f"seed {row.seed} {row.method:<10} {row.which} (epoch {row.epoch}): clean {row.clean:.1%}  "
                f"PGD-20 {row.pgd20:.1%}  PGD-50x10 {row.pgd50x10:.1%}  {row.train_seconds:.1f} s",
                flush=True,
            )
        rows += [as_text(row) for row in found]
        if out is not None:
            write(rows, out)
    print(table(rows, task.network))
    print("\n".join(expectations(rows, task.network)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
