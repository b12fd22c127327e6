"""What a step of each training method takes, beside the bare model's passes in the same run.

    python benchmarks/methods.py --threads 2 --out benchmarks/results/methods_cpu.csv
    python benchmarks/methods.py --quick                                    # a trial, no result

Every method as it comes (and pgd-at with each modifier that is made without options) trains ResNet-18 of width 16 on
batches of 128 made-up CIFAR-shaped images by advfast.train. After each of its steps the bare model takes a forward and
a backward pass on the same batch, to the weights, in train mode: a third of that is one pass-unit. `over_model` is the
time of a step over its pass-units at this rate: what is above 1 is the trainer's own, below 1 is what the engine saves.
"""

from __future__ import annotations

import argparse
import copy
import csv
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import networks
import torch
from records import environment
from suite_train import Case, make_data
from timing import Times
from torch import Tensor, nn

import advfast
from advfast.training import methods, modifiers
from advfast.training.callbacks import TrainState

EPS, LR = 8 / 255, 0.05
WARMUPS = 2
CHANGING = ("eps-warmup", "steps-ramp")
"""Modifiers under which a step is not always the same work."""


@dataclass(frozen=True)
class Row:
    date: str  # UTC, start of the run
    commit: str
    machine: str
    threads: int
    load: float  # average of the last minute before the run
    torch: str
    network: str
    shape: str  # of a batch
    method: str
    modifier: str  # "-" for none
    steps: int  # of the attack, 0 without one
    pass_units: float  # forward, backward to the input, backward to the weights: 1 each
    ms_p20: float  # of a step
    ms_p50: float
    ms_p80: float
    unit_ms: float  # of the bare model, median in the same run
    over_model: float  # ms_p50 / (pass_units * unit_ms)
    rounds: int


@dataclass
class Beside:
    """A callback: times each step, and after it the bare model on its batch; ends the run after `rounds` steps."""

    model: nn.Module
    rounds: int
    ms: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    started: float = 0.0

    def on_train_begin(self, state: TrainState) -> None:
        self.started = time.perf_counter()

    def on_epoch_end(self, state: TrainState) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, state: TrainState) -> None:
        self.ms.append((time.perf_counter() - self.started) * 1e3)
        assert state.batch is not None
        labels = state.batch.labels
        before = time.perf_counter()
        self._passes(state.batch.images, labels if labels.dim() == 1 else labels.argmax(1))
        self.bare.append((time.perf_counter() - before) * 1e3)
        state.stop = len(self.ms) >= self.rounds
        self.started = time.perf_counter()

    def _passes(self, images: Tensor, labels: Tensor) -> None:
        # The images' gradient belongs to it: a pass-unit goes back through every layer.
        loss = nn.functional.cross_entropy(self.model(images.detach().requires_grad_()), labels)
        loss.backward()
        self.model.zero_grad(set_to_none=True)


def kinds() -> Iterator[tuple[str, str]]:
    """(method, modifier), "-" for none."""
    for name in methods.METHODS:
        yield name, "-"
    for name in modifiers.MODIFIERS:
        if name in CHANGING:
            continue
        try:
            modifiers.make(name)
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        yield "pgd-at", name


def measure(
    case: Case, data: tuple[Tensor, Tensor], method: str, modifier: str, rounds: int
) -> dict[str, object]:
    """The last columns of a row."""
    model = networks.make(case.network, case.batch[1])
    beside = Beside(copy.deepcopy(model).train(), WARMUPS + rounds)
    chosen = () if modifier == "-" else (modifiers.make(modifier),)
    with tempfile.TemporaryDirectory() as folder:
        advfast.train(
            model, data, method=method, modifiers=chosen, eps=EPS, epochs=1,
            val=(data[0][:64], data[1][:64]), batch_size=case.batch[0], lr=LR, seed=0, out=folder,
            overwrite=True, progress=False, callbacks=[beside],
        )  # fmt: skip
    made = methods.make(method, nn.Identity(), methods.Settings(EPS, None, None, "linf"))
    units = made.passes() + sum(one.extra_passes() for one in chosen)
    mine, unit = Times(tuple(beside.ms[WARMUPS:])), Times(tuple(beside.bare[WARMUPS:])).median / 3
    steps = made.steps if made.trains_on == "adversarial" else 0
    return {
        "steps": steps, "pass_units": units, "ms_p20": mine.percentile(20),
        "ms_p50": mine.median, "ms_p80": mine.percentile(80), "unit_ms": unit,
        "over_model": mine.median / (units * unit), "rounds": len(mine.ms),
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
        "| method | modifier | attack steps | pass-units | ms a step | ms a pass-unit | step / its passes |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.method} | {row.modifier} | {row.steps} | {row.pass_units:g} | {row.ms_p50:.4g} "
            f"| {row.unit_ms:.1f} | {row.over_model:.2f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small network, few steps")
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own")
    parser.add_argument("--rounds", type=int, default=8, help="steps that are timed")
    parser.add_argument("--only", type=re.compile, metavar="REGEX", help='of "METHOD MODIFIER"')
    parser.add_argument("--out", type=Path, help="CSV to write")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    shared = environment("cpu")
    rounds = 2 if options.quick else options.rounds
    images = (WARMUPS + rounds) * (16 if options.quick else 128)
    if options.quick:
        case = Case("small-cnn", (16, 1, 8, 8), images, epochs=1)
    else:
        case = Case("resnet18-w16", (128, 3, 32, 32), images, epochs=1)
    data = make_data(case)
    rows = []
    for method, modifier in kinds():
        if options.only is not None and not options.only.search(f"{method} {modifier}"):
            continue
        rows.append(
            Row(
                date=shared.date, commit=shared.commit, machine=shared.machine,
                threads=shared.threads, load=shared.load or 0.0, torch=shared.torch,
                network=case.network, shape=case.size, method=method, modifier=modifier,
                **measure(case, data, method, modifier, rounds),  # type: ignore[arg-type]
            )
        )  # fmt: skip
        print(table(rows[-1:]).splitlines()[-1], flush=True)
        if options.out is not None:
            write(options.out, rows)
    print(table(rows))
    return 0 if rows else 2


if __name__ == "__main__":
    sys.exit(main())
