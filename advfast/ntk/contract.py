"""The products of two blocks' factors, in the order that the plan names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advfast import kernels
from advfast.kernels.ntk.reference import product

from .terms import Factor, Layer, Product, Rows, Tokens


@dataclass(frozen=True)
class Held:
    """What is kept of one layer for the samples of a block: [samples, ...] in its tensors.

    order M: `a` is [n, R, columns], of several layers if `layer` is None; C and G: `a` is x; tokens: `a` is ids.
    """

    layer: Layer | None
    order: str
    a: Tensor
    g: Tensor | None = None


def held(layer: Layer, order: str, factor: Factor, *, trace: bool) -> Held:
    """What an order needs of a captured factor."""
    if order == "M":
        if isinstance(factor, Product):
            j = kernels.ntk_rows(factor.x, factor.g, layer.taps).flatten(2)
        else:
            assert isinstance(factor, Rows)
            j = factor.j
        return Held(layer, "M", j.flatten(1).unsqueeze(1) if trace else j)
    assert isinstance(factor, (Product, Tokens))
    g = factor.g
    if trace:  # sum over r of g_r . g_r: the readouts stand side by side in the channels
        g = g.movedim(1, -2).flatten(-2).unsqueeze(1)
    return Held(
        layer, order, factor.x if isinstance(factor, Product) else factor.ids, g.contiguous()
    )


def emptied(factor: Factor, first: int) -> None:
    """Zeros the gradients from sample `first` on, so that these samples contribute nothing."""
    (factor.j if isinstance(factor, Rows) else factor.g)[first:] = 0


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
    target = out.unflatten(0, (n1, r1)).unflatten(2, (n2, r2))
    for i in range(n1):
        same = (ids1[i][None, :, None] == ids2[:, None, :]).to(g2.dtype)  # [n2, S1, S2]
        chain = product(same.unsqueeze(1), g2, precision)  # [n2, R2, S1, c]
        theta = product(chain.flatten(2), g1[i].flatten(1).mT, precision)  # [n2, R2, R1]
        target[i] += theta.permute(2, 0, 1)
