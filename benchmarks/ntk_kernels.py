"""The ntk kernels on a CPU: advfast's against their definition in torch and against the rate of a large product.

    python benchmarks/ntk_kernels.py --threads 2 --out benchmarks/results/ntk_kernels_cpu.csv

Each is checked against float64 first; one that is wrong gets no time. All take turns, the product among them. FLOPs are
those of the cheapest way to the result in that order: the patch Gram by shifted sums where that is cheaper.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from records import environment
from torch.nn import functional as F

from advfast.kernels.ntk import ntk_chain_, ntk_hadamard_, ntk_patch_gram, ntk_rows

PAIRS = {"chain": ntk_chain_, "hadamard": ntk_hadamard_}


@dataclass(frozen=True)
class Layer:
    what: str
    side: int  # of its input
    e: int
    c: int
    n: int
    kernel: int = 3
    stride: int = 1

    def taps(self) -> torch.Tensor:
        """int32 [S, T]"""
        pixels = torch.arange(1, self.side**2 + 1, dtype=torch.float32)
        image = F.pad(pixels.view(1, 1, self.side, self.side), [1] * 4)
        unfolded = F.unfold(image, self.kernel, stride=self.stride)[0].T
        return (unfolded.to(torch.int32) - 1).contiguous()


STAGES = [
    Layer("ResNet-18 width 64, stage 3", 8, 256, 256, 8),
    Layer("ResNet-18 width 64, stage 4", 4, 512, 512, 8),
]
ROWS = [
    Layer("ResNet-18 width 16, stage 1", 32, 16, 16, 4),
    Layer("ResNet-18 width 16, stage 2", 16, 32, 32, 4),
    Layer("ResNet-18 width 64, stage 1", 32, 64, 64, 2),
    Layer("ResNet-18 width 64, stage 2", 16, 128, 128, 2),
    Layer("small CNN, convolution 1", 28, 1, 16, 16, 4, 2),
    Layer("small CNN, convolution 2", 14, 16, 32, 16, 4, 2),
]


def macs(order: str, layer: Layer, readouts: int, positions: int, taps: int) -> float:
    """Multiplications and additions of all pairs, or of all rows."""
    pixels, n = layer.side**2, layer.n
    if order == "rows":
        return n * readouts * layer.c * positions * taps * layer.e
    gram = positions**2 * taps * layer.e
    gram = min(gram, pixels**2 * layer.e + taps * positions**2)
    if order == "chain":
        gram += readouts * positions**2 * layer.c + readouts**2 * positions * layer.c
    elif order == "hadamard":
        gram += readouts**2 * positions**2 * layer.c
    return n**2 * gram


def problem(order: str, layer: Layer, readouts: int) -> tuple[Callable, float]:
    """run(impl, dtype) -> result, and the MACs in it."""
    generator = torch.Generator().manual_seed(0)
    taps = layer.taps()
    x = torch.randn(layer.n, 1, layer.side**2, layer.e, generator=generator)
    g = torch.randn(layer.n, readouts, 1, len(taps), layer.c, generator=generator)
    size = layer.n * readouts

    def run(impl: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        a, b = x.to(dtype), g.to(dtype)
        precision = {"precision": "fp64" if dtype == torch.float64 else "fp32"}
        if order == "rows":
            return ntk_rows(a, b, taps, impl=impl)
        if order == "patch_gram":
            return ntk_patch_gram(a, a, taps, taps, impl=impl, **precision)
        out = torch.zeros(size, size, dtype=dtype)
        return PAIRS[order](out, a, b, a, b, taps, taps, impl=impl, **precision)

    return run, macs(order, layer, readouts, len(taps), taps.shape[1])


def seconds(runs: list[Callable], rounds: int) -> list[float]:
    """Medians of calls that take turns, the first of each not counted."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds + 1):
        for found, run in zip(times, runs, strict=True):
            begin = time.perf_counter()
            run()
            found.append(time.perf_counter() - begin)
    return [statistics.median(found[1:]) for found in times]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own")
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each (default: 15)")
    parser.add_argument("--out", type=Path, help="CSV to write")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    shared = environment("cpu")
    a, b = torch.randn(2, 1024, 1024)
    cases = [(o, layer, r) for o in ("chain", "hadamard") for layer in STAGES for r in (10, 1)]
    cases += [("patch_gram", layer, 1) for layer in STAGES]
    cases += [("rows", layer, r) for layer in ROWS for r in (10, 1)]
    rows = []
    print(
        f"{'op':<11} {'layer':<28} {'R':>3} {'torch ms':>9} {'advfast':>8} {'ratio':>6} {'GFLOP/s':>8} "
        f"{'sgemm':>6} {'%':>4}"
    )
    for order, layer, readouts in cases:
        run, work = problem(order, layer, readouts)
        exact = run("reference", torch.float64)
        for impl in ("reference", "cpp"):
            if not (run(impl) - exact).norm() <= 1e-5 * exact.norm():
                raise SystemExit(f"{order}, {layer.what}, R={readouts}: {impl} is wrong")
        theirs, ours, product = seconds(
            [lambda run=run: run("reference"), lambda run=run: run("cpp"), lambda: a @ b],
            options.rounds,
        )
        rate, sgemm = 2e-9 * work / ours, 2e-9 * 1024**3 / product
        print(
            f"{order:<11} {layer.what:<28} {readouts:>3} {theirs * 1e3:9.3f} {ours * 1e3:8.3f} {theirs / ours:6.2f} "
            f"{rate:8.1f} {sgemm:6.1f} {100 * rate / sgemm:4.0f}"
        )
        shape = f"n={layer.n} {layer.side}x{layer.side} e={layer.e} c={layer.c} {layer.kernel}x{layer.kernel}"
        rows.append({
            "date": shared.date, "commit": shared.commit, "machine": shared.machine,
            "threads": shared.threads, "load": shared.load, "torch": shared.torch, "op": order,
            "layer": layer.what, "shape": f"{shape}/{layer.stride}", "readouts": readouts,
            "torch_ms": f"{theirs * 1e3:.4g}", "advfast_ms": f"{ours * 1e3:.4g}",
            "ratio": f"{theirs / ours:.3g}", "gflop_per_s": f"{rate:.4g}",
            "sgemm_gflop_per_s": f"{sgemm:.4g}", "percent_of_sgemm": f"{100 * rate / sgemm:.3g}",
        })  # fmt: skip
    if options.out:
        with open(options.out, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
