"""The definition of the ntk family, in plain torch.

A layer's weight [groups, c, T, e] is applied at S positions. Position p of the output reads pixels taps[p, 0 .. T-1] of
the input (-1: padding, zero), so that the patch is a[p, t] = x[taps[p, t]] (e numbers), and the gradient of readout r
with respect to the weight is the sum over p of g[r, p] (c numbers) times a[p]. The kernel of two samples is

    Theta[r, r'] = sum over groups, p, q of (a1[p] . a2[q]) (g1[r, p] . g2[r', q]).

The three orders of that sum (specs: M, C, G) are `gram` of `rows`, `chain` and `hadamard`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

_LEAST_ROWS = 80  # of a matrix product: a smaller one runs too slowly for what it saves
_HELD = 1 << 25  # numbers of an intermediate product that are held at once
PRECISIONS = ("fp64", "fp32", "tf32", "bf16", "bf16x3")


def round_tf32(t: Tensor) -> Tensor:
    """float32 to the nearest number with a 10-bit mantissa, ties to even, by integer arithmetic on the bits.

    Infinities and NaN stay; a magnitude past the largest such number becomes infinite.
    """
    bits = t.contiguous().view(torch.int32)
    rounded = (bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF
    return torch.where(t.isfinite(), rounded.view(torch.float32), t)


def round_bf16(t: Tensor) -> Tensor:
    """float32 to the nearest bfloat16, as float32."""
    return t.to(torch.bfloat16).to(torch.float32)


def rounded(t: Tensor, precision: str) -> Tensor:
    """An operand of a product in this precision ("bf16x3" splits it instead: see `product`)."""
    if precision == "tf32":
        return round_tf32(t)
    return round_bf16(t) if precision == "bf16" else t


@contextlib.contextmanager
def _matrix_units(device: torch.device, precision: str) -> Iterator[None]:
    """On CUDA: TF32 is allowed for operands that it does not change, which all rounded ones are."""
    setting = torch.backends.cuda.matmul
    before = setting.allow_tf32
    if device.type == "cuda":
        setting.allow_tf32 = precision in ("tf32", "bf16", "bf16x3")
    try:
        yield
    finally:
        if device.type == "cuda":
            setting.allow_tf32 = before


def product(a: Tensor, b: Tensor, precision: str) -> Tensor:
    """a @ b with operands rounded as `precision` says and sums in float32 (fp64: everything in float64)."""
    with _matrix_units(a.device, precision):
        if precision != "bf16x3":
            return rounded(a, precision) @ rounded(b, precision)
        a_high, b_high = round_bf16(a), round_bf16(b)
        a_low, b_low = round_bf16(a - a_high), round_bf16(b - b_high)
        return a_high @ b_high + (a_high @ b_low + a_low @ b_high)


def patches(x: Tensor, taps: Tensor | None) -> Tensor:
    """[n, groups, S, T, e] of x [n, groups, L, e]."""
    if taps is None:
        return x.unsqueeze(3)
    padded = torch.cat([x, x.new_zeros(*x.shape[:2], 1, x.shape[3])], 2)
    index = torch.where(taps < 0, x.shape[2], taps).to(torch.int64)
    return padded[:, :, index.flatten()].unflatten(2, taps.shape)


def ntk_rows(x: Tensor, g: Tensor, taps: Tensor | None) -> Tensor:
    a = patches(x, taps).flatten(3)  # [n, groups, S, T*e]
    n, readouts, groups, positions, c = g.shape
    left = g.permute(0, 2, 1, 4, 3).reshape(n, groups, readouts * c, positions)
    count, e = 1 if taps is None else taps.shape[1], x.shape[3]
    rows = (left @ a).view(n, groups, readouts, c, count, e).transpose(1, 2)
    return rows.contiguous()  # as the op is declared: with several groups it is a view


def ntk_patch_gram(
    x1: Tensor, x2: Tensor, taps1: Tensor | None, taps2: Tensor | None, precision: str
) -> Tensor:
    a1, a2 = patches(x1, taps1).flatten(3), patches(x2, taps2).flatten(3)
    return product(a1.unsqueeze(1), a2.transpose(-1, -2).unsqueeze(0), precision)


def ntk_gram_(out: Tensor, j1: Tensor, j2: Tensor, precision: str, upper: bool) -> None:
    n, readouts = j1.shape[:2]
    if upper and n * readouts >= 2 * _LEAST_ROWS:
        half = n // 2
        at = half * readouts
        ntk_gram_(out[:at, :at], j1[:half], j2[:half], precision, True)
        ntk_gram_(out[:at, at:], j1[:half], j2[half:], precision, False)
        ntk_gram_(out[at:, at:], j1[half:], j2[half:], precision, True)
        return
    out += product(j1.flatten(0, 1), j2.flatten(0, 1).mT, precision)


def _slabs(out: Tensor, x1: Tensor, g1: Tensor, per_sample: int) -> Iterator[tuple[Tensor, ...]]:
    """out, x1 and g1 of a few samples at a time, `per_sample` numbers of an intermediate product for each."""
    step, readouts = max(1, _HELD // max(per_sample, 1)), g1.shape[1]
    for i in range(0, len(x1), step):
        yield out[i * readouts : (i + step) * readouts], x1[i : i + step], g1[i : i + step]


def ntk_chain_(out, x1, g1, x2, g2, taps1, taps2, precision, upper) -> None:
    k = ntk_patch_gram(x1, x2, taps1, taps2, precision)  # [n1, n2, groups, S1, S2]
    n2, readouts2, groups, positions2, c = g2.shape
    right = g2.permute(0, 2, 3, 1, 4).reshape(1, n2, groups, positions2, readouts2 * c)
    left = g1.permute(0, 2, 1, 3, 4).flatten(3)  # [n1, groups, R1, S1*c]
    chain = product(k, right, precision)  # [n1, n2, groups, S1, R2*c]
    chain = (
        chain.unflatten(4, (readouts2, c)).transpose(3, 4).flatten(4)
    )  # [n1, n2, groups, R2, S1*c]
    theta = product(left.unsqueeze(1), chain.mT, precision).sum(2)  # [n1, n2, R1, R2]
    out += theta.permute(0, 2, 1, 3).reshape(out.shape)


def ntk_hadamard_(out, x1, g1, x2, g2, taps1, taps2, precision, upper) -> None:
    right = g2.permute(0, 2, 1, 3, 4).unsqueeze(0)  # [1, n2, groups, R2, S2, c]
    per_sample = g2.shape[:4].numel() * g1.shape[1] * g1.shape[3]
    for part, x, g in _slabs(out, x1, g1, per_sample):
        k = ntk_patch_gram(x, x2, taps1, taps2, precision)
        left = g.permute(0, 2, 1, 3, 4).unsqueeze(1)  # [n1, 1, groups, R1, S1, c]
        # [n1, n2, groups, R1*S1, R2*S2]
        b = product(left.flatten(3, 4), right.flatten(3, 4).mT, precision)
        b = b.unflatten(4, right.shape[3:5]).unflatten(3, left.shape[3:5])  # ..., R1, S1, R2, S2
        theta = (b * k[:, :, :, None, :, None]).sum((2, 4, 6))  # [n1, n2, R1, R2]
        part += theta.permute(0, 2, 1, 3).reshape(part.shape)
