"""The input gradient of first convolutions: advfast's kernel against torch's, on a CPU.

    python benchmarks/conv.py --threads 2 --out benchmarks/results/conv_cpu.csv

Each is checked against float64 first; one that is wrong gets no time. The two take turns.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from pathlib import Path

import torch
from records import environment

from advfast.kernels import conv2d_input_grad

# batch, channels, outputs, side, kernel, stride, padding; what it is the first layer of
CASES = [
    ((128, 1, 16, 28, 4, 2, 1), "small-cnn, 28x28"),
    ((128, 1, 32, 8, 3, 1, 1), "small-cnn, 8x8"),
    ((128, 1, 32, 28, 5, 1, 2), "LeNet-like"),
    ((128, 3, 16, 32, 3, 1, 1), "ResNet-18 width 16; wide ResNets"),
    ((128, 3, 64, 32, 3, 1, 1), "ResNet-18, PreActResNet-18"),
    ((128, 3, 192, 32, 4, 4, 0), "vit-tiny"),
    ((4, 3, 64, 224, 7, 2, 3), "ResNet-50"),
]
ROUNDS = 30


def measure(shape: tuple[int, ...], layout: torch.memory_format) -> tuple[float, float, float]:
    """(ms of torch, ms of advfast, GFLOP)."""
    batch, channels, outputs, side, kernel, stride, padding = shape
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(batch, channels, side, side, generator=generator)
    weight = torch.randn(outputs, channels, kernel, kernel, generator=generator)
    image, weight = (t.contiguous(memory_format=layout) for t in (image, weight))
    grad = torch.randn(
        torch.conv2d(image, weight, stride=stride, padding=padding).shape, generator=generator
    ).contiguous(memory_format=layout)
    pairs = {"stride": (stride, stride), "padding": (padding, padding)}

    def theirs() -> torch.Tensor:
        found, _, _ = torch.ops.aten.convolution_backward(
            grad, image, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1,
            [True, False, False],
        )  # fmt: skip
        return found

    def ours() -> torch.Tensor:
        return conv2d_input_grad(grad, weight, (side, side), **pairs, impl="cpp")

    x = image.double().requires_grad_()
    out = torch.conv2d(x, weight.double(), stride=stride, padding=padding)
    (exact,) = torch.autograd.grad(out, x, grad.double())
    for result in (theirs(), ours()):
        if not (result - exact).abs().max() <= 1e-5 * exact.abs().max():
            raise SystemExit(f"{shape}: wrong result")
    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS + 3):
        for found, run in zip(times, (theirs, ours), strict=True):
            begin = time.perf_counter()
            run()
            found.append((time.perf_counter() - begin) * 1e3)
    medians = [statistics.median(found[3:]) for found in times]
    return medians[0], medians[1], 2e-9 * grad.numel() * weight[0].numel()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own")
    parser.add_argument("--out", type=Path, help="CSV to write")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    shared = environment("cpu")
    rows = []
    print(
        f"{'first layer of':<34} {'layout':<7} {'torch ms':>9} {'advfast':>8} {'ratio':>6} {'GFLOP/s':>8}"
    )
    for shape, what in CASES:
        for name, layout in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
            theirs, ours, work = measure(shape, layout)
            print(
                f"{what:<34} {name:<7} {theirs:9.3f} {ours:8.3f} {theirs / ours:6.2f} {1e3 * work / ours:8.1f}"
            )
            rows.append({
                "date": shared.date, "commit": shared.commit, "machine": shared.machine,
                "threads": shared.threads, "load": shared.load, "torch": shared.torch, "case": what,
                "shape": "x".join(map(str, shape)), "layout": name, "torch_ms": f"{theirs:.4g}",
                "advfast_ms": f"{ours:.4g}", "ratio": f"{theirs / ours:.3g}",
                "gflop_per_s": f"{1e3 * work / ours:.4g}",
            })  # fmt: skip
    if options.out:
        with open(options.out, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
