"""What adversarial training does to the kernel of a small network on digits: the orderings that were reported before.

    python benchmarks/ntk_digits.py --threads 2                 # -> results/ntk_digits.csv, about 3 minutes
    python benchmarks/ntk_digits.py --quick                     # a trial, no result

Three convolutions with batch norm (8, 16 and 32 channels) on scikit-learn's 8x8 digits, 12 epochs, clean and with PGD-7
at eps 0.2 (linf), the same seeds for both. The kernel is that of 100 test images, 10 of each class, in eval mode, clean
and after PGD-10; `NTKRecorder` takes it after epochs 4 and 12. Each row of the table is one quantity of one seed in
both networks, with the order that is expected, whether it holds, and the range of values that an earlier study of a
like network found (three seeds, other probe images). Tsilivis & Kempe (NeurIPS 2022) reported the concentration of the
spectrum and the early stillness of the kernel under adversarial training; the specialisation is that of Shan &
Bordelon (2021).
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from records import ROOT, environment
from torch import Tensor, nn

import advfast
from advfast.data import load
from advfast.ntk import NTKRecorder, balanced_probe, metrics

EPS, STEPS, EPOCHS, EARLY, BATCH, LR = 0.2, 7, 12, 4, 64, 0.1
SEEDS, PROBE = 3, 100
METHODS = ("standard", "pgd-at")


@dataclass(frozen=True)
class Row:
    """One quantity of one seed; `ratio` is standard / adversarial."""

    date: str
    commit: str
    machine: str
    threads: int
    torch: str
    seed: int
    quantity: str
    standard: float
    adversarial: float
    ratio: float
    expected: str  # standard > adversarial, or <; empty where no order is expected
    holds: str  # yes | no
    earlier_standard: str
    earlier_adversarial: str


@dataclass(frozen=True)
class Quantity:
    name: str
    column: str  # of the recorder's last row
    expected: str
    earlier_standard: str = ""
    earlier_adversarial: str = ""


QUANTITIES = (
    Quantity("effective rank, clean", "clean_effective_rank", ">", "17.0-17.4", "12.0-13.7"),
    Quantity("largest eigenvalue / trace, clean", "clean_top_share", "<", "0.34-0.35", "0.37-0.42"),
    Quantity("specialization, clean", "clean_specialization", ">", "1.91-2.08", "1.44-1.51"),
    Quantity("specialization, PGD-10", "adversarial_specialization", "", "1.38-1.48", "1.36-1.49"),
    Quantity("specialization lost to PGD-10", "specialization_drop", ">", "0.51-0.63", "-0.05-0.12"),
    Quantity(
        "kernel distance, clean to PGD-10", "clean_adversarial_distance", ">",
        "0.056-0.060", "0.017-0.020",
    ),
    Quantity("kernel distance, epochs 4 to 12, clean", "clean_distance", ">", "0.015-0.018", "0.007-0.012"),
    Quantity(
        "kernel distance, epochs 4 to 12, PGD-10", "adversarial_distance", ">",
        "0.047-0.068", "0.024-0.032",
    ),
)  # fmt: skip


def network() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 1
    for width, stride in ((8, 1), (16, 2), (32, 2)):
        layers += [
            nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 2 * 2, 10))


@dataclass(frozen=True)
class Trained:
    last: dict[str, float]  # the recorder's last row, and the accuracies
    kernel: Tensor  # clean, after the last epoch


def trained(method: str, seed: int, epochs: int, probe: tuple[Tensor, Tensor]) -> Trained:
    torch.manual_seed(seed)
    recorder = NTKRecorder(*probe, at=[min(EARLY, epochs - 1), epochs])
    with tempfile.TemporaryDirectory() as folder:
        result = advfast.train(
            network(), "digits", method=method, eps=EPS, steps=STEPS, epochs=epochs, batch_size=BATCH,
            lr=LR, seed=seed, out=folder, progress=False, callbacks=[recorder],
        )  # fmt: skip
        file = Path(folder) / "ntk" / f"step-{recorder.history[-1]['step']:06d}.npz"
        with np.load(file) as found:
            kernel = torch.from_numpy(found["clean"])
    row = dict(recorder.history[-1])
    row["specialization_drop"] = row["clean_specialization"] - row["adversarial_specialization"]
    assert result.last.test is not None
    row |= {name: result.last.test[name].value for name in ("clean", "pgd-20")}
    return Trained(row, kernel)


def compare(seed: int, epochs: int, probe: tuple[Tensor, Tensor], shared: dict) -> list[Row]:
    """Both networks of one seed."""
    standard, adversarial = (trained(method, seed, epochs, probe) for method in METHODS)
    between = metrics.kernel_distance(standard.kernel, adversarial.kernel)
    print(
        f"seed {seed}: accuracy clean / PGD-20 {standard.last['clean']:.1%} / {standard.last['pgd-20']:.1%} standard, "
        f"{adversarial.last['clean']:.1%} / {adversarial.last['pgd-20']:.1%} adversarial; distance of their kernels "
        f"{between:.3f}; {adversarial.last['share']:.0%} of the time of training was the recorder's",
        flush=True,
    )
    accuracies = (
        Quantity("accuracy, clean", "clean", "", "0.98-0.99", "0.966-0.970"),
        Quantity("accuracy, PGD-20", "pgd-20", "<", "0", "0.59-0.62"),
    )
    rows = []
    for of in (*accuracies, *QUANTITIES):
        a, b = standard.last[of.column], adversarial.last[of.column]
        holds = {">": a > b, "<": a < b}.get(of.expected)
        rows.append(Row(
            **shared, seed=seed, quantity=of.name, standard=round(a, 6), adversarial=round(b, 6),
            ratio=round(a / b, 4) if b else float("inf"),
            expected=f"standard {of.expected} adversarial" if of.expected else "-",
            holds="-" if holds is None else "yes" if holds else "no",
            earlier_standard=of.earlier_standard, earlier_adversarial=of.earlier_adversarial,
        ))  # fmt: skip
    return rows


def table(rows: list[Row]) -> str:
    lines = [f"{'quantity':<42}{'standard':>20}{'adversarial':>20}  expected, holds in"]
    for name in dict.fromkeys(row.quantity for row in rows):
        of = [row for row in rows if row.quantity == name]
        cells = [
            f"{min(values):.3g} .. {max(values):.3g}"
            for values in ([row.standard for row in of], [row.adversarial for row in of])
        ]
        end = ""
        if of[0].expected != "-":
            end = (
                f"{of[0].expected.split()[1]}, {sum(row.holds == 'yes' for row in of)} of {len(of)}"
            )
        lines.append(f"{name:<42}{cells[0]:>20}{cells[1]:>20}  {end}".rstrip())
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "ntk_digits.csv"
    )
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs; writes nothing")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    shared = environment("cpu")
    common = {
        name: getattr(shared, name) for name in ("date", "commit", "machine", "threads", "torch")
    }
    test = load("digits").test
    assert test is not None
    probe = test.batch(balanced_probe(test.labels, 20 if options.quick else PROBE))
    rows: list[Row] = []
    for seed in range(1 if options.quick else SEEDS):
        rows += compare(seed, 2 if options.quick else EPOCHS, probe, common)
    if not options.quick:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(asdict, rows))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
