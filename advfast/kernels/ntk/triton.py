"""The ntk family in Triton: float32 operands on CUDA, or on the CPU under TRITON_INTERPRET=1.

`ntk_chain_` and `ntk_hadamard_` take one program for a block of outputs, which it alone writes, in a fixed order of
sums. Rows of a tile are slots: SLOT of them for each sample (or row of `out`), so that 64 rows are 4 samples of up to
16 positions, or one of up to 64. More positions go through tile by tile: the kernel is linear in the patch Gram matrix,
so that each of its tiles is used as soon as it is there, and nothing of size S x S is kept.

With SHIFT the Gram matrix of the patches is summed from that of the pixels, which then lies whole in the tile; without,
patches are gathered from memory tap by tap.
"""

from __future__ import annotations

from inspect import signature
from typing import Any, NamedTuple

import numpy
import torch
import triton
import triton.language as tl
from torch import Tensor

from advfast import _backend

_FP32, _TF32, _BF16, _BF16X3 = map(tl.constexpr, range(4))
_PRECISIONS = {"fp32": 0, "tf32": 1, "bf16": 2, "bf16x3": 3}
# The interpreter multiplies the bits of bfloat16 as integers: there the rounded numbers stay in float32.
_INTERPRETED = tl.constexpr(_backend.triton_interprets())
_ROWS = tl.constexpr(64)  # rows of a tile
_READOUTS = tl.constexpr(16)  # of a tile of the chain: the least that a matrix instruction takes
_GROUP = 8  # blocks of rows that are visited together, for the L2 cache


@triton.jit
def round_tf32(v):
    """To a 10-bit mantissa, ties to even. A matrix instruction would cut the other bits off."""
    bits = v.to(tl.int32, bitcast=True)
    rounded = tl.add(bits, 0x0FFF + ((bits >> 13) & 1), False) & ~0x1FFF
    return tl.where(tl.abs(v) < float("inf"), rounded.to(tl.float32, bitcast=True), v)


@triton.jit
def round_bf16(v):
    """To the nearest bfloat16, ties to even, as float32. The interpreter's own cast cuts off."""
    bits = v.to(tl.int32, bitcast=True)
    rounded = tl.add(bits, 0x7FFF + ((bits >> 16) & 1), False) & ~0xFFFF
    return tl.where(tl.abs(v) < float("inf"), rounded.to(tl.float32, bitcast=True), v)


@triton.jit
def _dot_bf16(a, b, total):
    """Of numbers that bfloat16 holds."""
    if _INTERPRETED:
        return tl.dot(a, b, total, input_precision="ieee")
    else:
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), total)


@triton.jit
def _dot(a, b, total, PRECISION: tl.constexpr):
    """total + a @ b with operands rounded as PRECISION says, sums in float32."""
    if PRECISION == _FP32:
        return tl.dot(a, b, total, input_precision="ieee")
    elif PRECISION == _TF32:
        return tl.dot(round_tf32(a), round_tf32(b), total, input_precision="tf32")
    elif PRECISION == _BF16:
        return _dot_bf16(round_bf16(a), round_bf16(b), total)
    else:
        a_high, b_high = round_bf16(a), round_bf16(b)
        a_low, b_low = round_bf16(a - a_high), round_bf16(b - b_high)
        total = _dot_bf16(a_high, b_low, total)
        total = _dot_bf16(a_low, b_high, total)
        return _dot_bf16(a_high, b_high, total)


@triton.jit
def _pixels(taps_at, position, tap, taps, inside):
    """The pixel that each position reads at a tap; -1: none."""
    pointer = taps_at.to(tl.int64).to(tl.pointer_type(tl.int32))
    given = inside & (position * 0 + (taps_at != 0).to(tl.int32) != 0)
    read = tl.load(pointer + position * taps + tap, mask=given, other=-1)
    return tl.where(given, read, tl.where(inside, position, -1))


@triton.jit
def _patch_gram(
    x1, x2, start1, start2, position1, position2, inside1, inside2, taps1_at, taps2_at, taps, e,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Inner products of the patches at the positions of two samples (`start`: of each row's sample from x)."""
    total = tl.zeros([position1.shape[0], position2.shape[0]], tl.float32)
    for tap in range(0, taps):
        pixel1 = _pixels(taps1_at, position1, tap, taps, inside1)
        pixel2 = _pixels(taps2_at, position2, tap, taps, inside2)
        at1, at2 = start1 + pixel1 * e, start2 + pixel2 * e
        for first in range(0, e, DEPTH):
            k = first + tl.arange(0, DEPTH)
            mask1 = (pixel1 >= 0)[:, None] & (k < e)[None, :]
            mask2 = (k < e)[:, None] & (pixel2 >= 0)[None, :]
            a = tl.load(x1 + at1[:, None] + k[None, :], mask=mask1, other=0.0)
            b = tl.load(x2 + at2[None, :] + k[:, None], mask=mask2, other=0.0)
            total = _dot(a, b, total, PRECISION)
    return total


@triton.jit
def _gram(
    x1, x2, start1, start2, slot1, slot2, first1, first2, real1, real2,
    taps1_at, taps2_at, taps, positions1, positions2, pixels1, pixels2, e,
    SLOT: tl.constexpr, SHIFT: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The patch Gram matrix of a tile. Row: position first + slot % SLOT of a sample, where it is `real`."""
    position1, position2 = first1 + slot1 % SLOT, first2 + slot2 % SLOT
    inside1, inside2 = real1 & (position1 < positions1), real2 & (position2 < positions2)
    if SHIFT:
        none = tl.zeros([], tl.int64)
        m1, m2 = slot1 % SLOT, slot2 % SLOT
        pixels = _patch_gram(
            x1, x2, start1, start2, m1, m2, real1 & (m1 < pixels1), real2 & (m2 < pixels2),
            none, none, 1, e, DEPTH, PRECISION,
        )  # fmt: skip
        total = tl.zeros(pixels.shape, tl.float32)
        for tap in range(0, taps):
            pixel1 = _pixels(taps1_at, position1, tap, taps, inside1)
            pixel2 = _pixels(taps2_at, position2, tap, taps, inside2)
            row = slot1 - slot1 % SLOT + tl.maximum(pixel1, 0)
            column = slot2 - slot2 % SLOT + tl.maximum(pixel2, 0)
            moved = tl.gather(pixels, tl.broadcast_to(row[:, None], pixels.shape), 0)
            moved = tl.gather(moved, tl.broadcast_to(column[None, :], pixels.shape), 1)
            both = (pixel1 >= 0)[:, None] & (pixel2 >= 0)[None, :]
            total += tl.where(both, moved, 0.0)
        return total
    else:
        return _patch_gram(
            x1, x2, start1, start2, position1, position2, inside1, inside2,
            taps1_at, taps2_at, taps, e, DEPTH, PRECISION,
        )  # fmt: skip


@triton.jit
def _block(program, blocks1, blocks2, group):
    """Block of rows and of columns of a program: `group` blocks of rows at a time, column by column."""
    area = group * blocks2
    first = program // area * group
    height = tl.minimum(blocks1 - first, group)
    within = program % area
    return first + within % height, within // height


def _chain(
    out, x1, g1, x2, g2,  # [n1*R1, n2*R2] float32, rows `stride` apart; the rest: see api.py
    taps1_at: tl.int64, taps2_at: tl.int64, stride: tl.int64, upper: tl.int32,
    n1: tl.int32, n2: tl.int32, readouts1: tl.int32, readouts2: tl.int32, groups: tl.int32,
    positions1: tl.int32, positions2: tl.int32, pixels1: tl.int32, pixels2: tl.int32,
    taps: tl.int32, e: tl.int32, channels: tl.int32, group: tl.int32,
    SLOT: tl.constexpr, SHIFT: tl.constexpr, DEPTH: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    SAMPLES: tl.constexpr = _ROWS // SLOT
    tiles1, tiles2 = tl.cdiv(readouts1, _READOUTS), tl.cdiv(readouts2, _READOUTS)
    block, column = _block(tl.program_id(0), tl.cdiv(n1, SAMPLES) * tiles1, n2 * tiles2, group)
    i0, j = block // tiles1 * SAMPLES, column // tiles2
    if (upper == 0) | (i0 <= j):
        slot1, slot2 = tl.arange(0, _ROWS), tl.arange(0, SLOT)
        sample = i0 + slot1 // SLOT
        real1, real2 = sample < n1, slot2 >= 0
        # Offsets within a tile have 32 bits (the launcher checks), the tile's own place has 64.
        start1, start2 = slot1 // SLOT * (groups * pixels1 * e), slot2 * 0
        r0, v0 = (block % tiles1) * _READOUTS, (column % tiles2) * _READOUTS
        # The right side of the chain: [SLOT, readouts * channels of the chunk].
        n = tl.arange(0, _READOUTS * CHUNK)
        real_n = v0 + n // CHUNK < readouts2
        row2 = n // CHUNK * (groups * positions2 * channels)
        # Its left side: [samples, readouts, SLOT * channels of the chunk].
        r, v = r0 + tl.arange(0, _READOUTS), v0 + tl.arange(0, _READOUTS)
        k = tl.arange(0, SLOT * CHUNK)
        i = i0 + tl.arange(0, SAMPLES)
        real = (i < n1)[:, None] & (r < readouts1)[None, :]
        row1 = ((i - i0) * readouts1)[:, None] + (r - r0)[None, :]
        row1 *= groups * positions1 * channels
        total = tl.zeros([SAMPLES, _READOUTS, _READOUTS], tl.float32)
        for part in range(0, groups):
            near1 = x1 + (i0.to(tl.int64) * groups + part) * pixels1 * e
            near2 = x2 + (j.to(tl.int64) * groups + part) * pixels2 * e
            left_at = (
                g1 + ((i0.to(tl.int64) * readouts1 + r0) * groups + part) * positions1 * channels
            )
            right_at = (
                g2 + ((j.to(tl.int64) * readouts2 + v0) * groups + part) * positions2 * channels
            )
            for p0 in range(0, positions1, SLOT):
                p = p0 + k // CHUNK
                for q0 in range(0, positions2, SLOT):
                    gram = _gram(
                        near1, near2, start1, start2, slot1, slot2, p0, q0, real1, real2, taps1_at, taps2_at,
                        taps, positions1, positions2, pixels1, pixels2, e, SLOT, SHIFT, DEPTH, PRECISION,
                    )  # fmt: skip
                    q = q0 + slot2
                    for c0 in range(0, channels, CHUNK):
                        cn, ck = c0 + n % CHUNK, c0 + k % CHUNK
                        mask2 = (q < positions2)[:, None] & (real_n & (cn < channels))[None, :]
                        at2 = (row2 + cn)[None, :] + (q * channels)[:, None]
                        right = tl.load(right_at + at2, mask=mask2, other=0.0)
                        chain = _dot(
                            gram, right, tl.zeros([_ROWS, _READOUTS * CHUNK], tl.float32), PRECISION
                        )
                        mask1 = (
                            real[:, :, None] & ((p < positions1) & (ck < channels))[None, None, :]
                        )
                        at1 = row1[:, :, None] + (p * channels + ck)[None, None, :]
                        left = tl.load(left_at + at1, mask=mask1, other=0.0)
                        chain = tl.reshape(chain, [SAMPLES, SLOT, _READOUTS, CHUNK])
                        chain = tl.permute(chain, [0, 1, 3, 2])
                        if SAMPLES == 1:
                            one = tl.reshape(total, [_READOUTS, _READOUTS])
                            left = tl.reshape(left, [_READOUTS, SLOT * CHUNK])
                            one = _dot(
                                left, tl.reshape(chain, [SLOT * CHUNK, _READOUTS]), one, PRECISION
                            )
                            total = tl.reshape(one, [1, _READOUTS, _READOUTS])
                        else:
                            chain = tl.reshape(chain, [SAMPLES, SLOT * CHUNK, _READOUTS])
                            total = _dot(left, chain, total, PRECISION)
        kept = real[:, :, None] & (v < readouts2)[None, None, :]
        row = i.to(tl.int64)[:, None] * readouts1 + r[None, :]
        at = out + row[:, :, None] * stride + (j.to(tl.int64) * readouts2 + v)[None, None, :]
        tl.store(at, tl.load(at, mask=kept, other=0.0) + total, mask=kept)


def _hadamard(
    out, x1, g1, x2, g2,
    taps1_at: tl.int64, taps2_at: tl.int64, stride: tl.int64, upper: tl.int32,
    n1: tl.int32, n2: tl.int32, readouts1: tl.int32, readouts2: tl.int32, groups: tl.int32,
    positions1: tl.int32, positions2: tl.int32, pixels1: tl.int32, pixels2: tl.int32,
    taps: tl.int32, e: tl.int32, channels: tl.int32, group: tl.int32,
    SLOT: tl.constexpr, SHIFT: tl.constexpr, DEPTH: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    UNITS: tl.constexpr = _ROWS // SLOT  # rows of out (sample, readout) of a tile
    rows, columns = n1 * readouts1, n2 * readouts2
    block, other = _block(tl.program_id(0), tl.cdiv(rows, UNITS), tl.cdiv(columns, UNITS), group)
    last = tl.minimum(other * UNITS + UNITS, columns) - 1
    if (upper == 0) | (block * UNITS // readouts1 <= last // readouts2):
        slot = tl.arange(0, _ROWS)
        u, v = block * UNITS + slot // SLOT, other * UNITS + slot // SLOT
        real1, real2 = u < rows, v < columns
        k = tl.arange(0, CHUNK)
        total = tl.zeros([UNITS, UNITS], tl.float32)
        i0, j0 = block * UNITS // readouts1, other * UNITS // readouts2
        start1 = (u // readouts1 - i0) * (groups * pixels1 * e)
        start2 = (v // readouts2 - j0) * (groups * pixels2 * e)
        row1 = slot // SLOT * (groups * positions1 * channels)
        row2 = slot // SLOT * (groups * positions2 * channels)
        for part in range(0, groups):
            near1 = x1 + (i0.to(tl.int64) * groups + part) * pixels1 * e
            near2 = x2 + (j0.to(tl.int64) * groups + part) * pixels2 * e
            left_at = g1 + ((block * UNITS).to(tl.int64) * groups + part) * positions1 * channels
            right_at = g2 + ((other * UNITS).to(tl.int64) * groups + part) * positions2 * channels
            for p0 in range(0, positions1, SLOT):
                p = p0 + slot % SLOT
                at1 = row1 + p * channels
                for q0 in range(0, positions2, SLOT):
                    gram = _gram(
                        near1, near2, start1, start2, slot, slot, p0, q0, real1, real2, taps1_at, taps2_at,
                        taps, positions1, positions2, pixels1, pixels2, e, SLOT, SHIFT, DEPTH, PRECISION,
                    )  # fmt: skip
                    q = q0 + slot % SLOT
                    at2 = row2 + q * channels
                    products = tl.zeros([_ROWS, _ROWS], tl.float32)
                    for c0 in range(0, channels, CHUNK):
                        c = c0 + k
                        mask1 = (real1 & (p < positions1))[:, None] & (c < channels)[None, :]
                        mask2 = (c < channels)[:, None] & (real2 & (q < positions2))[None, :]
                        a = tl.load(left_at + at1[:, None] + c[None, :], mask=mask1, other=0.0)
                        b = tl.load(right_at + at2[None, :] + c[:, None], mask=mask2, other=0.0)
                        products = _dot(a, b, products, PRECISION)
                    products = tl.reshape(products * gram, [UNITS, SLOT, UNITS, SLOT])
                    total += tl.sum(tl.sum(products, 3), 1)
        row, column = block * UNITS + tl.arange(0, UNITS), other * UNITS + tl.arange(0, UNITS)
        kept = (row < rows)[:, None] & (column < columns)[None, :]
        at = out + row.to(tl.int64)[:, None] * stride + column[None, :]
        tl.store(at, tl.load(at, mask=kept, other=0.0) + total, mask=kept)


def _gram_all(
    out, x1, x2,  # [n1, n2, groups, S1, S2] float32; see api.py
    taps1_at: tl.int64, taps2_at: tl.int64,
    n1: tl.int32, n2: tl.int32, groups: tl.int32,
    positions1: tl.int32, positions2: tl.int32, pixels1: tl.int32, pixels2: tl.int32,
    taps: tl.int32, e: tl.int32, group: tl.int32,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    rows, columns = n1.to(tl.int64) * positions1, n2.to(tl.int64) * positions2
    program, part = tl.program_id(0) // groups, tl.program_id(0) % groups
    blocks1, blocks2 = tl.cdiv(rows, _ROWS).to(tl.int32), tl.cdiv(columns, _ROWS).to(tl.int32)
    block, other = _block(program, blocks1, blocks2, group)
    row = block.to(tl.int64) * _ROWS + tl.arange(0, _ROWS)
    column = other.to(tl.int64) * _ROWS + tl.arange(0, _ROWS)
    i, p = row // positions1, (row % positions1).to(tl.int32)
    j, q = column // positions2, (column % positions2).to(tl.int32)
    i0 = block.to(tl.int64) * _ROWS // positions1
    j0 = other.to(tl.int64) * _ROWS // positions2
    start1 = (i - i0).to(tl.int32) * (groups * pixels1 * e)
    start2 = (j - j0).to(tl.int32) * (groups * pixels2 * e)
    near1, near2 = x1 + (i0 * groups + part) * pixels1 * e, x2 + (j0 * groups + part) * pixels2 * e
    total = _patch_gram(
        near1, near2, start1, start2, p, q,
        row < rows, column < columns, taps1_at, taps2_at, taps, e, DEPTH, PRECISION,
    )  # fmt: skip
    pair = (i[:, None] * n2 + j[None, :]) * groups + part
    at = (pair * positions1 + p[:, None]) * positions2 + q[None, :]
    tl.store(out + at, total, mask=(row < rows)[:, None] & (column < columns)[None, :])


def _rows(
    out, x, g,  # [n, R, groups, c, T, e] float32; see api.py
    taps_at: tl.int64,
    n: tl.int32, readouts: tl.int32, groups: tl.int32, positions: tl.int32, pixels: tl.int32,
    taps: tl.int32, e: tl.int32, channels: tl.int32,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A product [R * c, S] @ [S, T * e] for each sample and group; the right side is gathered, not unfolded."""
    height, width = readouts * channels, taps * e
    blocks2 = tl.cdiv(width, _ROWS)
    program, other = tl.program_id(0) // blocks2, tl.program_id(0) % blocks2
    blocks1 = tl.cdiv(height, _ROWS)
    block = program % blocks1
    part, sample = program // blocks1 % groups, (program // blocks1 // groups).to(tl.int64)
    row, column = block * _ROWS + tl.arange(0, _ROWS), other * _ROWS + tl.arange(0, _ROWS)
    k = tl.arange(0, DEPTH)
    pointer = taps_at.to(tl.int64).to(tl.pointer_type(tl.int32))
    r0 = block * _ROWS // channels
    left_at = g + ((sample * readouts + r0) * groups + part) * positions * channels
    at1 = (row // channels - r0) * (groups * positions * channels) + row % channels
    right_at = x + (sample * groups + part) * pixels * e
    total = tl.zeros([_ROWS, _ROWS], tl.float32)
    for p0 in range(0, positions, DEPTH):
        p = p0 + k
        inside = (p < positions)[:, None] & (column < width)[None, :]
        given = inside & (column * 0 + (taps_at != 0).to(tl.int32) != 0)[None, :]
        at = p[:, None] * taps + (column // e)[None, :]
        pixel = tl.load(pointer + at, mask=given, other=-1)
        pixel = tl.where(given, pixel, tl.where(inside, p[:, None] + column[None, :] * 0, -1))
        at2 = (column % e)[None, :] + pixel * e
        mask1 = (row < height)[:, None] & (p < positions)[None, :]
        a = tl.load(left_at + at1[:, None] + p[None, :] * channels, mask=mask1, other=0.0)
        b = tl.load(right_at + at2, mask=pixel >= 0, other=0.0)
        total = _dot(a, b, total, PRECISION)
    of = ((sample * readouts + row // channels) * groups + part) * channels + row % channels
    kept = (row < height)[:, None] & (column < width)[None, :]
    tl.store(out + of[:, None] * width + column[None, :], total, mask=kept)


def _jit(fn: Any) -> Any:
    """fn, compiled once a signature whatever the values."""
    values = [name for name in signature(fn).parameters if name.islower()]
    return triton.jit(fn, do_not_specialize=values)


_CHAIN, _HADAMARD = _jit(_chain), _jit(_hadamard)
_SLOTS = (("16", 16, 0), ("64", 64, 0), ("16-shift", 16, 1), ("64-shift", 64, 1))


class Tile(NamedTuple):
    fn: Any
    constants: dict[str, int]
    warps: int


KERNELS: dict[str, Tile] = {
    "rows": Tile(_jit(_rows), {"DEPTH": 16}, 8),
    "patch-gram": Tile(_jit(_gram_all), {"DEPTH": 16}, 8),
    **{
        f"chain-{name}": Tile(_CHAIN, {"SLOT": slot, "SHIFT": shift, "DEPTH": 16, "CHUNK": 2}, 8)
        for name, slot, shift in _SLOTS
    },
    **{
        f"hadamard-{name}": Tile(
            _HADAMARD, {"SLOT": slot, "SHIFT": shift, "DEPTH": 16, "CHUNK": 32}, 8
        )
        for name, slot, shift in _SLOTS
    },
}


class Specialisation(NamedTuple):
    """What is compiled separately."""

    kernel: str
    dtype: None
    constant: str
    value: int

    def constants(self) -> dict[str, int]:
        return KERNELS[self.kernel].constants | {self.constant: self.value}

    def options(self) -> dict[str, Any]:
        # A loop's loads are not run ahead of it: their buffers would take the registers. The limit is what there is;
        # without one ptxas stops at 128 for a second block, and spills.
        return {"num_warps": KERNELS[self.kernel].warps, "num_stages": 1, "maxnreg": 255}


def _precisions(kernel: str) -> tuple[int, ...]:
    """Compilations are dear: what is bound by its arithmetic anyway gathers its patches."""
    if kernel == "rows":
        return (_FP32.value,)
    if kernel.endswith("-shift"):
        return _TF32.value, _BF16.value
    return tuple(_PRECISIONS.values())


def specialisations() -> list[Specialisation]:
    """All that the launchers can ask for (tests/triton_aot.py compiles them without a GPU)."""
    return [
        Specialisation(kernel, None, "PRECISION", value)
        for kernel in KERNELS
        for value in _precisions(kernel)
    ]


def _launch(spec: Specialisation, programs: int, x: Tensor, args: tuple) -> None:
    if programs == 0:
        return
    if programs >= 2**31:
        raise ValueError(
            f"{spec.kernel}: {programs} programs, at most 2^31 - 1: take fewer samples"
        )
    # The interpreter computes in numpy, which warns where a GPU quietly gives inf or NaN.
    with torch.cuda.device_of(x), numpy.errstate(all="ignore"):
        KERNELS[spec.kernel].fn[(programs,)](*args, **spec.constants(), **spec.options())


def _check_span(op: str, *elements: int) -> None:
    """Offsets within a tile have 32 bits."""
    if max(elements) >= 2**31:
        raise ValueError(
            f"{op}: the samples of a tile have {max(elements)} elements, at most 2^31 - 1 with impl='triton'"
        )


def _address(taps: Tensor | None) -> int:
    return 0 if taps is None else taps.data_ptr()


def _pair(family, out, x1, g1, x2, g2, taps1, taps2, precision, upper) -> None:
    n1, readouts1, groups, positions1, channels = g1.shape
    n2, readouts2, _, positions2, _ = g2.shape
    pixels1, pixels2, e = x1.shape[2], x2.shape[2], x1.shape[3]
    taps = 1 if taps1 is None else taps1.shape[1]
    slot = 16 if max(positions1, positions2) <= 16 else 64
    # One tap costs the same either way; sides of several tiles have no whole pixel Gram matrix.
    whole = max(positions1, positions2, pixels1, pixels2) <= slot
    shift = whole and taps > 1 and taps1 is not None and taps2 is not None
    units = _ROWS.value // slot
    _check_span(
        f"ntk_{family}_",
        *(units * groups * pixels * e for pixels in (pixels1, pixels2)),
        *(
            max(units * r, _READOUTS.value) * groups * positions * channels
            for r, positions in ((readouts1, positions1), (readouts2, positions2))
        ),
    )
    value = _PRECISIONS[precision]
    kernel = f"{family}-{slot}-shift"
    if not shift or value not in _precisions(kernel):
        kernel = f"{family}-{slot}"
    if family == "chain":
        tiles1, tiles2 = (
            triton.cdiv(readouts1, _READOUTS.value),
            triton.cdiv(readouts2, _READOUTS.value),
        )
        programs = triton.cdiv(n1, units) * tiles1 * n2 * tiles2
    else:
        programs = triton.cdiv(n1 * readouts1, units) * triton.cdiv(n2 * readouts2, units)
    args = (
        out, x1, g1, x2, g2, _address(taps1), _address(taps2), out.stride(0), int(upper),
        n1, n2, readouts1, readouts2, groups, positions1, positions2, pixels1, pixels2,
        taps, e, channels, _GROUP,
    )  # fmt: skip
    spec = Specialisation(kernel, None, "PRECISION", value)
    _launch(spec, programs, out, args)


def ntk_chain_(out, x1, g1, x2, g2, taps1, taps2, precision, upper) -> None:
    _pair("chain", out, x1, g1, x2, g2, taps1, taps2, precision, upper)


def ntk_hadamard_(out, x1, g1, x2, g2, taps1, taps2, precision, upper) -> None:
    _pair("hadamard", out, x1, g1, x2, g2, taps1, taps2, precision, upper)


def ntk_patch_gram(x1, x2, taps1, taps2, precision) -> Tensor:
    (n1, groups, pixels1, e), (n2, _, pixels2, _) = x1.shape, x2.shape
    positions1 = pixels1 if taps1 is None else taps1.shape[0]
    positions2 = pixels2 if taps2 is None else taps2.shape[0]
    out = x1.new_empty(n1, n2, groups, positions1, positions2)
    samples = _ROWS.value + 1
    _check_span("ntk_patch_gram", samples * groups * max(pixels1, pixels2) * e)
    blocks = triton.cdiv(n1 * positions1, _ROWS.value) * triton.cdiv(n2 * positions2, _ROWS.value)
    args = (
        out, x1, x2, _address(taps1), _address(taps2), n1, n2, groups, positions1, positions2,
        pixels1, pixels2, 1 if taps1 is None else taps1.shape[1], e, _GROUP,
    )  # fmt: skip
    spec = Specialisation("patch-gram", None, "PRECISION", _PRECISIONS[precision])
    _launch(spec, blocks * groups, out, args)
    return out


def ntk_rows(x, g, taps) -> Tensor:
    n, readouts, groups, positions, channels = g.shape
    pixels, e, depth = x.shape[2], x.shape[3], 1 if taps is None else taps.shape[1]
    out = x.new_empty(n, readouts, groups, channels, depth, e)
    _check_span("ntk_rows", (_ROWS.value + channels) * groups * positions, pixels * e)
    blocks = triton.cdiv(readouts * channels, _ROWS.value) * triton.cdiv(depth * e, _ROWS.value)
    args = (out, x, g, _address(taps), n, readouts, groups, positions, pixels, depth, e, channels)
    _launch(Specialisation("rows", None, "PRECISION", 0), blocks * n * groups, x, args)
    return out
