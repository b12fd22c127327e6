"""The hash of each row in Triton: one program a row, on CUDA, or on the CPU under TRITON_INTERPRET=1."""

from __future__ import annotations

from inspect import signature
from typing import Any, NamedTuple

import numpy
import torch
import triton
import triton.language as tl
from torch import Tensor

_INTEGERS = {2: tl.int16, 4: tl.int32, 8: tl.int64}


@triton.jit
def _mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


def _hash_rows(
    x,  # [B, D] the values' bits
    out,  # [B]
    dim: tl.int64,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK).to(tl.int64)
    words = dim if WIDTH == 8 else (dim + 1) // 2
    total = tl.zeros([BLOCK], tl.uint64)
    for start in range(0, words, BLOCK):
        if WIDTH == 8:
            value = tl.load(x + row * dim + start + k, mask=start + k < dim, other=0)
            word = tl.where(value == (-1 << 63), 0, value).to(tl.uint64, bitcast=True)
        else:
            half = tl.arange(0, 2)[None, :]
            at = (start + k)[:, None] * 2 + half
            value = tl.load(x + row * dim + at, mask=at < dim, other=0).to(tl.int64)
            value = tl.where(value == (-1 << (8 * WIDTH - 1)), 0, value) & ((1 << 8 * WIDTH) - 1)
            word = tl.sum(value << (32 * half), 1).to(tl.uint64, bitcast=True)
        place = (start + k + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
        total += tl.where(start + k < words, _mix(word + place), 0)
    result = _mix(tl.sum(total, 0) + dim.to(tl.uint64))
    tl.store(out + row, result.to(tl.int64, bitcast=True))


_VALUES = [name for name in signature(_hash_rows).parameters if name.islower()]
KERNELS = {
    "rows": (triton.jit(_hash_rows, do_not_specialize=_VALUES), 1024, 8)
}  # words of a block, warps


class Specialisation(NamedTuple):
    """What is compiled separately."""

    kernel: str
    dtype: None
    constant: str
    value: int

    def constants(self) -> dict[str, int]:
        return {self.constant: self.value, "BLOCK": KERNELS[self.kernel][1]}

    def options(self) -> dict[str, Any]:
        return {"num_warps": KERNELS[self.kernel][2], "enable_fp_fusion": False}


def specialisations() -> list[Specialisation]:
    """All that the launcher can ask for (tests/triton_aot.py compiles them without a GPU)."""
    return [Specialisation("rows", None, "WIDTH", width) for width in _INTEGERS]


def _launch(spec: Specialisation, x: Tensor, args: tuple) -> None:
    # The interpreter computes in numpy, which warns where a GPU quietly wraps around.
    with torch.cuda.device_of(x), numpy.errstate(all="ignore"):
        KERNELS[spec.kernel][0][(x.shape[0],)](*args, **spec.constants(), **spec.options())


def row_hash(x: Tensor) -> Tensor:
    rows, width = x.shape[0], x.element_size()
    out = torch.empty(rows, dtype=torch.int64, device=x.device)
    if rows:
        words = triton.reinterpret(x, _INTEGERS[width])
        spec = Specialisation("rows", None, "WIDTH", width)
        _launch(spec, x, (words, out, x.shape[1:].numel()))
    return out
