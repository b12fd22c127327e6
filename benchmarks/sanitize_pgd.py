"""Runs every pgd kernel once on small inputs: the program that gpu_suite.sh puts under compute-sanitizer.

Shapes and operands are chosen so that each kernel and each of its paths is launched: vectors and
single numbers, samples that fit into a block and that do not, operands in memory, unaligned
tensors. Results are compared with the reference implementation on the CPU, as a kernel that does
nothing is clean too.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from advfast.kernels import pgd_step_, project_, random_start

# D = 105 (odd), 3072 (fits into one block), 150528 (does not), 12 (less than a warp), no sample at all
SHAPES = ((3, 3, 5, 7), (2, 3, 32, 32), (2, 3, 224, 224), (5, 3, 2, 2), (0, 3, 4, 4))
RADII = {"linf": 0.03, "l2": 0.5, "l1": 5.0}
LAYOUTS = (torch.contiguous_format, torch.channels_last)
GRADS = (torch.float32, torch.float16, torch.bfloat16)


def unaligned(t: Tensor) -> Tensor:
    """The same values one element past the start of an allocation, so that no 16-byte access is."""
    room = t.new_empty(t.numel() + 1)[1:]
    return room.as_strided(t.shape, t.stride()).copy_(t)


def images(shape: tuple[int, ...], layout: torch.memory_format, norm: str) -> dict[str, Tensor]:
    x0 = torch.rand(shape)
    noise = torch.randn(shape)
    x = x0 + noise * RADII[norm] * (1.0 if norm == "linf" else 0.05)
    made = {"x": x, "x0": x0, "grad": noise.flip(0)}
    return {name: t.contiguous(memory_format=layout) for name, t in made.items()}


def calls(*, small: bool) -> Iterator[tuple[str, dict[str, Any], dict[str, Tensor]]]:
    """(op, keyword arguments, tensors x, x0 and grad), all on the CPU."""
    shapes = [shape for shape in SHAPES if not small or shape[2] < 100]
    for shape, layout, norm in itertools.product(shapes, LAYOUTS, RADII):
        batch, channels = shape[:2]
        eps = RADII[norm]
        for grad in GRADS:
            tensors = images(shape, layout, norm)
            tensors["grad"] = tensors["grad"].to(grad)
            tensors["grad"][:1, 0, 0, 0] = float("inf")
            counter = torch.zeros(1, dtype=torch.int64)
            given = {"norm": norm, "alpha": eps / 4, "eps": eps, "nonfinite": counter}
            yield "pgd_step_", given, tensors
        per_sample = torch.linspace(0.5, 1.0, max(batch, 1))[:batch].view(-1, 1, 1, 1)
        per_channel = torch.linspace(0.9, 1.0, channels)
        full = {
            "norm": norm, "alpha": per_sample * eps / 4, "eps": per_sample * eps,
            "bounds": (0.0, per_channel), "mask": torch.rand(shape) > 0.3,
            "out": torch.empty(shape, dtype=torch.bfloat16), "scale": 1 / per_channel,
            "shift": per_channel / 2,
        }  # fmt: skip
        tensors = images(shape, layout, norm)
        tensors["x0"].mul_(0.9)  # inside the box of every channel
        yield "pgd_step_", full, tensors
        shifted = {name: unaligned(t) for name, t in images(shape, layout, norm).items()}
        yield "pgd_step_", {"norm": norm, "alpha": eps / 4, "eps": eps}, shifted
        boxed = {"norm": norm, "alpha": eps / 4, "eps": eps, "l2_order": "box-ball-box"}
        yield "pgd_step_", boxed, images(shape, layout, norm)
        narrow = {"norm": norm, "eps": eps, "out": torch.empty(shape, dtype=torch.float16)}
        yield "project_", narrow, images(shape, layout, norm)
        ids = torch.arange(batch) * 7 + 2**33
        start = {"norm": norm, "eps": eps, "seed": 3, "offset": 1, "sample_ids": ids}
        yield "random_start", start, images(shape, layout, norm)


def run(op: str, given: dict[str, Any], tensors: dict[str, Tensor], impl: str) -> list[Tensor]:
    """What the op returned or changed."""
    if op == "random_start":
        return [random_start(tensors["x0"], **given, impl=impl)]
    if op == "project_":
        project_(tensors["x"], tensors["x0"], **given, impl=impl)
    else:
        pgd_step_(tensors["x"], tensors["grad"], tensors["x0"], **given, impl=impl)
    changed = [tensors["x"], given.get("out"), given.get("nonfinite")]
    return [t for t in changed if t is not None]


def copy_to(value: Any, device: str) -> Any:
    """A copy with the same strides; an unaligned tensor stays one."""
    if isinstance(value, tuple):
        return tuple(copy_to(v, device) for v in value)
    if not isinstance(value, Tensor):
        return value
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    made.copy_(value)
    return unaligned(made) if value.storage_offset() % 4 else made


def compare(norm: str, got: list[Tensor], wanted: list[Tensor]) -> str:
    for ours, theirs in zip(got, wanted, strict=True):
        ours = ours.cpu()
        if norm == "linf" and not torch.equal(ours, theirs):
            return "not the bits of the reference"
        loose = 1e-2 if theirs.dtype in (torch.float16, torch.bfloat16) else 1e-5
        if not torch.allclose(ours.double(), theirs.double(), rtol=loose, atol=loose):
            return f"{float((ours.double() - theirs.double()).abs().max()):.3g} from the reference"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--impl", choices=("cuda", "triton", "cpp"), default="cuda")
    parser.add_argument("--small", action="store_true", help="without the largest shape")
    args = parser.parse_args()
    device = "cpu" if args.impl == "cpp" else "cuda"
    torch.manual_seed(0)
    count = wrong = 0
    for op, given, tensors in calls(small=args.small):
        there = {name: copy_to(value, device) for name, value in given.items()}
        moved = {name: copy_to(t, device) for name, t in tensors.items()}
        got = run(op, there, moved, args.impl)
        if device == "cuda":
            torch.cuda.synchronize()
        fault = compare(given["norm"], got, run(op, given, tensors, "reference"))
        count += 1
        if fault:
            wrong += 1
            shape = tuple(tensors["x"].shape)
            print(f"{op} {given['norm']} {shape} {tensors['x'].stride()}: {fault}")
    print(f"{args.impl}: {count} calls, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
