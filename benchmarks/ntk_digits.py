"""What adversarial training does to the kernel of a small network on digits: the table that was reported before.

    python benchmarks/ntk_digits.py --threads 1                 # -> results/ntk_digits.csv, about 3 minutes
    python benchmarks/ntk_digits.py --quick                     # a trial, no result

Three convolutions with batch norm (8, 16 and 32 channels) on scikit-learn's 8x8 digits, 12 epochs, clean and with PGD-7
at eps 0.2 (linf), the same seeds for both. Kernels are those of 100 test images, 10 of each class, in eval mode, clean
and after PGD-10; `NTKRecorder` takes them after every epoch. A row is one quantity of one seed, of two networks or two
ways to look at one ("left" and "right").

Expected: what an earlier study of a like network found (three seeds, other probe images), in the columns `earlier_*`,
and of it the orders and bounds in `expected`; those between the trained networks were written down on 2026-11-29,
those before training, between networks of the same epoch and from epoch to epoch on 2026-11-30, each before its first
run here. That the values themselves (`in_range`: within the earlier range, to its last digit) are met is not expected:
they depend on the images and on details of the network.
 * Before training, in eval mode, batch normalisation does nothing and the kernel is nearly of rank one; standardised
   images make it less so, batch statistics (of the probe) by an order of magnitude.
 * Trained adversarially the kernel has a lower rank, more of its trace in one eigenvalue, less specialised outputs
   (Shan & Bordelon, 2021) that lose less to an attack, and less distance from clean to attacked images.
 * Standard and adversarial kernels of the same epoch are near (below 0.1), which is what a clean prefix rests on.
 * The kernel moves in the first two epochs (more than 0.01 an epoch) and is nearly still after the fourth (at most
   0.01), and stiller from epoch 4 to 12 under adversarial training (Tsilivis & Kempe, NeurIPS 2022).
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from records import ROOT, environment
from torch import Tensor

import advfast
from advfast import models
from advfast.data import load, pixel_statistics
from advfast.models.normalise import Normalised
from advfast.ntk import NTKRecorder, balanced_probe, metrics, ntk
from advfast.studies.networks import conv_bn_net

EPS, STEPS, EPOCHS, EARLY, BATCH, LR = 0.2, 7, 12, 4, 64, 0.1
SEEDS, PROBE = (0, 1, 2), 100
METHODS = ("standard", "pgd-at")
OUT = ROOT / "benchmarks/results/ntk_digits.csv"


@dataclass(frozen=True)
class Row:
    """One quantity of one seed; "none" where a column does not apply."""

    date: str
    commit: str
    machine: str
    threads: int
    load: float
    torch: str
    seed: int
    quantity: str
    left: str  # what the values are of
    right: str
    left_value: float
    right_value: float | str
    ratio: float | str  # left / right
    expected: str
    holds: str  # yes | no
    earlier_left: str  # "lowest .. highest", or one value
    earlier_right: str
    in_range: str  # yes | no


@dataclass(frozen=True)
class Expected:
    text: str
    holds: Callable[[float, float], bool]


MORE = Expected("left > right", lambda a, b: a > b)
LESS = Expected("left < right", lambda a, b: a < b)
TEN_TIMES = Expected("left < right / 10", lambda a, b: a < b / 10)
SMALL = Expected("left < 0.1", lambda a, b: a < 0.1)
NOTHING = Expected("left < 1e-6", lambda a, b: a < 1e-6)
MOVES = Expected("both > 0.01", lambda a, b: min(a, b) > 0.01)
STILL = Expected("both <= 0.01", lambda a, b: max(a, b) <= 0.01)


@dataclass(frozen=True)
class Quantity:
    name: str
    left: str = "standard"
    right: str = "adversarial"
    expected: Expected | None = None
    earlier_left: str = "none"
    earlier_right: str = "none"


RANK, SHARE = "effective rank", "largest eigenvalue / trace"
KINDS = ("clean", "adversarial")
SAME_EPOCH = {0: "0.00", 1: "0.03", 2: "0.06", 4: "0.05", 6: "0.03"}
EVAL, IN_BATCH, RAW, STANDARDISED = "eval mode", "batch statistics", "raw", "standardised"
BEFORE = (
    Quantity(f"{RANK}, before training, eval mode", RAW, STANDARDISED, LESS, "1.4 .. 1.5", "2.8"),
    Quantity(f"{SHARE}, before training, eval mode", RAW, STANDARDISED, MORE, "0.95", "0.83"),
    Quantity(f"{RANK}, before training, raw", EVAL, IN_BATCH, TEN_TIMES, "1.4 .. 1.5", "19 .. 20"),
    Quantity(f"{SHARE}, before training, raw", EVAL, IN_BATCH, MORE, "0.95", "0.33 .. 0.36"),
)
AFTER = {
    "clean": Quantity(
        "accuracy, clean", earlier_left="0.98 .. 0.99", earlier_right="0.966 .. 0.970"
    ),
    "pgd-20": Quantity(
        "accuracy, PGD-20", expected=LESS, earlier_left="0.00", earlier_right="0.59 .. 0.62"
    ),
    "clean_effective_rank": Quantity(
        f"{RANK}, clean", "standard", "adversarial", MORE, "17.0 .. 17.4", "12.0 .. 13.7"
    ),
    "clean_top_share": Quantity(
        f"{SHARE}, clean", "standard", "adversarial", LESS, "0.34 .. 0.35", "0.37 .. 0.42"
    ),
    "clean_specialization": Quantity(
        "specialization, clean", "standard", "adversarial", MORE, "1.91 .. 2.08", "1.44 .. 1.51"
    ),
    "adversarial_specialization": Quantity(
        "specialization, PGD-10", earlier_left="1.38 .. 1.48", earlier_right="1.36 .. 1.49"
    ),
    "specialization_drop": Quantity(
        "specialization lost to PGD-10",
        "standard",
        "adversarial",
        MORE,
        "0.51 .. 0.63",
        "-0.05 .. 0.12",
    ),
    "clean_adversarial_distance": Quantity(
        "kernel distance, clean to PGD-10",
        "standard",
        "adversarial",
        MORE,
        "0.056 .. 0.060",
        "0.017 .. 0.020",
    ),
}
"""Column of the recorder's last row -> what is said of it."""
LATE = {
    "clean": Quantity(
        "kernel distance, epochs 4 to 12, clean", "standard", "adversarial", MORE, "0.015 .. 0.018", "0.007 .. 0.012"
    ),
    "adversarial": Quantity(
        "kernel distance, epochs 4 to 12, PGD-10", "standard", "adversarial", MORE, "0.047 .. 0.068", "0.024 .. 0.032"
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Trained:
    last: dict[str, float]  # the recorder's last row, and the accuracies
    kernels: list[dict[str, Tensor]]  # after each epoch, from 0 on: clean and adversarial


def trained(method: str, seed: int, epochs: int, probe: tuple[Tensor, Tensor]) -> Trained:
    torch.manual_seed(seed)
    recorder = NTKRecorder(*probe)
    with tempfile.TemporaryDirectory() as folder:
        result = advfast.train(
            conv_bn_net((1, 8, 8), 10), "digits", method=method, eps=EPS, steps=STEPS, epochs=epochs,
            batch_size=BATCH, lr=LR, seed=seed, out=folder, progress=False, callbacks=[recorder],
        )  # fmt: skip
        kernels = []
        for record in recorder.history:
            with np.load(Path(folder) / "ntk" / f"step-{record['step']:06d}.npz") as found:
                kernels.append({kind: torch.from_numpy(found[kind]) for kind in KINDS})
    row = dict(recorder.history[-1])
    row["specialization_drop"] = row["clean_specialization"] - row["adversarial_specialization"]
    assert result.last.test is not None
    row |= {name: result.last.test[name].value for name in ("clean", "pgd-20")}
    return Trained(row, kernels)


def before_training(seed: int, probe: tuple[Tensor, Tensor]) -> dict[str, dict[str, float]]:
    """RANK and SHARE of the raw network in eval mode, with standardised images, and with batch statistics."""
    torch.manual_seed(seed)
    net = conv_bn_net((1, 8, 8), 10)
    networks = {
        EVAL: net.eval(),
        STANDARDISED: Normalised(net, *pixel_statistics(load("digits").train)).eval(),
        IN_BATCH: models.fixed_statistics(net, probe[0]),
    }
    found = {}
    for name, network in networks.items():
        kernel = ntk(network, probe[0])
        found[name] = {RANK: metrics.effective_rank(kernel), SHARE: metrics.top_share(kernel)}
    return found | {RAW: found[EVAL]}


def compare(
    seed: int, epochs: int, probe: tuple[Tensor, Tensor]
) -> Iterator[tuple[Quantity, float, float | None]]:
    """(what, left, right) of one seed."""
    initial = before_training(seed, probe)
    for of in BEFORE:
        measure = of.name.split(",")[0]
        yield of, initial[of.left][measure], initial[of.right][measure]
    standard, adversarial = (trained(method, seed, epochs, probe) for method in METHODS)
    for column, of in AFTER.items():
        yield of, standard.last[column], adversarial.last[column]

    def distances(kind: str, first: int, then: int) -> list[float]:
        return [
            metrics.kernel_distance(network.kernels[first][kind], network.kernels[then][kind])
            for network in (standard, adversarial)
        ]

    for kind, of in LATE.items():
        yield of, *distances(kind, min(EARLY, epochs), epochs)
    for epoch, earlier in SAME_EPOCH.items():
        if epoch <= epochs:
            pair = (network.kernels[epoch]["clean"] for network in (standard, adversarial))
            of = Quantity(
                f"kernel distance, standard to adversarial, clean, epoch {epoch}", "between them", "none",
                SMALL if epoch else NOTHING, earlier,
            )  # fmt: skip
            yield of, metrics.kernel_distance(*pair), None
    for epoch in range(1, epochs + 1):
        expected = MOVES if epoch <= 2 else STILL if epoch > EARLY else None
        of = Quantity(f"kernel distance, epochs {epoch - 1} to {epoch}, clean", expected=expected)
        yield of, *distances("clean", epoch - 1, epoch)


def as_row(seed: int, of: Quantity, left: float, right: float | None, shared: dict) -> Row:
    judged = [
        within(value, earlier)
        for value, earlier in ((left, of.earlier_left), (right, of.earlier_right))
        if value is not None and earlier != "none"
    ]
    holds = (
        None if of.expected is None else of.expected.holds(left, left if right is None else right)
    )
    return Row(
        **shared, seed=seed, quantity=of.name, left=of.left, right=of.right, left_value=round(left, 6),
        right_value="none" if right is None else round(right, 6),
        ratio=round(left / right, 4) if right else "none",
        expected="none" if of.expected is None else of.expected.text, holds=word(holds),
        earlier_left=of.earlier_left, earlier_right=of.earlier_right,
        in_range=word(all(judged) if judged else None),
    )  # fmt: skip


def word(held: bool | None) -> str:
    return "none" if held is None else "yes" if held else "no"


def within(value: float, earlier: str) -> bool:
    """Whether a value, rounded to the digits of the range, is in it."""
    low, _, high = earlier.partition(" .. ")
    digits = len(low.partition(".")[2])
    return float(low) <= round(value, digits) <= float(high or low)


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != tuple(f.name for f in fields(Row)):
            raise ValueError(
                f"{path} has other columns than this version writes: give another --out"
            )
        return list(reader)


def write(rows: list[dict[str, str]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def table(rows: list[dict[str, str]]) -> str:
    """Markdown: each quantity over the seeds."""
    lines = [
        "| quantity | left | right | left / right | expected | held | within the earlier range |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["quantity"] for row in rows):
        of = [row for row in rows if row["quantity"] == name]
        cells = [f"{of[0]['left']} {_span(of, 'left_value')}"]
        cells.append(
            "-" if of[0]["right"] == "none" else f"{of[0]['right']} {_span(of, 'right_value')}"
        )
        cells += [_span(of, "ratio"), of[0]["expected"].replace("none", "-")]
        cells += [_count(of, "holds"), _count(of, "in_range")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _span(rows: list[dict[str, str]], column: str) -> str:
    values = [float(row[column]) for row in rows if row[column] != "none"]
    return f"{min(values):.3g} to {max(values):.3g}" if values else "-"


def _count(rows: list[dict[str, str]], column: str) -> str:
    said = [row[column] for row in rows if row[column] != "none"]
    return f"{said.count('yes')} of {len(said)}" if said else "-"


def expectations(rows: list[dict[str, str]]) -> list[str]:
    """A line for every expectation: held where it did for every seed."""
    lines = []
    for name in dict.fromkeys(row["quantity"] for row in rows if row["expected"] != "none"):
        of = [row for row in rows if row["quantity"] == name]
        held = all(row["holds"] == "yes" for row in of)
        sides = f" (left {of[0]['left']}, right {of[0]['right']})"
        lines.append(
            f"{name}: {of[0]['expected']}{sides}: {'held' if held else 'FAILED'}, {_count(of, 'holds')} seeds"
        )
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own")
    parser.add_argument("--seeds", help=f"default {','.join(map(str, SEEDS))}")
    parser.add_argument("--out", type=Path, help=f"CSV; default: {OUT.relative_to(ROOT)}")
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs; writes nothing")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    seeds = SEEDS[:1] if options.quick else SEEDS
    if options.seeds:
        seeds = tuple(int(seed) for seed in options.seeds.split(","))
    out = None if options.quick else options.out or OUT
    rows = [] if out is None else read(out)
    test = load("digits").test
    assert test is not None
    probe = test.batch(balanced_probe(test.labels, 20 if options.quick else PROBE))
    for seed in seeds:
        if any(row["seed"] == str(seed) for row in rows):
            continue
        machine = environment("cpu")
        names = ("date", "commit", "machine", "threads", "load", "torch")
        shared = {name: getattr(machine, name) for name in names}
        found = [
            as_row(seed, of, left, right, shared)
            for of, left, right in compare(seed, 2 if options.quick else EPOCHS, probe)
        ]
        rows += [{name: str(value) for name, value in asdict(row).items()} for row in found]
        print(f"seed {seed}: {len(found)} quantities", flush=True)
        if out is not None:
            write(rows, out)
    mine = [row for row in rows if row["seed"] in {str(seed) for seed in seeds}]
    print(table(mine))
    print("\n".join(expectations(mine)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
