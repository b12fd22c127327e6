"""The step of Auto-PGD in linf and l2 in Triton: float32 on CUDA, or on the CPU under TRITON_INTERPRET=1.

linf takes a program for each block of a sample, l2 one for each sample, which walks over it a few times. Floating-point
contraction is off: the bits of linf depend on it.
"""

from __future__ import annotations

from inspect import signature
from typing import Any, NamedTuple

import numpy
import torch
import triton
import triton.language as tl

_TINY = tl.constexpr(1e-12)


@triton.jit
def _between(v, low, high):
    v = tl.where(v < low, low, v)
    return tl.where(v > high, high, v)


@triton.jit
def _mixed(x, z, x_prev, flat, inside, keep, carry, CARRIES: tl.constexpr):
    """x + keep * (z - x) + carry * (x - x_prev)."""
    mixed = x + (z - x) * keep
    if CARRIES:
        mixed += (x - tl.load(x_prev + flat, mask=inside, other=0.0)) * carry
    return mixed


@triton.jit
def _keep_best(improved, best, best_gradient, row, flat, inside, x, g):
    """Without `improved`, all three are x, which is then not written."""
    if improved != 0:
        flags = improved.to(tl.int64).to(tl.pointer_type(tl.int8))
        # A choice, not `&`: the interpreter broadcasts a scalar comparison as integers.
        better = tl.where(tl.load(flags + row) != 0, inside, False)
        tl.store(best + flat, x, mask=better)
        tl.store(best_gradient + flat, g, mask=better)


def _linf(
    x, x_prev, x0, gradient, step, best, best_gradient,  # [B, D], step [B]
    improved: tl.int64,  # address of [B], 0: none
    dim: tl.int64, keep: tl.float32, carry: tl.float32, eps: tl.float32,
    CARRIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, flat = at < dim, row * dim + at
    v = tl.load(x + flat, mask=inside, other=0.0)
    g = tl.load(gradient + flat, mask=inside, other=0.0)
    centre = tl.load(x0 + flat, mask=inside, other=0.0)
    _keep_best(improved, best, best_gradient, row, flat, inside, v, g)
    low, high = centre - eps, centre + eps
    z = v + tl.load(step + row) * tl.where(g > 0, 1.0, tl.where(g < 0, -1.0, 0.0))
    z = _between(_between(z, low, high), 0.0, 1.0)
    z = _mixed(v, z, x_prev, flat, inside, keep, carry, CARRIES)
    tl.store(x_prev + flat, _between(_between(z, low, high), 0.0, 1.0), mask=inside)


@triton.jit
def _shrinkage(squares, eps):
    size = tl.sqrt(tl.sum(squares, 0))
    return (tl.minimum(size, tl.full((), eps, tl.float64)) / (size + _TINY)).to(tl.float32)


def _l2(
    x, x_prev, x0, gradient, step, best, best_gradient,  # as above
    improved: tl.int64,
    dim: tl.int64, keep: tl.float32, carry: tl.float32, eps: tl.float32,
    CARRIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK).to(tl.int64)
    squares = tl.zeros([BLOCK], tl.float64)
    for start in range(0, dim, BLOCK):
        inside, flat = start + j < dim, row * dim + start + j
        g = tl.load(gradient + flat, mask=inside, other=0.0)
        v = tl.load(x + flat, mask=inside, other=0.0)
        _keep_best(improved, best, best_gradient, row, flat, inside, v, g)
        squares += g.to(tl.float64) * g
    norm = (tl.sqrt(tl.sum(squares, 0)) + _TINY).to(tl.float32)
    length = tl.load(step + row)

    squares = tl.zeros([BLOCK], tl.float64)
    for start in range(0, dim, BLOCK):
        inside, flat = start + j < dim, row * dim + start + j
        v = tl.load(x + flat, mask=inside, other=0.0)
        centre = tl.load(x0 + flat, mask=inside, other=0.0)
        g = tl.load(gradient + flat, mask=inside, other=0.0)
        d = (v + length * (g / norm) - centre).to(tl.float64)
        squares += d * d
    factor = _shrinkage(squares, eps)

    squares = tl.zeros([BLOCK], tl.float64)
    for start in range(0, dim, BLOCK):
        inside, flat = start + j < dim, row * dim + start + j
        v = tl.load(x + flat, mask=inside, other=0.0)
        centre = tl.load(x0 + flat, mask=inside, other=0.0)
        g = tl.load(gradient + flat, mask=inside, other=0.0)
        z = _between(centre + (v + length * (g / norm) - centre) * factor, 0.0, 1.0)
        z = _mixed(v, z, x_prev, flat, inside, keep, carry, CARRIES)
        tl.store(x_prev + flat, z, mask=inside)
        d = tl.where(inside, z - centre, 0.0).to(tl.float64)
        squares += d * d
    # From here on a thread may read what another one has written.
    tl.debug_barrier()
    factor = _shrinkage(squares, eps)
    for start in range(0, dim, BLOCK):
        inside, flat = start + j < dim, row * dim + start + j
        z = tl.load(x_prev + flat, mask=inside, other=0.0)
        centre = tl.load(x0 + flat, mask=inside, other=0.0)
        z = _between(centre + (z - centre) * factor, 0.0, 1.0)
        tl.store(x_prev + flat, z, mask=inside)


def _jit(fn: Any) -> Any:
    """fn, compiled once a signature whatever the values."""
    values = [name for name in signature(fn).parameters if name.islower()]
    return triton.jit(fn, do_not_specialize=values)


KERNELS = {"linf": (_jit(_linf), 1024, 4), "l2": (_jit(_l2), 1024, 8)}  # values of a block, warps


class Specialisation(NamedTuple):
    """What is compiled separately."""

    kernel: str
    dtype: torch.dtype
    constant: str
    value: int

    def constants(self) -> dict[str, int]:
        return {self.constant: self.value, "BLOCK": KERNELS[self.kernel][1]}

    def options(self) -> dict[str, Any]:
        return {"num_warps": KERNELS[self.kernel][2], "enable_fp_fusion": False}


def specialisations() -> list[Specialisation]:
    """All that the launcher can ask for (tests/triton_aot.py compiles them without a GPU)."""
    return [
        Specialisation(norm, torch.float32, "CARRIES", carries)
        for norm in KERNELS
        for carries in (0, 1)
    ]


def _launch(spec: Specialisation, grid: tuple[int, ...], x: torch.Tensor, args: tuple) -> None:
    # The interpreter computes in numpy, which warns where a GPU quietly gives inf or NaN.
    with torch.cuda.device_of(x), numpy.errstate(all="ignore"):
        KERNELS[spec.kernel][0][grid](*args, **spec.constants(), **spec.options())


def apgd_step_(
    x, x_prev, x0, gradient, step, momentum, eps, norm, improved, best, best_gradient
) -> None:
    if not x.numel():
        return
    rows, dim = x.shape[0], x.shape[1:].numel()
    flags = 0 if improved is None else improved.data_ptr()
    kept = (x, x) if best is None else (best, best_gradient)
    spec = Specialisation(norm, x.dtype, "CARRIES", int(momentum != 1.0))
    grid = (rows, triton.cdiv(dim, KERNELS[norm][1])) if norm == "linf" else (rows,)
    args = (x, x_prev, x0, gradient, step, *kept, flags, dim, momentum, 1 - momentum, eps)
    _launch(spec, grid, x, args)
