"""Catastrophic overfitting on digits with an injected feature: who collapses, and whether the detector says so.

    python benchmarks/catastrophic.py --jobs 2        # -> results/catastrophic_cpu.csv
    python benchmarks/catastrophic.py --quick         # a trial of the program, no result

The data set of Ortiz-Jimenez et al. (TMLR 2023) for 8x8 digits: every image, also a test image, carries beta V of its
class, with V in {-1, 1} from the signs of a low cosine, V of class c + 5 the negative of that of class c. 900 images
are trained on, 97 choose the best epoch (which is not used: results are of the last), 800 are tested. A CNN of four 3x3
convolutions (32, 32, 64, 64 channels, the third of stride 2) with batch normalisation, batches of 64, SGD with momentum
0.9 and weight decay 5e-4, a triangular rate up to 0.1, crafting in train mode, no augmentation, linf.

The paper's attacks are not clipped to a box, and pixels are where x + beta V puts them. Here images must be in [0, 1]
and every method clips to it: so all are shifted and scaled, x -> s (x + m), with m = 0.20 + 3 eps room on either side
and s = 1 / (1 + 2 m), eps and beta scaled alike; the network's first layer undoes it. No clip can then act, also not
for n-fgsm (3 eps). eps 0.25 and beta are those of the unscaled images.

Expected, written down before the first run (2026-11-30):
 * fgsm at beta 0.10 collapses: FGSM minus PGD-50 test accuracy above 0.9; at beta 0 it is below 0.5;
 * pgd-at and n-fgsm at beta 0.10 do not: the difference below 0.5, PGD-50 above 0.3;
 * gradalign with lam 2 does not: the difference below 0.5; its PGD-50 is not expected to be good;
 * fgsm-rs: nothing is expected; a step of 1.25 eps from a random start is known to collapse later than fgsm;
 * the detector (a check after each epoch, PGD-10 accuracy down by more than 0.2, or 0.5 below FGSM: at this eps the
   usual 0.3 is reached by any network) fires for fgsm at beta 0.10, and neither for it at beta 0 nor for pgd-at and
   n-fgsm.
Accuracies are those on the attacked images. The program says of each whether it held, and ends with 1 if the first did
not.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from records import ROOT, environment
from torch import Tensor, nn

import advfast
from advfast.attacks import FGSM, PGDAttack
from advfast.data import inject
from advfast.studies.networks import conv_net
from advfast.studies.room import Room
from advfast.training import CatastrophicOverfitting

EPS, EPOCHS, BATCH, LR = 0.25, 60, 64, 0.1
GREATEST_BETA = 0.20
ROOM = Room(GREATEST_BETA + 3 * EPS)
SCALE = ROOM.scale
OUT = ROOT / "benchmarks/results/catastrophic_cpu.csv"


@dataclass(frozen=True)
class Case:
    method: str
    beta: float
    seed: int
    epochs: int
    steps: int | None = None
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Row:
    date: str
    commit: str
    machine: str
    jobs: int  # runs at a time, each on one thread
    load: float
    torch: str
    method: str
    options: str
    beta: float  # of the unscaled images, as eps
    eps: float
    seed: int
    epochs: int
    clean: float  # accuracy on the test images, last epoch
    fgsm: float
    pgd50: float
    tested: int
    fired: str  # "epoch N" of the detector's first alarm, or "silent"
    seconds: float


def cases(seeds: list[int], epochs: int) -> list[Case]:
    # Long ones first, so that two processes end together.
    return [
        case
        for seed in seeds
        for case in (
            Case("pgd-at", 0.10, seed, epochs, 10),
            Case("gradalign", 0.10, seed, epochs, options=(("lam", 2.0),)),
            Case("n-fgsm", 0.10, seed, epochs),
            Case("fgsm", 0.10, seed, epochs),
            Case("fgsm", 0.0, seed, epochs),
            Case("fgsm", GREATEST_BETA, seed, epochs),
            Case("fgsm-rs", 0.10, seed, epochs),
        )
    ]


def images(beta: float) -> dict[str, tuple[Tensor, Tensor]]:
    """The three parts, scaled into the box."""
    splits = advfast.data.load("digits")
    parts = [splits.train, splits.test]
    x, y = (torch.cat([part.batch(torch.arange(len(part)))[i] for part in parts]) for i in (0, 1))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    x = ROOM.put(inject((x, y), beta)[0])
    names, ends = ("train", "val", "test"), (0, 900, 997, 1797)
    return {n: (x[a:b], y[a:b]) for n, a, b in zip(names, ends, ends[1:], strict=False)}


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return ROOM.network(conv_net((1, 8, 8), 10, (32, 32, 64, 64), (1, 1, 2, 1)), 1)


def measure(case: Case, jobs: int) -> Row:
    torch.set_num_threads(1)
    shared = environment("cpu")
    parts = images(case.beta)
    detector = CatastrophicOverfitting(gap=0.5, action="report")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = advfast.train(
            network(case.seed), parts["train"], val=parts["val"], method=case.method,
            method_options=dict(case.options), eps=SCALE * EPS, steps=case.steps, bn="train-update",
            epochs=case.epochs, batch_size=BATCH, lr=LR, schedule="triangular", seed=case.seed,
            callbacks=[detector], out=folder, overwrite=True, progress=False,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        model = advfast.load(result.last.checkpoint, network(case.seed))
    found = accuracies(model, *parts["test"])
    alarms = [str(row["epoch"]) for row in detector.history if row["fired"]]
    return Row(
        shared.date, shared.commit, shared.machine, jobs, shared.load or 0.0, shared.torch, case.method,
        ";".join(f"{k}={v}" for k, v in case.options) or "-", case.beta, EPS, case.seed, case.epochs,
        found["clean"], found["fgsm"], found["pgd50"], len(parts["test"][1]),
        f"epoch {alarms[0]}" if alarms else "silent", seconds,
    )  # fmt: skip


def accuracies(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """On the attacked images alone: `evaluate` counts what is wrong without an attack as wrong under it, and networks
    that have collapsed are right on FGSM images more often than on clean ones."""
    model.eval()
    eps = SCALE * EPS
    attacked = {
        "clean": x,
        "fgsm": FGSM(model, eps)(x, y),
        "pgd50": PGDAttack(model, eps, eps / 4, 50, seed=0)(x, y),
    }
    with torch.no_grad():
        return {
            name: float((model(images).argmax(1) == y).double().mean())
            for name, images in attacked.items()
        }


def expectations(rows: list[Row]) -> list[tuple[str, bool]]:
    """What the docstring expects, of every seed, and whether it held."""

    def of(method: str, beta: float) -> list[Row]:
        return [row for row in rows if (row.method, row.beta) == (method, beta)]

    def gaps(found: list[Row]) -> list[float]:
        return [row.fgsm - row.pgd50 for row in found]

    said: list[tuple[str, bool]] = []

    def say(what: str, values: list[float], held: bool) -> None:
        if values:
            said.append((f"{what}: {', '.join(f'{value:.3f}' for value in values)}", held))

    collapsed, plain = gaps(of("fgsm", 0.10)), gaps(of("fgsm", 0.0))
    say("fgsm, beta 0.10: FGSM - PGD-50 above 0.9", collapsed, min(collapsed, default=1) > 0.9)
    say("fgsm, beta 0: FGSM - PGD-50 below 0.5", plain, max(plain, default=0) < 0.5)
    for method in ("pgd-at", "n-fgsm", "gradalign"):
        found = of(method, 0.10)
        gap, robust = gaps(found), [row.pgd50 for row in found]
        say(f"{method}, beta 0.10: FGSM - PGD-50 below 0.5", gap, max(gap, default=0) < 0.5)
        if method != "gradalign":
            say(f"{method}, beta 0.10: PGD-50 above 0.3", robust, min(robust, default=1) > 0.3)
    for method, beta, wanted in (
        ("fgsm", 0.10, True), ("fgsm", 0.0, False), ("pgd-at", 0.10, False), ("n-fgsm", 0.10, False),
    ):  # fmt: skip
        found = of(method, beta)
        if found:
            heard = ", ".join(row.fired for row in found)
            held = all((row.fired != "silent") == wanted for row in found)
            does = "fires" if wanted else "is silent"
            said.append((f"detector {does}: {method}, beta {beta:g}: {heard}", held))
    return said


def table(rows: list[Row]) -> str:
    lines = [
        "| method | beta | seed | clean, % | FGSM, % | PGD-50, % | detector | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row.method, row.beta, row.seed)):
        accuracies = " | ".join(f"{100 * a:.1f}" for a in (row.clean, row.fgsm, row.pgd50))
        lines.append(
            f"| `{row.method}` {row.options.strip('-')} | {row.beta:g} | {row.seed} | {accuracies} "
            f"| {row.fired} | {row.seconds:.0f} |"
        )
    return "\n".join(lines)


def write(rows: list[Row], path: Path) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(row).items()}
            )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three epochs, no result")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one thread")
    parser.add_argument("--methods", help="only these, such as fgsm,n-fgsm")
    parser.add_argument("--out", type=Path, help=f"CSV; default: {OUT.relative_to(ROOT)}")
    options = parser.parse_args(arguments)
    wanted = cases([int(seed) for seed in options.seeds.split(",")], 3 if options.quick else EPOCHS)
    if options.methods:
        wanted = [case for case in wanted if case.method in options.methods.split(",")]
    out = options.out or (None if options.quick else OUT)
    # OpenMP does not survive a fork, and two processes of many threads would wait for one another.
    os.environ["OMP_NUM_THREADS"] = "1"
    rows: list[Row] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        for done in as_completed([pool.submit(measure, case, options.jobs) for case in wanted]):
            rows.append(done.result())
            print(table(rows[-1:]).splitlines()[-1], flush=True)
            if out is not None:
                write(rows, out)
    print(table(rows))
    found = expectations(rows)
    for what, held in found:
        print(f"{what}: {'held' if held else 'FAILED'}")
    return 0 if options.quick or not found or found[0][1] else 1


if __name__ == "__main__":
    sys.exit(main())
