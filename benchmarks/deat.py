"""DEAT: PGD-AT by positive-negative momentum against SGD, at the rates that matter, and what a step of each takes.

    python benchmarks/deat.py --threads 2                    # -> results/deat_cpu.csv and deat_cost_cpu.csv
    python benchmarks/deat.py --threads 2 --autoattack 1000  # the same with more of AutoAttack: over an hour
    python benchmarks/deat.py --only cost --threads 2        # the times alone
    python benchmarks/deat.py --quick                        # a trial of the program, no result

The small CNN on digits (eps 0.15, 10 steps, 30 epochs; all 500 test images) and on Fashion-MNIST (eps 0.1, 7 steps, 8
epochs on 10,000 images; the first 1,000 test images), one learning-rate cycle, batches of 128, weight decay 5e-4,
three seeds. SGD with momentum 0.9 at its rate r, against PNM (betas 0.9 and 1) at 10 r, the rule; at 10 sqrt(5) r, at
which its effective step is that of SGD; and at r, as the released script has it, 22 times below. On digits also AdamW
against AdaPNM, at the same rate. Held-out images (PGD-10) choose the best epoch. Tested are the best and the last one:
clean, PGD-20, and AutoAttack on the first so many of the same images. A run whose loss becomes NaN is tested with what
it saved last, its status says so, and it has no part in the means. Rows are written as they come; rows that the files
have are not measured again.

Times of a step: every optimiser trains a copy of the same network by PGD-10 on the same batch, in turns whose order
rotates; the ratio is the median over the rounds of (time of its turn / time of SGD's turn).

Expected, written down before the first run (2026-11-30), of means over the seeds, last epoch:
 * pnm at 10 r is not more than 1 point below sgd in PGD-20 ("works" in DEAT's sense: at least as robust);
 * pnm at r is below pnm at 10 r in PGD-20, by more than 1 point on Fashion-MNIST, where epochs are few;
 * pnm at the same effective step as sgd is within 2 points of it, or above: its noise is larger only from step to step;
 * adapnm is within 2 points of adamw in PGD-20;
 * the gap between best and last (PGD-20) of pnm at 10 r is not larger than that of sgd by more than 1 point;
 * AutoAttack is at most PGD-20 on the same images; optimisers that are over 3 points apart in PGD-20 there have the
   same order in AutoAttack;
 * a step of pnm takes at most 3 % more than one of sgd, on the small CNN and on ResNet-18 of width 16.
The program says of each whether it held. The order by AutoAttack was first expected of all optimisers; the 3
points were added on 2026-11-30 after a --quick trial, in which several had the same accuracy on 8 images, before
any result.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from records import ROOT, environment
from rows import as_text, held, mean_std, read, write
from torch import nn

import advfast
from advfast.data import Batch, Source, stratified_split
from advfast.training import NonFiniteLoss, methods, optim
from advfast.training.checkpoint import read as read_checkpoint
from advfast.training.step import TrainStep

RESULTS = ROOT / "benchmarks/results"
OUT, COST_OUT = RESULTS / "deat_cpu.csv", RESULTS / "deat_cost_cpu.csv"
BATCH = 128
KEY = ("data", "images", "epochs", "variant", "seed", "which", "autoattack_images", "threads")
COST_KEY = ("network", "optimizer", "threads")


@dataclass(frozen=True)
class Row:
    date: str
    commit: str
    machine: str
    threads: int
    load: float
    torch: str
    data: str
    images: int
    epochs: int
    variant: str
    optimizer: str
    lr: float
    effective_step: float
    seed: int
    which: str  # best (held out) | last
    epoch: int
    val_robust: float  # PGD-10, held out
    clean: float
    pgd20: float
    autoattack: float
    pgd20_there: float  # on the images of AutoAttack
    tested: int
    autoattack_images: int
    epoch_seconds: float  # median
    status: str  # ok, or how the run ended


@dataclass(frozen=True)
class Cost:
    date: str
    commit: str
    machine: str
    threads: int
    load: float
    torch: str
    network: str
    weights: int
    batch: str
    attack_steps: int
    optimizer: str
    ms_p50: float  # of a step
    ratio_to_sgd: float
    update_ms: float  # of the optimiser's own step, median
    rounds: int


@dataclass(frozen=True)
class Task:
    data: str
    images: int
    epochs: int
    eps: float
    steps: int
    lr: float  # of SGD
    adam: float | None  # rate of AdamW; None leaves both out
    held_out: int
    tested: int

    def variants(self) -> dict[str, tuple[str, float]]:
        found = {
            "sgd": ("sgd", self.lr),
            "pnm-rule": ("pnm", 10 * self.lr),
            "pnm-same-step": ("pnm", 10 * math.sqrt(5) * self.lr),
            "pnm-same-rate": ("pnm", self.lr),
        }
        if self.adam is not None:
            found |= {"adamw": ("adamw", self.adam), "adapnm": ("adapnm", self.adam)}
        return found


TASKS = (
    Task("digits", 1150, 30, 0.15, 10, 0.2, 0.002, held_out=147, tested=500),
    Task("fashion-mnist", 10000, 8, 0.1, 7, 0.1, None, held_out=1000, tested=1000),
)
QUICK = (
    Task("digits", 200, 2, 0.15, 2, 0.2, 0.002, held_out=100, tested=60),
    Task("fashion-mnist", 300, 1, 0.1, 2, 0.1, None, held_out=100, tested=60),
)
NETWORKS: dict[str, tuple[tuple[int, ...], dict[str, int]]] = {
    "small-cnn": ((BATCH, 1, 28, 28), {}),
    "resnet18": ((BATCH, 3, 32, 32), {"width": 16}),
}


def measure(
    task: Task, seeds: list[int], autoattack: int, have: set[tuple[str, ...]]
) -> Iterator[list[Row]]:
    splits = advfast.data.load(task.data)
    kept, held_out = stratified_split(splits.train.labels, task.held_out, seed=0)
    train, val = splits.train.subset(kept[: task.images]), splits.train.subset(held_out)
    test = splits.test.subset(torch.arange(task.tested))
    names = list(task.variants())
    for seed in seeds:
        # Another one begins each time, so that a slow minute of the machine does not hit the same one.
        turn = seed % len(names)
        for variant in names[turn:] + names[:turn]:
            key = (task.data, str(task.images), str(task.epochs), variant, str(seed), "last")
            if (*key, str(autoattack), str(torch.get_num_threads())) not in have:
                yield run(task, variant, seed, (train, val, test), autoattack)


def run(
    task: Task, variant: str, seed: int, parts: tuple[Source, Source, Source], autoattack: int
) -> list[Row]:
    """Trains and tests; no rows where no epoch was completed."""
    optimizer, lr = task.variants()[variant]
    shared, status = environment("cpu"), "ok"
    with tempfile.TemporaryDirectory() as folder:
        try:
            advfast.train(
                "small-cnn", parts[0], val=parts[1], eps=task.eps, steps=task.steps, epochs=task.epochs,
                batch_size=BATCH, optimizer=optimizer, lr=lr, seed=seed, out=folder, overwrite=True,
                progress=False,
            )  # fmt: skip
        except NonFiniteLoss as error:
            status = str(error).partition(";")[0]
        path = Path(folder, "history.json")
        if not path.exists():
            print(f"{task.data} {variant} seed {seed}: no epoch was completed: {status}")
            return []
        history = json.loads(path.read_text())["history"]
        step = optim.effective_step(optim.make(optimizer, nn.Linear(1, 1), lr=lr))
        rows: list[Row] = []
        reports: dict[int, tuple[float, ...]] = {}
        for which in ("best", "last"):
            checkpoint = Path(folder, f"{which}.pt")
            epoch = read_checkpoint(checkpoint)["epoch"]
            if epoch not in reports:
                reports[epoch] = tested(task, advfast.load(checkpoint), parts[2], autoattack)
            rows.append(
                Row(
                    shared.date, shared.commit, shared.machine, shared.threads, shared.load or 0.0,
                    shared.torch, task.data, task.images, task.epochs, variant, optimizer, lr,
                    step or math.nan, seed, which, epoch, history[epoch - 1]["val_robust"],
                    *reports[epoch], task.tested, autoattack,
                    statistics.median(row["seconds"] for row in history), status,
                )
            )  # fmt: skip
    return rows


def tested(task: Task, model: nn.Module, test: Source, autoattack: int) -> tuple[float, ...]:
    """clean, PGD-20; AutoAttack and PGD-20 on the first so many."""
    whole = advfast.evaluate(model, test, attacks=("clean", "pgd-20"), eps=task.eps)
    first = advfast.evaluate(
        model, test, attacks=("pgd-20", "autoattack"), eps=task.eps, limit=autoattack, sanity=False
    )
    return (
        whole["clean"].value,
        whole["pgd-20"].value,
        first["autoattack"].value,
        first["pgd-20"].value,
    )


def costs(network: str, names: tuple[str, ...], rounds: int, steps: int) -> list[Cost]:
    """A step of each optimiser on copies of the same network, in turns."""
    shape, options = NETWORKS[network]
    torch.manual_seed(0)
    first = advfast.models.make(network, in_shape=shape[1:], classes=10, **options)
    if network != "small-cnn":
        first = first.to(memory_format=torch.channels_last)
    batch = Batch(torch.rand(shape), torch.arange(shape[0]) % 10, None)
    shared = environment("cpu")
    made: dict[str, tuple[TrainStep, methods.Method]] = {}
    for name in names:
        model = copy.deepcopy(first).train()
        optimizer = optim.make(name, model, lr=optim.rate(0.01, name))
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        method = methods.make("pgd-at", model, methods.Settings(8 / 255, None, steps, "linf"))
        made[name] = TrainStep(model, optimizer, (), scaler), method
    times: dict[str, list[float]] = {name: [] for name in names}
    updates: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-1, rounds):
        order = [*names[turn % len(names) :], *names[: turn % len(names)]]
        for name in order:
            step, method = made[name]
            started = time.perf_counter()
            step(method, batch)
            ended = time.perf_counter()
            step.optimizer.step()  # with the gradients that are there
            if turn >= 0:  # the first one makes what is kept
                times[name].append(ended - started)
                updates[name].append(time.perf_counter() - ended)
    weights = sum(p.numel() for p in first.parameters())
    return [
        Cost(
            shared.date, shared.commit, shared.machine, shared.threads, shared.load or 0.0,
            shared.torch, network, weights, "x".join(map(str, shape)), steps, name,
            1e3 * statistics.median(times[name]),
            statistics.median(a / b for a, b in zip(times[name], times["sgd"], strict=True)),
            1e3 * statistics.median(updates[name]), rounds,
        )
        for name in names
    ]  # fmt: skip


def table(rows: list[dict[str, str]]) -> str:
    """Means and sample deviations over the seeds that ended, last epoch, and PGD-20 of the best one."""
    lines = [
        "| data | optimiser | lr | effective step | clean, % | PGD-20, % | AutoAttack, % | PGD-20, best | s an epoch |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for data, variant in dict.fromkeys((row["data"], row["variant"]) for row in rows):
        runs = [row for row in rows if (row["data"], row["variant"]) == (data, variant)]
        last, best = (
            [row for row in runs if row["which"] == which and row["status"] == "ok"]
            for which in ("last", "best")
        )
        lost = sum(row["which"] == "last" and row["status"] != "ok" for row in runs)
        note = f" ({lost} of {lost + len(last)} seeds lost: NaN)" if lost else ""
        cells = ["-"] * 5
        if last:
            cells = [mean_std(last, name) for name in ("clean", "pgd20", "autoattack")]
            seconds = statistics.median(float(row["epoch_seconds"]) for row in last)
            cells += [mean_std(best, "pgd20"), f"{seconds:.2f}"]
        lr, step = float(runs[0]["lr"]), float(runs[0]["effective_step"])
        lines.append(
            f"| {data} | `{variant}`{note} | {lr:.4g} | {step:.4g} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def cost_table(rows: list[dict[str, str]]) -> str:
    lines = [
        "| network | weights | optimiser | ms a step | of SGD's | update alone, ms |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['network']} | {row['weights']} | `{row['optimizer']}` | {float(row['ms_p50']):.1f} | "
        f"{float(row['ratio_to_sgd']):.3f} | {float(row['update_ms']):.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def expectations(rows: list[dict[str, str]], cost_rows: list[dict[str, str]]) -> list[str]:
    """What the docstring expects, and whether it held."""

    def mean(data: str, variant: str, name: str = "pgd20", which: str = "last") -> float | None:
        found = [
            100 * float(row[name])
            for row in rows
            if (row["data"], row["variant"], row["which"], row["status"]) == (data, variant, which, "ok")
        ]  # fmt: skip
        return statistics.fmean(found) if found else None

    said = []
    for data in dict.fromkeys(row["data"] for row in rows):
        sgd, rule = mean(data, "sgd"), mean(data, "pnm-rule")
        same, nominal = mean(data, "pnm-same-step"), mean(data, "pnm-same-rate")
        if sgd is not None and rule is not None:
            text = f"{data}: pnm at 10 r at most 1 point below sgd: {rule:.1f} against {sgd:.1f}"
            said.append(f"{text}: {held(rule >= sgd - 1)}")
        if rule is not None and nominal is not None:
            least = 1 if data == "fashion-mnist" else 0
            text = f"{data}: pnm at r more than {least} below pnm at 10 r: {nominal:.1f} against {rule:.1f}"
            said.append(f"{text}: {held(nominal < rule - least)}")
        if sgd is not None and same is not None:
            text = f"{data}: pnm at the same effective step at most 2 points below sgd: {same:.1f}"
            said.append(f"{text} against {sgd:.1f}: {held(same >= sgd - 2)}")
        adamw, adapnm = mean(data, "adamw"), mean(data, "adapnm")
        if adamw is not None and adapnm is not None:
            text = f"{data}: adapnm within 2 points of adamw: {adapnm:.1f} against {adamw:.1f}"
            said.append(f"{text}: {held(abs(adapnm - adamw) <= 2)}")
        bests = mean(data, "sgd", which="best"), mean(data, "pnm-rule", which="best")
        if bests[0] is not None and bests[1] is not None and sgd is not None and rule is not None:
            gaps = bests[1] - rule, bests[0] - sgd
            text = f"{data}: best - last of pnm at 10 r at most 1 point over that of sgd: "
            said.append(
                f"{text}{gaps[0]:.1f} against {gaps[1]:.1f}: {held(gaps[0] <= gaps[1] + 1)}"
            )
        said += _autoattack(data, rows, mean)
    for row in cost_rows:
        if row["optimizer"] == "pnm":
            ratio = float(row["ratio_to_sgd"])
            text = f"a step of pnm at most 3 % over sgd on {row['network']}: {100 * (ratio - 1):+.1f} %"
            said.append(f"{text}: {held(ratio <= 1.03)}")
    return said


def _autoattack(data: str, rows: list[dict[str, str]], mean: Any) -> list[str]:
    mine = [row for row in rows if row["data"] == data]
    over = sum(float(row["autoattack"]) > float(row["pgd20_there"]) for row in mine)
    said = [
        f"{data}: AutoAttack at most PGD-20, same images: {over} of {len(mine)} over it: {held(not over)}"
    ]
    means = {
        variant: (mean(data, variant, "autoattack"), mean(data, variant, "pgd20_there"))
        for variant in dict.fromkeys(row["variant"] for row in mine)
    }
    trained = {variant: pair for variant, pair in means.items() if pair[0] is not None}
    turned = [
        f"{low} {trained[low][0]:.1f}, {high} {trained[high][0]:.1f}"
        for low, high in itertools.permutations(trained, 2)
        if trained[low][1] < trained[high][1] - 3 and trained[low][0] >= trained[high][0]
    ]
    if len(trained) > 1:
        text = f"{data}: the same order by AutoAttack where PGD-20 is over 3 points apart"
        said.append(f"{text}, but {'; '.join(turned) or 'none'}: {held(not turned)}")
    return said


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few images and epochs, one seed")
    parser.add_argument("--only", choices=("digits", "fashion-mnist", "cost"))
    parser.add_argument("--seeds", default="0,1,2", help="default 0,1,2")
    parser.add_argument("--autoattack", type=int, default=128, help="images; default 128")
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own")
    parser.add_argument("--out", type=Path, help=f"CSV; default: {OUT.relative_to(ROOT)}")
    parser.add_argument("--cost-out", type=Path, help=f"CSV; default: {COST_OUT.relative_to(ROOT)}")
    options = parser.parse_args(arguments)
    if options.autoattack < 1:
        parser.error(f"--autoattack must be 1 image or more, got {options.autoattack}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    seeds = [0] if options.quick else [int(seed) for seed in options.seeds.split(",")]
    autoattack = 8 if options.quick else options.autoattack
    out = options.out or (None if options.quick else OUT)
    cost_out = options.cost_out or (None if options.quick else COST_OUT)
    cost_rows = read(cost_out) if cost_out is not None else []
    if options.only in (None, "cost"):
        have = {tuple(row[name] for name in COST_KEY) for row in cost_rows}
        for network in NETWORKS:
            if (network, "pnm", str(torch.get_num_threads())) in have:
                continue
            rounds = 1 if options.quick else 60 if network == "small-cnn" else 20
            steps = 1 if options.quick else 10
            found = costs(network, ("sgd", "pnm", "adamw", "adapnm"), rounds, steps)
            cost_rows += [as_text(row) for row in found]
            if cost_out is not None:
                write(cost_rows, cost_out)
    rows = read(out) if out is not None else []
    have = {tuple(row[name] for name in KEY) for row in rows}
    for task in QUICK if options.quick else TASKS:
        if options.only not in (None, task.data):
            continue
        for runs in measure(task, seeds, autoattack, have):
            for row in runs:
                print(
                    f"{row.data} seed {row.seed} {row.variant:<13} {row.which} (epoch {row.epoch}): clean "
                    f"{row.clean:.1%}  PGD-20 {row.pgd20:.1%}  AutoAttack {row.autoattack:.1%}  "
                    f"{row.epoch_seconds:.2f} s an epoch",
                    flush=True,
                )
            rows += [as_text(row) for row in runs]
            if out is not None:
                write(rows, out)
    mine = [row for row in rows if row["autoattack_images"] == str(autoattack)]
    print(table(mine), cost_table(cost_rows), sep="\n\n")
    print("\n".join(expectations(mine, cost_rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
