"""The activation family in Triton: float tensors on CUDA, or on the CPU under TRITON_INTERPRET=1.

A program takes BLOCK bytes of bits and the eight values of each. All masks but that of the last few values are the same
for the eight, and pointers are aligned, so that loads are 16 bytes wide. Which operands there are is decided at run
time (`flags`), as each specialisation costs a compilation. Floating-point contraction is off: the bits depend on it.
"""

from __future__ import annotations

from inspect import signature
from typing import Any, NamedTuple

import numpy
import torch
import triton
import triton.language as tl
from torch import Tensor

_OTHER, _WRITES = tl.constexpr(1), tl.constexpr(2)  # bits of `flags`
_SAMPLE_LIMIT = 1 << 30
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@triton.jit
def _widen(v):
    if v.dtype == tl.float64:
        return v
    elif v.dtype == tl.bfloat16:
        # The interpreter's own cast loses subnormals.
        bits = v.to(tl.int16, bitcast=True).to(tl.int32)
        return (bits << 16).to(tl.float32, bitcast=True)
    else:
        return v.to(tl.float32)


@triton.jit
def _narrow(v, dtype: tl.constexpr):
    if dtype == tl.bfloat16:
        # To nearest even; the interpreter's own cast cuts off.
        bits = tl.where(v == v, v.to(tl.uint32, bitcast=True), 0x7FC00000)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return nearest.to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return v.to(dtype)


@triton.jit
def _flag(flags, which, rows):
    """Whether it is set, for each row: the interpreter's masks may not be made from a scalar."""
    return (tl.full(rows.shape, flags, tl.int32) & which) != 0


@triton.jit
def _channels(first, rows, j, inner, channels, CHANNEL: tl.constexpr):
    """Channel of the eight values of each row: where they lie in one, it is found once for all."""
    # Divisions in 32 bits: a sample is shorter than 2^30.
    t = ((first * 8) % (inner * channels)).to(tl.int32) + rows * 8
    inner, channels = inner.to(tl.int32), channels.to(tl.int32)
    if CHANNEL == 1:
        return (t // inner) % channels + j * 0
    elif CHANNEL == 2:
        return t % channels + j
    else:
        return ((t + j) // inner) % channels


@triton.jit
def _activation_rows(
    x, other, y, bits, scale, shift, first, rows, good, end, inner, channels, flags,
    CHANNEL: tl.constexpr,
):  # fmt: skip
    j = tl.arange(0, 8)[None, :]
    at = (first + rows) * 8 + j
    v = _widen(tl.load(x + at, mask=good, other=0.0))
    if CHANNEL >= 0:
        channel = _channels(first, rows, j, inner, channels, CHANNEL)
        v = v * tl.load(scale + channel, mask=good, other=0.0)
        v = v + tl.load(shift + channel, mask=good, other=0.0)
    has_other = _flag(flags, _OTHER, rows)
    added = v + _widen(tl.load(other + at, mask=good & has_other, other=0.0))
    v = tl.where(has_other, added, v)
    v = _narrow(tl.where(v < 0, 0.0, v), x.dtype.element_ty)
    tl.store(y + at, v, mask=good & _flag(flags, _WRITES, rows))
    passes = ((_widen(v) <= 0) == 0) & good
    packed = tl.sum(passes.to(tl.int32) << j, 1)[:, None]
    tl.store(bits + first + rows, packed.to(tl.uint8), mask=first + rows < end)


def _activation_relu(
    x, other, y,  # [N]
    bits,  # [(N + 7) // 8]
    scale, shift,  # [C]
    n: tl.int64, inner: tl.int64, channels: tl.int64, flags: tl.int32,
    CHANNEL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    whole = n // 8
    first = tl.program_id(0).to(tl.int64) * BLOCK
    rows = tl.arange(0, BLOCK)[:, None]
    _activation_rows(
        x, other, y, bits, scale, shift, first, rows, first + rows < whole, whole, inner, channels,
        flags, CHANNEL,
    )  # fmt: skip
    if (tl.program_id(0) == 0) & (n % 8 != 0):
        good = whole * 8 + tl.arange(0, 8)[None, :] < n
        _activation_rows(
            x, other, y, bits, scale, shift, whole, tl.arange(0, 1)[:, None], good, whole + 1,
            inner, channels, flags, CHANNEL,
        )  # fmt: skip


@triton.jit
def _gate_rows(
    grad, other, bits, scale, first, rows, good, end, inner, channels, flags, CHANNEL: tl.constexpr
):
    j = tl.arange(0, 8)[None, :]
    at = (first + rows) * 8 + j
    v = _widen(tl.load(grad + at, mask=good, other=0.0))
    byte = tl.load(bits + first + rows, mask=first + rows < end, other=0).to(tl.int32)
    passes = ((byte >> j) & 1) != 0
    has_other = _flag(flags, _OTHER, rows)
    more = _widen(tl.load(other + at, mask=good & has_other, other=0.0))
    if CHANNEL >= 0:
        channel = _channels(first, rows, j, inner, channels, CHANNEL)
        v = tl.where(passes, v, 0.0) * tl.load(scale + channel, mask=good, other=0.0)
        v = tl.where(has_other, v + more, v)
    else:
        v = tl.where(passes, tl.where(has_other, v + more, v), 0.0)
    tl.store(grad + at, _narrow(v, grad.dtype.element_ty), mask=good)


def _activation_gate(
    grad, other,  # [N]
    bits,  # [(N + 7) // 8]
    scale,  # [C]
    n: tl.int64, inner: tl.int64, channels: tl.int64, flags: tl.int32,
    CHANNEL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    whole = n // 8
    first = tl.program_id(0).to(tl.int64) * BLOCK
    rows = tl.arange(0, BLOCK)[:, None]
    _gate_rows(
        grad, other, bits, scale, first, rows, first + rows < whole, whole, inner, channels, flags,
        CHANNEL,
    )  # fmt: skip
    if (tl.program_id(0) == 0) & (n % 8 != 0):
        good = whole * 8 + tl.arange(0, 8)[None, :] < n
        _gate_rows(
            grad, other, bits, scale, whole, tl.arange(0, 1)[:, None], good, whole + 1, inner,
            channels, flags, CHANNEL,
        )  # fmt: skip


ALIGNED = ("x", "other", "y", "grad")  # multiples of 16


def _jit(fn: Any) -> Any:
    """fn, compiled once a signature whatever the values, which ALIGNED excepts."""
    values = [name for name in signature(fn).parameters if name.islower() and name not in ALIGNED]
    return triton.jit(fn, do_not_specialize=values)


KERNELS = {  # with the bytes of bits of a block, and warps
    "forward": (_jit(_activation_relu), 128, 4),
    "backward": (_jit(_activation_gate), 128, 4),
}


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
    """All that the launchers can ask for (tests/triton_aot.py compiles them without a GPU)."""
    return [
        Specialisation(kernel, dtype, "CHANNEL", channel)
        for kernel in KERNELS
        for dtype in DTYPES
        for channel in (-1, 0, 1, 2)
    ]


def _launch(spec: Specialisation, x: Tensor, args: tuple) -> None:
    grid = (max(1, triton.cdiv(x.numel() // 8, KERNELS[spec.kernel][1])),)
    # The interpreter computes in numpy, which warns where a GPU quietly gives inf or NaN.
    with torch.cuda.device_of(x), numpy.errstate(all="ignore"):
        KERNELS[spec.kernel][0][grid](*args, **spec.constants(), **spec.options())


def _sizes(x: Tensor, scale: Tensor | None) -> tuple[int, int, int]:
    """(inner, channels, CHANNEL): value i is of channel i // inner % channels."""
    if scale is None:
        return 1, 1, -1
    channels = x.shape[1]
    inner = x.shape[2:].numel() if x.is_contiguous() else 1
    if inner * channels >= _SAMPLE_LIMIT:
        raise ValueError("impl='triton': a sample must have fewer than 2^30 values")
    channel = 1 if inner % 8 == 0 else 2 if inner == 1 and channels % 8 == 0 else 0
    return inner, channels, channel


def _aligned(t: Tensor) -> Tensor:
    """t, or a copy of it where a view begins between two multiples of 16 bytes."""
    return t if t.data_ptr() % 16 == 0 else t.clone()


def _run_forward(
    x: Tensor, other: Tensor | None, y: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> Tensor:
    n = x.numel()
    bits = torch.empty((n + 7) // 8, dtype=torch.uint8, device=x.device)
    if n == 0:
        return bits
    inner, channels, channel = _sizes(x, scale)
    source = _aligned(x)
    target = source if y is None else _aligned(y)
    more = source if other is None else _aligned(other)
    flags = (other is not None) * _OTHER.value + (y is not None) * _WRITES.value
    scale, shift = (x if t is None else t for t in (scale, shift))
    args = (source, more, target, bits, scale, shift, n, inner, channels, flags)
    _launch(Specialisation("forward", x.dtype, "CHANNEL", channel), x, args)
    if y is not None and target is not y:
        y.copy_(target)
    return bits


def positive_bits(y: Tensor) -> Tensor:
    return _run_forward(y, None, None, None, None)


def relu_bits_(y: Tensor, other: Tensor | None) -> Tensor:
    return _run_forward(y, other, y, None, None)


def affine_relu_bits(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x)
    return y, _run_forward(x, None, y, scale, shift)


def gate_(grad: Tensor, bits: Tensor, scale: Tensor | None, other: Tensor | None) -> None:
    n = grad.numel()
    if n == 0:
        return
    inner, channels, channel = _sizes(grad, scale)
    target = _aligned(grad)
    more = target if other is None else _aligned(other)
    flags = (other is not None) * _OTHER.value
    args = (target, more, bits, grad if scale is None else scale, n, inner, channels, flags)
    _launch(Specialisation("backward", grad.dtype, "CHANNEL", channel), grad, args)
    if target is not grad:
        grad.copy_(target)
