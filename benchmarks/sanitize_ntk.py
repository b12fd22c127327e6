"""Runs every CUDA kernel of the ntk family once on small inputs: what gpu_suite.sh puts under compute-sanitizer.

Layers are chosen so that each kernel and each of its paths is launched: up to 16 positions a sample and more than one
tile of them, patches gathered and summed from pixels, tiles that samples and readouts fill and do not, vectors and
single channels, the upper half. Results are compared with the reference in float64, as a kernel that does nothing is
clean too.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from advfast.kernels.ntk import ntk_chain_, ntk_hadamard_

OPS = {"ntk_chain_": ntk_chain_, "ntk_hadamard_": ntk_hadamard_}
# Of the Frobenius norm, for three products in a row.
ERRORS = {"fp32": 2e-6, "tf32": 2e-3, "bf16": 2e-2, "bf16x3": 3e-5}


class Layer(NamedTuple):
    """A square convolution with padding kernel // 2, or tokens (kernel 0)."""

    n: tuple[int, int]
    readouts: tuple[int, int]
    side: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    e: int = 5
    c: int = 8


LAYERS = (
    Layer((5, 6), (3, 2), 4),
    Layer((4, 4), (10, 10), 4, e=40, c=24),
    Layer((2, 3), (17, 3), 4, stride=2, c=7),
    Layer((3, 2), (2, 3), 7, groups=2, c=5),
    Layer((2, 2), (1, 2), 11, c=12),
    Layer((3, 3), (2, 2), 9, kernel=0, e=33),
    Layer((9, 5), (1, 1), 1, kernel=0, c=3),
    Layer((0, 5), (1, 1), 3),
)


def taps(layer: Layer) -> Tensor | None:
    """int32 [S, T]"""
    if layer.kernel == 0:
        return None
    at = torch.arange(layer.side)[:: layer.stride, None] + torch.arange(layer.kernel)
    at = at - layer.kernel // 2
    y, x = at[:, None, :, None], at[None, :, None, :]
    inside = (y >= 0) & (y < layer.side) & (x >= 0) & (x < layer.side)
    table = torch.where(inside, y * layer.side + x, -1)
    return table.reshape(-1, layer.kernel**2).to(torch.int32)


def operands(layer: Layer) -> list[Tensor | None]:
    """x1, g1, x2, g2, taps1, taps2 on the CPU."""
    table, pixels = taps(layer), layer.side**2
    positions = pixels if table is None else len(table)
    made: list[Tensor | None] = []
    for n, readouts in zip(layer.n, layer.readouts, strict=True):
        made.append(torch.randn(n, layer.groups, pixels, layer.e))
        made.append(torch.randn(n, readouts, layer.groups, positions, layer.c))
    return [*made, table, table]


def calls() -> Iterator[tuple[str, Layer, str, bool]]:
    for name, layer, precision in itertools.product(OPS, LAYERS, ERRORS):
        yield name, layer, precision, False
    for name in OPS:
        yield name, Layer((6, 6), (2, 2), 4), "tf32", True


def moved(tensors: list[Tensor | None], device: str) -> list[Tensor | None]:
    return [None if t is None else t.to(device) for t in tensors]


def difference(name: str, layer: Layer, precision: str, upper: bool, impl: str, device: str) -> str:
    """What is wrong with the result; nothing if it is right."""
    given = operands(layer)
    rows, columns = (n * r for n, r in zip(layer.n, layer.readouts, strict=True))
    whole = torch.randn(rows, columns + 3)
    there = whole.to(device, copy=True)
    options = {"precision": precision, "upper": upper, "impl": impl}
    OPS[name](there[:, :columns], *moved(given, device), **options)
    exact = whole[:, :columns].double()
    doubled = [t.double() if t is not None and t.is_floating_point() else t for t in given]
    OPS[name](exact, *doubled, precision="fp64")
    got = there.cpu()
    if not torch.equal(got[:, columns:], whole[:, columns:]):
        return "written past the row"
    error, size = got[:, :columns].double() - exact, exact - whole[:, :columns].double()
    if upper:
        wanted = torch.ones(layer.n).triu().repeat_interleave(layer.readouts[0], 0)
        error = error * wanted.repeat_interleave(layer.readouts[1], 1)
    relative = float(error.norm() / size.norm()) if size.numel() else 0.0
    return "" if relative <= ERRORS[precision] else f"{relative:.3g} from the definition"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--impl", choices=("cuda", "triton", "reference"), default="cuda")
    args = parser.parse_args()
    device = "cpu" if args.impl == "reference" else "cuda"
    torch.manual_seed(0)
    count = wrong = 0
    for call in calls():
        fault = difference(*call, args.impl, device)
        count += 1
        if fault:
            wrong += 1
            print(*call, fault)
    print(f"{args.impl}: {count} calls, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
