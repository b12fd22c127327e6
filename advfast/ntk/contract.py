"""The products of two blocks' factors, in the order that the plan names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advfast import kernels
from advfast.kernels.ntk.reference import product

from .costs import padded
from .planner import Choice, Plan
from .terms import Factor, Layer, Product, Rows, Tokens


@dataclass
class Held:
    """What is kept of one layer for the samples of a tile or a column block: [samples, ...] in its tensors.

    order M: `a` is [n, R, columns], of several layers if `layer` is None; C and G: `a` is x; tokens: `a` is ids.
    """

    layer: Layer | None
    order: str
    a: Tensor
    g: Tensor | None = None

    def block(self, first: int, count: int) -> Held:
        g = None if self.g is None else self.g[first : first + count]
        return Held(self.layer, self.order, self.a[first : first + count], g)


def empty(row: Choice, layer: Layer, plan: Plan, samples: int, like: Tensor) -> Held:
    """Room for `samples` samples, not yet filled, but for the columns that fill up a cache line: these are zero.

    Args:
        layer: the layer on this side (its geometry differs from the other's where the images' sizes do).
        like: a tensor of the device and dtype.
    """
    r = plan.readouts
    readouts, fold = (1, r) if plan.trace else (r, 1)
    if row.order == "M":
        return Held(layer, "M", rows(samples, readouts, fold * layer.columns, like))
    g = like.new_empty(samples, readouts, layer.groups, layer.positions, fold * layer.channels)
    if layer.kind == "tokens":
        return Held(
            layer, "C", like.new_zeros(samples, layer.positions, dtype=torch.int64), g[:, :, 0]
        )
    x = like.new_zeros(samples, layer.groups, layer.pixels, layer.features)
    return Held(layer, row.order, x, g)


def rows(samples: int, readouts: int, columns: int, like: Tensor) -> Tensor:
    """[samples, readouts, padded columns], zero behind the columns."""
    a = like.new_empty(samples, readouts, padded(columns))
    a[:, :, columns:] = 0
    return a


def fill(held: Held, factor: Factor, at: int, count: int, *, trace: bool) -> None:
    """Puts the first `count` samples of a captured chunk at samples at .. at + count - 1."""
    where = slice(at, at + count)
    if held.order == "M":
        if isinstance(factor, Product):
            assert held.layer is not None
            j = kernels.ntk_rows(factor.x[:count], factor.g[:count], held.layer.taps).flatten(2)
        else:
            assert isinstance(factor, Rows)
            j = factor.j[:count]
        j = j.flatten(1).unsqueeze(1) if trace else j
        held.a[where, :, : j.shape[2]] = j  # the columns behind fill up a cache line
        return
    assert isinstance(factor, (Product, Tokens)) and held.g is not None
    held.a[where] = (factor.x if isinstance(factor, Product) else factor.ids)[:count]
    g = factor.g[:count]
    if trace:  # sum over r of g_r . g_r: the readouts stand side by side in the channels
        g = g.movedim(1, -2).flatten(-2).unsqueeze(1)
    held.g[where] = g


def add(out: Tensor, left: Held, right: Held, precision: str, *, upper: bool) -> None:
    """out [n1*R, n2*R] += one layer's part for two blocks. With `upper` only pairs of samples i <= j are right."""
    if left.order == "M":
        kernels.ntk_gram_(out, left.a, right.a, precision=precision, upper=upper)
        return
    assert left.g is not None and right.g is not None and left.layer and right.layer
    if left.layer.kind == "tokens":
        _add_tokens(out, left.a, left.g, right.a, right.g, precision)
    elif left.order == "G" and left.layer.positions == right.layer.positions == 1:
        _add_linear(out, left, right, precision)
    else:
        op = kernels.ntk_chain_ if left.order == "C" else kernels.ntk_hadamard_
        op(
            out, left.a, left.g, right.a, right.g, left.layer.taps, right.layer.taps,
            precision=precision, upper=upper,
        )  # fmt: skip


def _add_linear(out: Tensor, left: Held, right: Held, precision: str) -> None:
    """A weight applied once a sample: two plain matrix products (of each group), multiplied entry by entry."""
    assert left.g is not None and right.g is not None
    n1, r1, groups = left.g.shape[:3]
    n2, r2 = right.g.shape[:2]
    target = out.unflatten(0, (n1, r1)).unflatten(2, (n2, r2))
    for group in range(groups):
        # With one position a sample its patch is its pixels in the order of the taps; padding drops out.
        a1, a2 = (_single_patch(side, group) for side in (left, right))
        k = product(a1, a2.mT, precision)
        b = product(
            left.g[:, :, group, 0].flatten(0, 1),
            right.g[:, :, group, 0].flatten(0, 1).mT,
            precision,
        )
        target += b.view(n1, r1, n2, r2) * k[:, None, :, None]


def _single_patch(side: Held, group: int) -> Tensor:
    x, taps = side.a[:, group], side.layer.taps if side.layer else None
    if taps is None:
        return x.flatten(1)
    inside = taps[0].clamp(min=0).to(torch.int64)
    return (x[:, inside] * (taps[0] >= 0)[None, :, None]).flatten(1)


def _add_tokens(
    out: Tensor, ids1: Tensor, g1: Tensor, ids2: Tensor, g2: Tensor, precision: str
) -> None:
    """An embedding: the gradients of equal tokens meet. One sample of the left side at a time."""
    n1, r1 = g1.shape[:2]
    n2, r2 = g2.shape[:2]
    target = (
        out.view(n1, r1, n2, r2)
        if out.is_contiguous()
        else out.unflatten(0, (n1, r1)).unflatten(2, (n2, r2))
    )
    for i in range(n1):
        same = (ids1[i][None, :, None] == ids2[:, None, :]).to(g2.dtype)  # [n2, S1, S2]
        chain = product(same.unsqueeze(1), g2, precision)  # [n2, R2, S1, c]
        theta = product(chain.flatten(2), g1[i].flatten(1).mT, precision)  # [n2, R2, R1]
        target[i] += theta.permute(2, 0, 1)
