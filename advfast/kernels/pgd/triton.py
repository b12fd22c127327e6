"""The pgd family in Triton: float32 images on CUDA, or on the CPU under TRITON_INTERPRET=1.

linf is one elementwise kernel over the storage. l2 and l1 take one program a sample, which walks
over it several times: size of the gradient, move and distance, l1 threshold, projection.

Each new combination of signature and constants costs a compilation (`Specialisation`), so what can
be decided at run time is: operands come as an address (0: none) and a host number, and what they
mean is packed into `flags`. Floating-point contraction is off: the bits of linf depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any, NamedTuple

import numpy
import torch
import triton
import triton.language as tl
from torch import Tensor

# `flags` of a launch. Three bits for how each operand varies: 0 host number, 1 one number in memory,
# 2 per sample, 3 per channel, 4 full. Three for the dtype of out (0: none). Then single properties:
# out has the other memory order than x; there is a mask, an operand of mode 2 to 4, or such an out.
_ALPHA, _EPS, _LO, _HI, _SCALE, _SHIFT, _MASK, _OUT = map(tl.constexpr, range(0, 24, 3))
_GRAD, _AFFINE, _CHANNELS_LAST, _BOX_FIRST = map(tl.constexpr, range(24, 28))
_TRANSPOSED, _STRIDED = map(tl.constexpr, range(28, 30))
_VARYING = 0o6666666  # the bits of modes 2 to 4
_KINDS = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3, torch.float64: 4}
_ROW_LIMIT = tl.constexpr(1 << 30)


@triton.jit
def _clamp(v, lo, hi):
    v = tl.where(v < lo, lo, v)
    return tl.where(v > hi, hi, v)


@triton.jit
def _from_bits(bits, BF16: tl.constexpr):
    """float32 from the 16 bits in an int32. The interpreter's own cast loses bfloat16 subnormals."""
    if BF16:
        return (bits << 16).to(tl.float32, bitcast=True)
    else:
        return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _widen(g):
    if g.dtype == tl.float64:
        return g
    elif g.dtype == tl.bfloat16:
        return _from_bits(g.to(tl.int16, bitcast=True).to(tl.int32), True)
    else:
        return g.to(tl.float32)


@triton.jit
def _narrow(v, x0, toward, BF16: tl.constexpr):
    """v in 16 bits (held in an int32), to nearest; `toward`: never farther from x0 than v is.

    Where no 16-bit number lies between v and x0 (x0 itself is not one), the nearest all the same.
    """
    if BF16:
        bits = tl.where(v == v, v.to(tl.uint32, bitcast=True), 0x7FC00000)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.int32)
    else:
        nearest = v.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    value = _from_bits(nearest, BF16)
    above = v >= x0
    outside = tl.where(above, value > v, value < v)
    # The next number below where v lies above x0, else the next above.
    inner = tl.where((nearest >= 0x8000) == above, nearest + 1, nearest - 1)
    inner = tl.where((nearest & 0x7FFF) == 0, tl.where(above, 0x8001, 0x0001), inner)
    reached = _from_bits(inner, BF16)
    crosses = tl.where(above, reached < x0, reached > x0)
    return tl.where(outside & (crosses == 0) & toward, inner, nearest)


@triton.jit
def _add_within(x0, delta):
    """x0 + delta, toward x0 where the nearest is farther; a subnormal delta counts as 0."""
    delta = tl.where(tl.abs(delta) < 1.1754943508222875e-38, 0.0, delta)
    z = x0 + delta
    moved = z - x0
    up = moved < 0
    bits = z.to(tl.int32, bitcast=True)
    inner = tl.add(bits, tl.where((bits < 0) == up, -1, 1), False)
    inner = tl.where((bits & 0x7FFFFFFF) == 0, tl.where(up, 1, -0x7FFFFFFF), inner)
    return tl.where(tl.abs(moved) > tl.abs(delta), inner.to(tl.float32, bitcast=True), z)


@triton.jit
def _split(size):
    """(p, q, r) with v / size == v * p * q * r in float32: p, q powers of two against overflow."""
    bits = size.to(tl.int64, bitcast=True)
    exponent = (bits >> 52) - 1023
    half = exponent >> 1
    p = ((127 - half) << 23).to(tl.int32).to(tl.float32, bitcast=True)
    q = ((127 - (exponent - half)) << 23).to(tl.int32).to(tl.float32, bitcast=True)
    mantissa = ((bits & 0xFFFFFFFFFFFFF) | (1023 << 52)).to(tl.float64, bitcast=True)
    return p, q, (1.0 / mantissa).to(tl.float32)


@triton.jit
def _divide(t, magic, shift):
    """t // d for 0 <= t < 2^31, see `_divisor`."""
    return ((t.to(tl.uint64) * magic.to(tl.uint64)) >> shift.to(tl.uint64)).to(tl.int32)


@triton.jit
def _places(base, j, sizes, flags):
    """Sample, channel, and the place in the other memory order of the elements base + j.

    Storage is [B, outer, inner]. Each element costs 32-bit divisions alone, for any size: a row
    longer than 2^30 ends at most once in a block, so its beginning can be cut off.
    """
    inner, outer, magic_i, shift_i, magic_o, shift_o = sizes
    row = base // inner
    first = base - row * inner
    sample = row // outer
    above = row - sample * outer
    cut = tl.maximum(first - tl.maximum(inner - _ROW_LIMIT, 0), 0).to(tl.int32)
    rows = _divide(tl.add(cut, j, False), magic_i, shift_i)
    cut = tl.maximum(above - tl.maximum(outer - _ROW_LIMIT, 0), 0).to(tl.int32)
    samples = _divide(tl.add(cut, rows, False), magic_o, shift_o).to(tl.int64)
    rows = rows.to(tl.int64)
    sample = sample + samples
    above = above + rows - samples * outer
    within = first + j.to(tl.int64) - rows * inner
    channel = tl.where((flags >> _CHANNELS_LAST) & 1 != 0, within, above)
    return sample, channel, (sample * inner + within) * outer + above


@triton.jit
def _spot(sample, start, j, sizes, flags):
    """(sample, channel, place, inside) of the elements start + j of a sample; the place in out."""
    dim = sizes[0].to(tl.int64) * sizes[1]
    at = start + j.to(tl.int64)
    flat = sample * dim + at
    channel = at
    target = flat
    if (flags >> _STRIDED) & 1 != 0:
        _, channel, other = _places(sample * dim + start, j, sizes, flags)
        target = tl.where((flags >> _TRANSPOSED) & 1 != 0, other, flat)
    return (sample, channel, flat, at < dim), target


@triton.jit
def _number(operand, flags, SLOT: tl.constexpr, sample):
    """An operand (address, host number) that is one number for the program."""
    address, value = operand
    mode = (flags >> SLOT) & 7
    pointer = address.to(tl.int64).to(tl.pointer_type(tl.float32))
    return tl.load(pointer + tl.where(mode > 1, sample, 0), mask=mode != 0, other=value)


@triton.jit
def _operand(operand, flags, SLOT: tl.constexpr, spot):
    """An operand at every element of a block."""
    address, value = operand
    sample, channel, flat, inside = spot
    mode = (flags >> SLOT) & 7
    pointer = address.to(tl.int64).to(tl.pointer_type(tl.float32))
    block = tl.full(flat.shape, tl.load(pointer, mask=mode != 0, other=value), tl.float32)
    if mode > 1:
        at = tl.where(mode == 4, flat, tl.where(mode == 3, channel, sample))
        block = tl.load(pointer + at, mask=inside, other=0.0)
    return block


@triton.jit
def _write_out(out, target, x, x0, addresses, flags, spot, STRIDED: tl.constexpr):
    """The next model input. `out` is declared int16 whatever it holds: fewer specialisations."""
    kind = (flags >> _OUT) & 7
    inside = spot[3]
    if kind != 0:
        toward = (flags >> _AFFINE) & 1 == 0
        v = x
        if (flags >> _AFFINE) & 1 != 0:
            shift, scale = (addresses[1], 0.0), (addresses[0], 1.0)
            if STRIDED:
                v = x - _operand(shift, flags, _SHIFT, spot)
                v = v * _operand(scale, flags, _SCALE, spot)
            else:
                v = (x - _number(shift, flags, _SHIFT, 0)) * _number(scale, flags, _SCALE, 0)
        if kind == 1:
            tl.store(out.to(tl.pointer_type(tl.float32)) + target, v, mask=inside)
        elif kind == 2:
            tl.store(out + target, _narrow(v, x0, toward, False).to(tl.int16), mask=inside)
        elif kind == 3:
            tl.store(out + target, _narrow(v, x0, toward, True).to(tl.int16), mask=inside)
        else:
            tl.store(out.to(tl.pointer_type(tl.float64)) + target, v.to(tl.float64), mask=inside)


@triton.jit
def _gradient(grad, mask_at, flags, spot, STRIDED: tl.constexpr):
    """Gradient entries, 0 where masked or not finite; where they count; and where not, unmasked."""
    sample, channel, flat, inside = spot
    # A choice, not `&`: the interpreter broadcasts a scalar comparison as integers.
    active = tl.where((flags >> _GRAD) & 1 != 0, inside, False)
    g = _widen(tl.load(grad + flat, mask=active, other=0.0))
    mode = (flags >> _MASK) & 7
    if STRIDED and mode != 0:
        place = tl.where(mode == 4, flat, tl.where(mode == 3, channel, sample))
        place = tl.where(mode == 1, 0, place)
        pointer = mask_at.to(tl.int64).to(tl.pointer_type(tl.int8))
        active = active & (tl.load(pointer + place, mask=active, other=0) != 0)
    finite = tl.abs(g) < float("inf")
    good = active & finite
    return tl.where(good, g, 0.0), good, (active & (finite == 0)).to(tl.int32)


@triton.jit
def _count(address, number):
    if address != 0:
        pointer = address.to(tl.int64).to(tl.pointer_type(tl.int64))
        total = tl.sum(number.to(tl.int64), 0)
        tl.atomic_add(pointer, total, mask=total != 0, sem="relaxed")


def _step_linf(
    x, grad, x0, out,  # [n]: float32 in/out; any float; float32; any float, declared int16
    alpha_at: tl.int64, eps_at: tl.int64, lo_at: tl.int64, hi_at: tl.int64,
    scale_at: tl.int64, shift_at: tl.int64, mask_at: tl.int64, count_at: tl.int64,
    alpha: tl.float32, eps: tl.float32, lo: tl.float32, hi: tl.float32,
    flags: tl.int32, n: tl.int64, inner: tl.int64, outer: tl.int64,
    magic_i: tl.uint32, shift_i: tl.int32, magic_o: tl.uint32, shift_o: tl.int32,
    STRIDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    base = tl.program_id(0).to(tl.int64) * BLOCK
    j = tl.arange(0, BLOCK)
    flat = base + j
    inside = flat < n
    spot = (0, 0, flat, inside)
    if STRIDED:
        sizes = (inner, outer, magic_i, shift_i, magic_o, shift_o)
        sample, channel, other = _places(base, j, sizes, flags)
        spot = (sample, channel, flat, inside)
        step = _operand((alpha_at, alpha), flags, _ALPHA, spot)
        radius = _operand((eps_at, eps), flags, _EPS, spot)
        low = _operand((lo_at, lo), flags, _LO, spot)
        high = _operand((hi_at, hi), flags, _HI, spot)
    else:
        step = _number((alpha_at, alpha), flags, _ALPHA, 0)
        radius = _number((eps_at, eps), flags, _EPS, 0)
        low = _number((lo_at, lo), flags, _LO, 0)
        high = _number((hi_at, hi), flags, _HI, 0)
    old = tl.load(x + flat, mask=inside, other=0.0)
    centre = tl.load(x0 + flat, mask=inside, other=0.0)
    g, good, bad = _gradient(grad, mask_at, flags, spot, STRIDED)

    moved = old + step * tl.where(g > 0, 1.0, tl.where(g < 0, -1.0, 0.0))
    # A product, as 0 - radius would lose the sign of -0.0.
    moved = _clamp(centre + _clamp(moved - centre, radius * -1.0, radius), low, high)
    held = _clamp(_clamp(old, centre - radius, centre + radius), low, high)
    new = tl.where(good, moved, held)
    tl.store(x + flat, new, mask=inside)
    addresses = (scale_at, shift_at)
    if STRIDED:
        # Two calls, not a choice of the place: that would hide that `flat` is contiguous.
        if (flags >> _TRANSPOSED) & 1 != 0:
            _write_out(out, other, new, centre, addresses, flags, spot, True)
        else:
            _write_out(out, flat, new, centre, addresses, flags, spot, True)
    else:
        _write_out(out, flat, new, centre, addresses, flags, spot, False)
    _count(count_at, bad)


def _step_ball(
    x, grad, x0, out,  # [B, D], otherwise as above
    alpha_at: tl.int64, eps_at: tl.int64, lo_at: tl.int64, hi_at: tl.int64,
    scale_at: tl.int64, shift_at: tl.int64, mask_at: tl.int64, count_at: tl.int64,
    alpha: tl.float32, eps: tl.float32, lo: tl.float32, hi: tl.float32,
    flags: tl.int32, n: tl.int64, inner: tl.int64, outer: tl.int64,
    magic_i: tl.uint32, shift_i: tl.int32, magic_o: tl.uint32, shift_o: tl.int32,
    L1: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sizes = (inner, outer, magic_i, shift_i, magic_o, shift_o)
    sample = tl.program_id(0).to(tl.int64)
    dim = inner.to(tl.int64) * outer
    j = tl.arange(0, BLOCK)

    # Squares of float64 overflow and underflow: a power of two brings the largest entry near 1.
    factor = tl.full((), 1.0, tl.float64)
    if grad.dtype.element_ty == tl.float64:
        largest = tl.zeros([BLOCK], tl.float64)
        for start in range(0, dim, BLOCK):
            spot, _target = _spot(sample, start, j, sizes, flags)
            g, _good, _wrong = _gradient(grad, mask_at, flags, spot, True)
            largest = tl.maximum(largest, tl.abs(g))
        exponent = (tl.max(largest, 0).to(tl.int64, bitcast=True) >> 52) - 1023
        exponent = tl.minimum(tl.maximum(-exponent, -1022), 1023)
        factor = ((exponent + 1023) << 52).to(tl.float64, bitcast=True)

    total = tl.zeros([BLOCK], tl.float64)
    bad = tl.zeros([BLOCK], tl.int32)
    for start in range(0, dim, BLOCK):
        spot, _target = _spot(sample, start, j, sizes, flags)
        g, _good, wrong = _gradient(grad, mask_at, flags, spot, True)
        scaled = g.to(tl.float64) * factor
        total += tl.abs(scaled) if L1 else scaled * scaled
        bad += wrong
    _count(count_at, bad)
    size = tl.sum(total, 0)
    if not L1:
        size = tl.sqrt(size)
    # A sample with a non-finite entry, no gradient, or nothing unmasked does not move.
    moves = (tl.sum(bad.to(tl.int64), 0) == 0) & (size > 0)
    p, q, r = _split(tl.where(moves, size, 1.0))

    # The move. x is left unprojected, and its distance to x0 is summed on the way.
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, dim, BLOCK):
        spot, _target = _spot(sample, start, j, sizes, flags)
        new = tl.load(x + spot[2], mask=spot[3], other=0.0)
        if moves:
            g, _good, _wrong = _gradient(grad, mask_at, flags, spot, True)
            g = (g * factor.to(g.dtype)).to(tl.float32)
            new += _operand((alpha_at, alpha), flags, _ALPHA, spot) * (((g * p) * q) * r)
            if (flags >> _BOX_FIRST) & 1 != 0:
                low = _operand((lo_at, lo), flags, _LO, spot)
                new = _clamp(new, low, _operand((hi_at, hi), flags, _HI, spot))
            tl.store(x + spot[2], new, mask=spot[3])
        centre = tl.load(x0 + spot[2], mask=spot[3], other=0.0)
        d = tl.where(spot[3], new.to(tl.float64) - centre.to(tl.float64), 0.0)
        total += tl.abs(d) if L1 else d * d
    # From here on a thread may read what another one has written.
    tl.debug_barrier()
    far = tl.sum(total, 0)
    if not L1:
        far = tl.sqrt(far)
    radius = _number((eps_at, eps), flags, _EPS, sample)
    outside = far > radius.to(tl.float64)

    # theta with sum(max(|d| - theta, 0)) = radius, by Newton's method from below as in the C++ core:
    # each pass drops the entries that end at zero, and it ends when none does.
    theta = (far - radius.to(tl.float64)) / dim.to(tl.float64)
    scale = tl.full((), 1.0, tl.float64)
    if L1:
        count = dim
        searching = outside
        while searching:
            total = tl.zeros([BLOCK], tl.float64)
            kept = tl.zeros([BLOCK], tl.int64)
            for start in range(0, dim, BLOCK):
                at = start + j.to(tl.int64)
                new = tl.load(x + sample * dim + at, mask=at < dim, other=0.0)
                centre = tl.load(x0 + sample * dim + at, mask=at < dim, other=0.0)
                above = tl.abs(new.to(tl.float64) - centre.to(tl.float64)) - theta
                total += tl.maximum(above, 0.0)
                kept += (above > 0).to(tl.int64)
            left = tl.sum(total, 0)
            number = tl.sum(kept, 0)
            searching = (number > 0) & (number < count)
            count = tl.maximum(number, 1)
            step = (left - radius.to(tl.float64)) / count.to(tl.float64)
            theta += tl.where(searching, step, 0.0)
            # Far outside a small ball the digits of theta do not resolve eps: scaled into the ball.
            scale = tl.where(left > radius.to(tl.float64), radius.to(tl.float64) / left, 1.0)

    p, q, r = _split(tl.where(outside, far, 1.0))
    for start in range(0, dim, BLOCK):
        spot, target = _spot(sample, start, j, sizes, flags)
        new = tl.load(x + spot[2], mask=spot[3], other=0.0)
        centre = tl.load(x0 + spot[2], mask=spot[3], other=0.0)
        if outside:
            if L1:
                # In float64: the difference of |d| and theta can be far smaller than either.
                d = new.to(tl.float64) - centre.to(tl.float64)
                shrunk = tl.maximum(tl.abs(d) - theta, 0.0) * scale
                delta = tl.where(d < 0, -shrunk, shrunk).to(tl.float32)
            else:
                delta = ((((new - centre) * p) * q) * r) * radius
            new = _add_within(centre, delta)
        low = _operand((lo_at, lo), flags, _LO, spot)
        new = _clamp(new, low, _operand((hi_at, hi), flags, _HI, spot))
        tl.store(x + spot[2], new, mask=spot[3])
        _write_out(out, target, new, centre, (scale_at, shift_at), flags, spot, True)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 (Salmon et al., SC'11) on uint32 words."""
    for _ in tl.static_range(10):
        a = c0.to(tl.uint64) * 0xD2511F53
        b = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = b.to(tl.uint32)
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = a.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, False)
        k1 = tl.add(k1, 0xBB67AE85, False)
    return c0, c1, c2, c3


@triton.jit
def _open_uniform(word):
    """(0, 1), odd multiples of 2^-24."""
    return (2 * (word >> 9).to(tl.int32) + 1).to(tl.float64) * 5.9604644775390625e-08


@triton.jit
def _draw(number, stream, identity, seed, NORM: tl.constexpr):
    """linf: float32 uniform in (-1, 1). l2: normal (Box-Muller, pairs). l1: signed exponential."""
    c0, c1, c2, c3 = number >> 2, stream, identity, identity >> 32
    w0, w1, w2, w3 = philox(
        c0.to(tl.uint32), c1.to(tl.uint32), c2.to(tl.uint32), c3.to(tl.uint32),
        seed.to(tl.uint32), (seed >> 32).to(tl.uint32),
    )  # fmt: skip
    odd = (number & 1) != 0
    second = (number & 2) != 0
    word = tl.where(odd, tl.where(second, w3, w1), tl.where(second, w2, w0))
    if NORM == 0:
        draw = (2 * (word >> 8).to(tl.int32) + 1 - (1 << 24)).to(tl.float32)
        return draw * 5.9604644775390625e-08
    elif NORM == 1:
        size = tl.log(_open_uniform(word))
        return tl.where((word & 1) == 1, -size, size)
    else:
        size = tl.sqrt(-2.0 * tl.log(_open_uniform(tl.where(second, w2, w0))))
        turn = _open_uniform(tl.where(second, w3, w1)) * 6.283185307179586
        return size * tl.where(odd, tl.sin(turn), tl.cos(turn))


def _start(
    x, x0,  # [B, D] float32
    eps_at: tl.int64, lo_at: tl.int64, hi_at: tl.int64, seed_at: tl.int64, ids_at: tl.int64,
    eps: tl.float32, lo: tl.float32, hi: tl.float32,
    flags: tl.int32, stream: tl.int64, inner: tl.int64, outer: tl.int64,
    magic_i: tl.uint32, shift_i: tl.int32, magic_o: tl.uint32, shift_o: tl.int32,
    NORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sizes = (inner, outer, magic_i, shift_i, magic_o, shift_o)
    sample = tl.program_id(0).to(tl.int64)
    dim = inner.to(tl.int64) * outer
    j = tl.arange(0, BLOCK)
    seed = tl.load(seed_at.to(tl.int64).to(tl.pointer_type(tl.int64)))
    ids = ids_at.to(tl.int64).to(tl.pointer_type(tl.int64))
    identity = tl.load(ids + sample, mask=ids_at != 0, other=sample)
    if NORM > 0:
        total = tl.zeros([BLOCK], tl.float64)
        for start in range(0, dim, BLOCK):
            spot, number = _spot(sample, start, j, sizes, flags)
            draw = _draw(number - sample * dim, stream, identity, seed, NORM)
            total += tl.where(spot[3], tl.abs(draw) if NORM == 1 else draw * draw, 0.0)
        # Minus the logarithm of a uniform number of the sample's own, from a block that no element has.
        whole = tl.full((), 0xFFFFFFFF << 2, tl.int64)
        own = tl.abs(_draw(whole, stream, identity, seed, 1))
        factor = _number((eps_at, eps), flags, _EPS, sample).to(tl.float64)
        # l1: D of D + 1 normalised exponentials. l2: a direction, and the radius eps * u^(1/D).
        if NORM == 1:
            factor *= 1.0 / (tl.sum(total, 0) + own)
        else:
            factor *= tl.exp(-own / dim.to(tl.float64)) / tl.sqrt(tl.sum(total, 0))
    first = tl.program_id(1).to(tl.int64) * BLOCK
    for start in range(first, dim, tl.num_programs(1).to(tl.int64) * BLOCK):
        # Draws are numbered in NCHW order, so that the layout does not change them.
        spot, number = _spot(sample, start, j, sizes, flags)
        draw = _draw(number - sample * dim, stream, identity, seed, NORM)
        centre = tl.load(x0 + spot[2], mask=spot[3], other=0.0)
        if NORM > 0:
            new = _add_within(centre, (draw * factor).to(tl.float32))
        else:
            new = centre + draw * _operand((eps_at, eps), flags, _EPS, spot)
        low = _operand((lo_at, lo), flags, _LO, spot)
        high = _operand((hi_at, hi), flags, _HI, spot)
        tl.store(x + spot[2], _clamp(new, low, high), mask=spot[3])


def _jit(fn: Any, *multiples: str) -> Any:
    """fn, compiled once a signature whatever the values; `multiples` of 16 are known as such."""
    values = [name for name in signature(fn).parameters if name.islower() and name not in multiples]
    return triton.jit(fn, do_not_specialize=values)


ALIGNED = ("x", "grad", "x0", "out", "n")  # what is a multiple of 16 in "linf-aligned"
KERNELS = {  # with the elements of a block, and warps
    "linf": (_jit(_step_linf), 1024, 8),
    "linf-aligned": (_jit(_step_linf, *ALIGNED), 1024, 8),
    "ball": (_jit(_step_ball), 2048, 16),
    "start": (_jit(_start), 512, 4),
}
_NORM_NUMBERS = {"linf": 0, "l1": 1, "l2": 2}


class Specialisation(NamedTuple):
    """What is compiled separately."""

    kernel: str
    grad: torch.dtype | None  # None: the kernel has no gradient
    constant: str
    value: int

    def constants(self) -> dict[str, int]:
        return {self.constant: self.value, "BLOCK": KERNELS[self.kernel][1]}

    def options(self) -> dict[str, Any]:
        return {"num_warps": KERNELS[self.kernel][2], "enable_fp_fusion": False}


def specialisations() -> list[Specialisation]:
    """All that the launchers can ask for (tests/triton_aot.py compiles them without a GPU)."""
    linf = ("linf", "linf-aligned")
    return [
        *(Specialisation(k, g, "STRIDED", v) for k in linf for g in _KINDS for v in (0, 1)),
        *(Specialisation("ball", g, "L1", v) for g in _KINDS for v in (0, 1)),
        *(Specialisation("start", None, "NORM", v) for v in _NORM_NUMBERS.values()),
    ]


def _launch(spec: Specialisation, grid: tuple[int, ...], x: Tensor, args: tuple) -> None:
    # The interpreter computes in numpy, which warns where a GPU quietly gives inf or NaN.
    with torch.cuda.device_of(x), numpy.errstate(all="ignore"):
        KERNELS[spec.kernel][0][grid](*args, **spec.constants(), **spec.options())


def _divisor(d: int) -> tuple[int, int]:
    """(magic, shift): t // d == t * magic >> shift, 0 <= t < 2^31 (Granlund, Montgomery 1994)."""
    d = min(d, _ROW_LIMIT.value)
    shift = 31 + (d - 1).bit_length()
    return -(-(1 << shift) // d), shift


def _sizes(x: Tensor) -> tuple[int, ...]:
    """inner and outer length of a sample in storage, and how to divide by them."""
    channels, spatial = (x.shape[1] if x.dim() > 1 else 1), x.shape[2:].numel()
    inner, outer = (spatial, channels) if x.is_contiguous() else (channels, spatial)
    return inner, outer, *_divisor(inner), *_divisor(outer)


def _operands(values: Sequence[Any], x: Tensor) -> tuple[int, list[int], list[float]]:
    """Modes (three bits each, see `flags`), addresses and host numbers."""
    modes, addresses, numbers = 0, [], []
    for i, value in enumerate(values):
        mode, address, number = 0, 0, 0.0 if value is None else value
        if isinstance(value, Tensor):
            mode = 2 if value.shape[0] == x.shape[0] > 1 else 3
            mode = 1 if value.numel() == 1 else 4 if value.shape == x.shape else mode
            address, number = value.data_ptr(), 0.0
        modes += mode << 3 * i
        addresses.append(address)
        numbers.append(float(number))
    return modes, addresses, numbers


def pgd_step_(
    x, grad, x0, *, alpha, eps, lo, hi, norm, l2_order, mask, out, scale, shift, nonfinite
) -> None:
    n = x.numel()
    if n == 0:
        return
    flags, addresses, numbers = _operands((alpha, eps, lo, hi, scale, shift, mask), x)
    transposed = out is not None and out.is_contiguous() != x.is_contiguous()
    strided = transposed or mask is not None or flags & _VARYING != 0
    flags += (0 if out is None else _KINDS[out.dtype]) << _OUT.value
    flags += (grad is not None) << _GRAD.value
    flags += (scale is not None or shift is not None) << _AFFINE.value
    flags += (not x.is_contiguous()) << _CHANNELS_LAST.value
    flags += (l2_order == "box-ball-box") << _BOX_FIRST.value
    flags += (transposed << _TRANSPOSED.value) + (strided << _STRIDED.value)
    grad = x if grad is None else grad
    target = triton.reinterpret(x if out is None else out, tl.int16)
    counter = 0 if nonfinite is None else nonfinite.data_ptr()
    args = (x, grad, x0, target, *addresses, counter, *numbers[:4], flags, n, *_sizes(x))
    if norm == "linf":
        bits = x.data_ptr() | grad.data_ptr() | x0.data_ptr() | target.data_ptr() | n
        kernel = "linf" if bits % 16 else "linf-aligned"
        spec = Specialisation(kernel, grad.dtype, "STRIDED", int(strided))
        grid = (triton.cdiv(n, KERNELS[kernel][1]),)
    else:
        spec = Specialisation("ball", grad.dtype, "L1", int(norm == "l1"))
        grid = (x.shape[0],)
    _launch(spec, grid, x, args)


def random_start(x0, *, eps, lo, hi, norm, seed, offset, sample_ids) -> Tensor:
    x = torch.empty_like(x0)
    if x.numel() == 0:
        return x
    flags, (_, *addresses), (_, *numbers) = _operands((None, eps, lo, hi), x)
    if not x.is_contiguous():
        # The number of a draw is where a transposed output would keep its element.
        flags += (1 << _CHANNELS_LAST.value) + (1 << _TRANSPOSED.value)
    flags += (flags != 0) << _STRIDED.value
    addresses += [seed.data_ptr(), 0 if sample_ids is None else sample_ids.data_ptr()]
    args = (x, x0, *addresses, *numbers, flags, offset, *_sizes(x))
    # The draws of l2 and l1 are scaled by a sum over the sample, so one program has all of it.
    blocks = triton.cdiv(x.numel() // x.shape[0], KERNELS["start"][1])
    grid = (x.shape[0], min(blocks, 65535) if norm == "linf" else 1)
    _launch(Specialisation("start", None, "NORM", _NORM_NUMBERS[norm]), grid, x, args)
    return x
