"""The pgd family in plain torch: the definition that every other implementation is tested against.

Written to be read. l2 and l1 are computed in float64 and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

Operand = float | Tensor  # a number, or a tensor that broadcasts over the images


def _like(value: Operand, x: Tensor) -> Tensor:
    """The operand as a tensor of x's dtype, rounded once."""
    if isinstance(value, Tensor):
        return value.to(x.dtype)
    return torch.full((), value, dtype=x.dtype, device=x.device)


def _clamp(v: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """clamp by comparisons, so that -0.0 and NaN come out the same on every device."""
    v = torch.where(v < lo, lo, v)
    return torch.where(v > hi, hi, v)


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, ...]."""
    return values.reshape(-1, *[1] * (x.dim() - 1))


def _flat(v: Tensor) -> Tensor:
    """[B, ...] -> [B, D]; D is spelled out so that an empty batch keeps it."""
    return v.reshape(v.shape[0], v.shape[1:].numel())


def _rescaled(v: Tensor) -> tuple[Tensor, Tensor]:
    """v in float64 with the largest entry of each sample near 1, and what each was divided by, [B].

    Division by a power of two changes no digit; without it squares overflow and underflow.
    """
    flat = _flat(v).double()
    largest = flat.abs().amax(1) if flat.shape[1] else flat.new_zeros(flat.shape[0])
    scale = torch.exp2(torch.where(largest > 0, torch.floor(torch.log2(largest)), 0.0))
    return v.double() / _per_sample(scale, v), scale


def _size(v: Tensor, norm: str) -> Tensor:
    """[B] float64 norms of the samples."""
    scaled, scale = _rescaled(v)
    flat = _flat(scaled)
    return (flat.square().sum(1).sqrt() if norm == "l2" else flat.abs().sum(1)) * scale


def _neighbour_bits(v: Tensor, up: Tensor) -> Tensor:
    """The next number of a 16-bit format toward +inf where `up`, else toward -inf."""
    bits = v.view(torch.int16).int() & 0xFFFF
    negative, zero = bits >= 0x8000, (bits & 0x7FFF) == 0
    moved = torch.where(negative == up, bits - 1, bits + 1)
    moved = torch.where(zero, torch.where(up, 0x0001, 0x8001), moved)
    return torch.where(moved >= 0x8000, moved - 0x10000, moved).to(torch.int16).view(v.dtype)


def _neighbour(v: Tensor, up: Tensor) -> Tensor:
    if v.dtype in (torch.float16, torch.bfloat16):
        return _neighbour_bits(v, up)
    infinity = torch.full_like(v, torch.inf)
    return torch.nextafter(v, torch.where(up, infinity, -infinity))


def round_toward(x: Tensor, x0: Tensor, dtype: torch.dtype) -> Tensor:
    """x in `dtype`, never farther from x0 than x is.

    Where no number of `dtype` lies between x and x0 (x0 itself is not one), the nearest number.
    """
    if dtype == x.dtype:
        return x.clone()
    nearest = x.float().to(dtype) if dtype != torch.float64 else x.to(dtype)
    above = x >= x0
    value = nearest.double()
    outside = torch.where(above, value > x.double(), value < x.double())
    inner = _neighbour(nearest, ~above)
    crosses = torch.where(above, inner.double() < x0.double(), inner.double() > x0.double())
    return torch.where(outside & ~crosses, inner, nearest)


def _add_within(x0: Tensor, delta: Tensor) -> Tensor:
    """x0 + delta, toward x0 where the nearest number is farther from x0 than delta.

    A subnormal delta counts as 0: its own rounding may already have lengthened it.
    """
    delta = torch.where(delta.abs() < torch.finfo(delta.dtype).tiny, 0, delta)
    z = x0 + delta
    moved = z - x0
    return torch.where(moved.abs() > delta.abs(), _neighbour(z, moved < 0), z)


def _l1_threshold(sizes: Tensor, radius: Tensor) -> Tensor:
    """theta [B, 1] with sum(max(sizes - theta, 0)) = radius (Duchi et al. 2008, figure 1: by sorting)."""
    ordered = sizes.sort(1, descending=True).values
    count = torch.arange(1, sizes.shape[1] + 1, device=sizes.device)
    theta = (ordered.cumsum(1) - radius) / count
    last = (ordered > theta).sum(1, keepdim=True).clamp(min=1)
    return theta.gather(1, last - 1)


def _to_ball(x: Tensor, x0: Tensor, eps: Tensor, norm: str) -> Tensor:
    """Euclidean projection of x onto the l2 or l1 ball; points inside keep their bits."""
    delta = x.double() - x0.double()
    radius = torch.broadcast_to(eps, (x.shape[0], *[1] * (x.dim() - 1))).reshape(-1, 1).double()
    size = _size(delta, norm)[:, None]
    outside = _per_sample(size > radius, x)
    if norm == "l2":
        shrunk = delta * _per_sample(radius / torch.where(size > 0, size, 1.0), x)
    else:
        theta = _l1_threshold(_flat(delta.abs()), torch.where(radius < torch.inf, radius, 0.0))
        shrunk = delta.sign() * (delta.abs() - _per_sample(theta, x)).clamp(min=0)
        # Far outside a small ball the digits of theta do not resolve eps: what is left is scaled into the ball.
        left = _size(shrunk, norm)[:, None]
        shrunk = shrunk * _per_sample(torch.where(left > radius, radius / left, 1.0), x)
    return torch.where(outside, _add_within(x0, shrunk.to(x.dtype)), x)


def _write_out(x, x0, out, scale, shift) -> None:
    if out is None:
        return
    if scale is None and shift is None:
        out.copy_(round_toward(x, x0, out.dtype))
        return
    shifted = x - _like(0.0 if shift is None else shift, x)
    scaled = shifted * _like(1.0 if scale is None else scale, x)
    out.copy_(scaled if out.dtype == torch.float64 else scaled.float().to(out.dtype))


def pgd_step_(
    x: Tensor,  # [B, ...] float32 | float64, updated in place
    grad: Tensor | None,  # [B, ...] any float dtype; None: only the projection
    x0: Tensor,  # [B, ...] like x
    *,
    alpha: Operand,
    eps: Operand,
    lo: Operand,
    hi: Operand,
    norm: str,
    l2_order: str,
    mask: Tensor | None,
    out: Tensor | None,
    scale: Operand | None,
    shift: Operand | None,
    nonfinite: Tensor | None,
) -> None:
    if not x.numel():
        return
    alpha, eps, lo, hi = (_like(v, x) for v in (alpha, eps, lo, hi))
    if grad is None:
        grad, mask = torch.zeros_like(x), torch.zeros((), dtype=torch.bool, device=x.device)
    finite = torch.isfinite(grad)
    active = torch.ones_like(finite) if mask is None else torch.broadcast_to(mask, x.shape)
    if nonfinite is not None:
        nonfinite += (active & ~finite).sum()

    if norm == "linf":
        sign = torch.where(finite, torch.sign(grad), 0).to(x.dtype)
        stepped = _clamp(x0 + _clamp(x + alpha * sign - x0, -eps, eps), lo, hi)
        held = _clamp(_clamp(x, x0 - eps, x0 + eps), lo, hi)
        x.copy_(torch.where(active & finite, stepped, held))
    else:
        g, _ = _rescaled(torch.where(active & finite, grad.double(), 0.0))
        size = _size(g, norm)
        # A sample with a non-finite entry, no gradient, or nothing unmasked does not move.
        moves = _flat(finite | ~active).all(1) & (size > 0)
        direction = g / _per_sample(torch.where(moves, size, 1.0), x)
        moved = x + (alpha.double() * direction).to(x.dtype)
        if l2_order == "box-ball-box":
            moved = _clamp(moved, lo, hi)
        moved = torch.where(_per_sample(moves, x), moved, x)
        x.copy_(_clamp(_to_ball(moved, x0, eps, norm), lo, hi))
    _write_out(x, x0, out, scale, shift)


# --- random start: Philox4x32-10 (Salmon et al., SC'11), in int64 arithmetic -----------------------------------------

_MASK = 0xFFFFFFFF
SAMPLE_BLOCK = 0xFFFFFFFF  # the element block number of draws that belong to the whole sample


def _mul_hi_lo(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * b; the product is split so that int64 does not overflow."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    return (high + (low >> 16)) >> 16, (low + ((high & 0xFFFF) << 16)) & _MASK


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> Tensor:
    """Four words of each counter, uint32 values in int64: [..., 4]."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        hi0, lo0 = _mul_hi_lo(0xD2511F53, c0)
        hi1, lo1 = _mul_hi_lo(0xCD9E8D57, c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), -1)


def start_words(blocks: Tensor, offset: int, ids: Tensor, seed: Tensor) -> Tensor:
    """[B, blocks, 4]: counter (block, offset, sample id), key seed."""
    block, ids = blocks[None, :], ids[:, None]
    stream = torch.full_like(block, offset)
    return philox(
        (block, stream, ids & _MASK, (ids >> 32) & _MASK), (seed & _MASK, (seed >> 32) & _MASK)
    )


def _open_uniform(words: Tensor) -> Tensor:
    """(0, 1), odd multiples of 2^-24, float64."""
    return (2 * (words >> 9) + 1).double() * 2.0**-24


def random_start(
    x0: Tensor,  # [B, ...] float32 | float64
    *,
    eps: Operand,
    lo: Operand,
    hi: Operand,
    norm: str,
    seed: Tensor,  # [1] int64
    offset: int,
    sample_ids: Tensor | None,  # [B] int64
) -> Tensor:
    if not x0.numel():
        return torch.empty_like(x0)
    eps, lo, hi = (_like(v, x0) for v in (eps, lo, hi))
    batch, dim = x0.shape[0], x0.shape[1:].numel()
    ids = torch.arange(batch, device=x0.device) if sample_ids is None else sample_ids
    blocks = torch.arange((dim + 3) // 4, device=x0.device)
    words = start_words(blocks, offset, ids, seed).flatten(1)[:, :dim]  # [B, D], NCHW order
    if norm == "linf":
        uniform = (2 * (words >> 8) + 1 - (1 << 24)).to(x0.dtype) * 2.0**-24
        start = _clamp(x0 + uniform.reshape(x0.shape) * eps, lo, hi)
        return torch.empty_like(x0).copy_(start)
    whole = torch.full((1,), SAMPLE_BLOCK, device=x0.device)
    own = _open_uniform(start_words(whole, offset, ids, seed)[:, 0, 0])  # [B]
    if norm == "l2":
        # Box-Muller on pairs of words; a last odd block is completed with its own words.
        u = _open_uniform(start_words(blocks, offset, ids, seed)).unflatten(2, (2, 2))
        radius, angle = (-2.0 * u[..., 0].log()).sqrt(), 2.0 * torch.pi * u[..., 1]
        draws = torch.stack((radius * angle.cos(), radius * angle.sin()), -1)
        draws = draws.flatten(1)[:, :dim]
        factor = own ** (1.0 / max(dim, 1)) / draws.square().sum(1).sqrt()
    else:
        sizes = -_open_uniform(words).log()
        draws = torch.where(words & 1 == 1, sizes, -sizes)
        factor = 1.0 / (sizes.sum(1) - own.log())
    radius = torch.broadcast_to(eps, (batch, *[1] * (x0.dim() - 1))).reshape(-1).double()
    delta = (draws * (factor * radius)[:, None]).reshape(x0.shape).to(x0.dtype)
    return torch.empty_like(x0).copy_(_clamp(_add_within(x0, delta), lo, hi))
