"""What cycle detection saves in long attacks on a robust network, and whether the results stay the same.

    python benchmarks/cycles.py --threads 2 --out benchmarks/results/cycles_cpu.csv
    python benchmarks/cycles.py --quick                                                # a trial, no result

PGD with one random start on Fashion-MNIST test images, eps 0.1, cycles="auto" against cycles="off" in turns, the same
starts. The network is trained first (a few minutes), or read from --checkpoint. Exits with 1 if a sample is broken by
one of the two and not by the other.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from unittest.mock import patch

import torch
import trained
from records import environment
from torch import Tensor, nn

from advfast import PGDAttack
from advfast.attacks import cycles, engine

EPS = trained.EPS
LONG = 200
ALPHAS = {"eps/4": EPS / 4, "0.01": 0.01, "2/255": 2 / 255}


@dataclass(frozen=True)
class Row:
    date: str
    commit: str
    machine: str
    threads: int
    load: float | None
    torch: str
    network: str
    samples: int
    eps: float
    alpha: str
    steps: int
    fold: bool
    rounds: int
    seconds_off: float  # median
    seconds_auto: float
    speedup: float
    saved_share: float  # of the samples x steps, those that "auto" did not compute
    cycled_share: float  # of the samples, those that were found to repeat themselves
    periods: str  # period:samples
    equal_share: float  # of the pixels, with the same bits from both
    equal_samples: float  # of the samples
    robust_off: float  # accuracy on the final iterates
    robust_auto: float


class Counted(cycles.Cycles):
    """The detector of the loop, which also counts the steps that are made."""

    made: list[Counted]

    def __init__(self, steps: int, x: Tensor) -> None:
        super().__init__(steps, x)
        self.computed = 0
        type(self).made.append(self)

    def look(self, step: int, x: Tensor) -> None:
        super().look(step, x)
        self.computed += len(x) if step else 0


@dataclass(frozen=True)
class Run:
    images: Tensor
    seconds: float


def timed(attack: PGDAttack, images: Tensor, labels: Tensor) -> Run:
    begin = time.perf_counter()
    result = attack(images, labels)
    return Run(result, time.perf_counter() - begin)


def compare(
    model: nn.Module, images: Tensor, labels: Tensor, alpha: float, steps: int, *, fold: bool, rounds: int
) -> dict[str, object]:  # fmt: skip
    """The columns of a row that are measured."""
    attacks = {
        kind: PGDAttack(model, EPS, alpha, steps, seed=1, cycles=kind, fold=fold)
        for kind in ("off", "auto")
    }
    runs: dict[str, list[Run]] = {"off": [], "auto": []}
    attacks["off"](images[:8], labels[:8])  # tracing and the trial of the network are in no time
    Counted.made = []
    with patch.object(engine, "Cycles", Counted):
        for turn in range(rounds):
            for kind in ("off", "auto") if turn % 2 else ("auto", "off"):
                runs[kind].append(timed(attacks[kind], images, labels))
    detector = Counted.made[-1]
    found = detector.stats()
    off, auto = (runs[kind][-1].images for kind in ("off", "auto"))
    same = (off == auto).flatten(1)
    seconds = {kind: statistics.median(run.seconds for run in runs[kind]) for kind in runs}
    with torch.no_grad():
        robust = [float((model(x).argmax(1) == labels).double().mean()) for x in (off, auto)]
    periods = Counter(found.periods).items()
    return {
        "samples": len(images), "steps": steps, "fold": fold, "rounds": rounds,
        "seconds_off": seconds["off"], "seconds_auto": seconds["auto"],
        "speedup": seconds["off"] / seconds["auto"],
        "saved_share": 1 - detector.computed / (len(images) * steps),
        "cycled_share": found.found / len(images),
        "periods": " ".join(f"{p}:{n}" for p, n in sorted(periods)) or "none",
        "equal_share": float(same.double().mean()),
        "equal_samples": float(same.all(1).double().mean()),
        "robust_off": robust[0], "robust_auto": robust[1],
    }  # fmt: skip


def text(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def write(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: text(v) for name, v in asdict(row).items()} for row in rows)


def table(rows: list[Row]) -> str:
    lines = [
        "| PGD steps | alpha | fold | off, s | auto, s | faster | steps saved | samples cycled | equal bits | robust |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.steps} | {row.alpha} | {row.fold} | {row.seconds_off:.3g} | {row.seconds_auto:.3g} "
            f"| {row.speedup:.2f} | {row.saved_share:.1%} | {row.cycled_share:.1%} | {row.equal_share:.2%} "
            f"| {row.robust_off:.1%}, {row.robust_auto:.1%} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small and on made-up images")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--checkpoint", type=Path, help="of mnist-cnn, in place of training it")
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own")
    parser.add_argument("--out", type=Path, help="CSV to write")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    shared = environment("cpu")
    if options.quick:
        recipe, samples, lengths = trained.QUICK["mnist-cnn"], 16, [40, 200]
        train, (images, labels) = trained.prototypes(trained.needed(recipe), samples)
    else:
        recipe, lengths = trained.SMALL, options.steps
        train, (images, labels) = trained.fashion_mnist(trained.needed(recipe), options.samples)
    model = trained.obtain(recipe, train, options.checkpoint)
    rows = []
    for steps in lengths:
        for name, alpha in ALPHAS.items():
            # Without permission to change the batch nothing is saved until all samples repeat: it shows that the
            # results stay the same, in the shorter runs.
            for fold in (True, False) if steps <= LONG else (True,):
                rounds = 1 if options.quick or steps > LONG or not fold else 3
                measured = compare(model, images, labels, alpha, steps, fold=fold, rounds=rounds)
                rows.append(
                    Row(
                        date=shared.date, commit=shared.commit, machine=shared.machine,
                        threads=shared.threads, load=shared.load, torch=shared.torch,
                        network=recipe.network, eps=EPS, alpha=name, **measured,  # type: ignore[arg-type]
                    )
                )  # fmt: skip
                print(
                    f"pgd-{steps} alpha {name} fold={fold}: periods {rows[-1].periods}", flush=True
                )
                if options.out is not None:
                    write(options.out, rows)
    print(table(rows))
    unlike = [row for row in rows if row.robust_off != row.robust_auto or
              (not row.fold and row.equal_share < 1)]  # fmt: skip
    for row in unlike:
        print(
            f"not the same: {row.steps} steps, alpha {row.alpha}, fold={row.fold}", file=sys.stderr
        )
    return 1 if unlike else 0


if __name__ == "__main__":
    sys.exit(main())
