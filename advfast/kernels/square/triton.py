"""The square family in Triton: float32 on CUDA, or on the CPU under TRITON_INTERPRET=1.

A program takes BLOCK values of one sample. Floating-point contraction is off: the bits depend on it.
"""

from __future__ import annotations

from inspect import signature
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _values(places, row, channels, height, width, tall, wide, NHWC: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """(place in the sample, whether it is inside the image, channel, whether inside the window) of BLOCK values."""
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if NHWC:
        channel, across, down = i % channels, (i // channels) % width, i // (channels * width)
    else:
        channel, across, down = i // (height * width), i % width, (i // width) % height
    down -= tl.load(places + row * 2).to(tl.int32)
    across -= tl.load(places + row * 2 + 1).to(tl.int32)
    inside = (down >= 0) & (down < tall) & (across >= 0) & (across < wide)
    return i, i < channels * height * width, channel, inside


def _window(
    best, x0, out,  # [n, D]
    places,  # [n, 2]
    signs,  # [n, C]
    eps: tl.float32, step: tl.float32,
    channels: tl.int32, height: tl.int32, width: tl.int32, tall: tl.int32, wide: tl.int32,
    NHWC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    i, good, channel, inside = _values(
        places, row, channels, height, width, tall, wide, NHWC, BLOCK
    )
    at = row * channels * height * width + i
    value = tl.load(best + at, mask=good, other=0.0)
    moves = good & inside
    sign = tl.load(signs + row * channels + channel, mask=moves, other=0.0)
    centre = tl.load(x0 + at, mask=moves, other=0.0)
    moved = value + step * sign
    low, high = centre - eps, centre + eps
    moved = tl.where(moved < low, low, moved)
    moved = tl.where(moved > high, high, moved)
    moved = tl.where(moved < 0.0, 0.0, moved)
    moved = tl.where(moved > 1.0, 1.0, moved)
    tl.store(out + at, tl.where(inside, moved, value), mask=good)


def _accept(
    best, candidate,  # [n, D]
    improved,  # [n]
    places,  # [n, 2]
    channels: tl.int32, height: tl.int32, width: tl.int32, tall: tl.int32, wide: tl.int32,
    NHWC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    i, good, _, inside = _values(places, row, channels, height, width, tall, wide, NHWC, BLOCK)
    at = row * channels * height * width + i
    # The interpreter's masks may not be made from a scalar.
    wanted = (tl.full(i.shape, 0, tl.int32) + tl.load(improved + row).to(tl.int32)) != 0
    moves = good & inside & wanted
    tl.store(best + at, tl.load(candidate + at, mask=moves, other=0.0), mask=moves)


def _compiled(function: Any) -> Any:
    values = [name for name in signature(function).parameters if name.islower()]
    return triton.jit(function, do_not_specialize=values)


KERNELS = {"window": (_compiled(_window), _BLOCK, 4), "accept": (_compiled(_accept), _BLOCK, 4)}
# values of a block, warps


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
    return [Specialisation(kernel, None, "NHWC", nhwc) for kernel in KERNELS for nhwc in (0, 1)]


def _launch(spec: Specialisation, x: Tensor, args: tuple) -> None:
    blocks = triton.cdiv(x.shape[1:].numel(), _BLOCK)
    with torch.cuda.device_of(x):
        KERNELS[spec.kernel][0][(x.shape[0], blocks)](*args, **spec.constants(), **spec.options())


def _run(kernel: str, best: Tensor, args: tuple, height: int, width: int) -> None:
    if best.numel():
        spec = Specialisation(kernel, None, "NHWC", int(not best.is_contiguous()))
        _launch(spec, best, (*args, *best.shape[1:], height, width))


def square_window(
    best: Tensor, x0: Tensor, places: Tensor, signs: Tensor, eps: float, height: int, width: int
) -> Tensor:
    out = torch.empty_like(best)
    given = (best, x0, out, places.contiguous(), signs.contiguous(), eps, 2 * eps)
    _run("window", best, given, height, width)
    return out


def square_accept_(
    best: Tensor, candidate: Tensor, improved: Tensor, places: Tensor, height: int, width: int
) -> None:
    given = (best, candidate, improved.contiguous().view(torch.uint8), places.contiguous())
    _run("accept", best, given, height, width)
