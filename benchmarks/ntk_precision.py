"""What the precision of the products does to a kernel, against float64 throughout.

    python benchmarks/ntk_precision.py [--quick] [--threads 2] [--out benchmarks/results/ntk_precision_cpu.csv]

ResNet-18 of width 16, BN statistics as after training, all 10 logits. On a CPU the precisions of a GPU are emulated:
operands are rounded as the kernels round them, products are summed in float32. "tf32 truncated" is what a GPU gives
when float32 bits go into its matrix unit as they are. `signed` is the mean of (Theta - exact) / exact on the diagonal:
a rounding to nearest has next to none. `least` is the smallest eigenvalue over the largest, `least_exact` that of the
exact kernel.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from unittest import mock

import networks
import torch
from records import environment
from torch import Tensor

from advfast.kernels.ntk import reference
from advfast.ntk import ntk


@dataclass(frozen=True)
class Row:
    date: str
    commit: str
    machine: str
    threads: int
    torch: str
    network: str
    samples: int
    readouts: int
    precision: str
    orders: str
    relative: float  # ||Theta - exact||_F / ||exact||_F
    largest: float  # of |Theta - exact| / sqrt(Theta_ii Theta_jj)
    signed: float
    least: float
    least_exact: float


def truncated(t: Tensor) -> Tensor:
    """float32 cut off at a 10-bit mantissa."""
    return (t.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a trial, no result")
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own")
    parser.add_argument("--out", type=Path, help="CSV to write")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    shared = environment("cpu")
    name, samples = ("resnet18-w4", 4) if options.quick else ("resnet18-w16", 16)
    model = networks.make(name, 3)
    x = torch.rand(samples, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    exact = ntk(model, x, precision="fp64", check=False).matrix()
    scale = exact.diagonal().sqrt()
    spectrum = torch.linalg.eigvalsh(exact)
    rows = []
    print(
        f"{'precision':<16} {'orders':<6} {'relative':>9} {'largest':>9} {'signed':>9} {'least':>9}"
    )
    for precision in ("fp32", "bf16x3", "tf32", "tf32 truncated", "bf16"):
        for orders in ("M", "auto"):
            rounding = truncated if precision.endswith("truncated") else reference.round_tf32
            with mock.patch.object(reference, "round_tf32", rounding):
                result = ntk(model, x, precision=precision.split()[0], method=orders, check=False)
            theta = result.matrix().double()
            error = theta - exact
            values = torch.linalg.eigvalsh(theta)
            row = Row(
                shared.date, shared.commit, shared.machine, shared.threads or 0, shared.torch, name, samples,
                result.readouts, precision, orders, float(error.norm() / exact.norm()),
                float((error.abs() / scale / scale[:, None]).max()),
                float((error.diagonal() / exact.diagonal()).mean()),
                float(values[0] / values[-1]), float(spectrum[0] / spectrum[-1]),
            )  # fmt: skip
            rows.append(row)
            numbers = (row.relative, row.largest, row.signed, row.least)
            print(
                f"{precision:<16} {orders:<6} {' '.join(f'{v:9.2g}' for v in numbers)}", flush=True
            )
    if options.out:
        with open(options.out, "w", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(
                {key: f"{v:.3g}" if isinstance(v, float) else v for key, v in asdict(row).items()}
                for row in rows
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
