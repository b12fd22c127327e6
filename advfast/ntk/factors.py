"""The factors of a block of samples, as the orders of contraction need them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .contract import Held, emptied, held
from .costs import padded
from .planner import Plan
from .terms import Factor, Layer

MERGED = "rows"
"""Name of the summand that small layers of order M make together: one matrix product instead of many small ones."""
_SMALL = 8192  # columns

Block = dict[str, Held]


def kept(
    factors: list[Factor], plan: Plan, layers: tuple[Layer, ...], count: int, *, apart: bool
) -> Block:
    """What is kept of a captured chunk, of which the first `count` samples are real; empties `factors`.

    Args:
        layers: of this side, in the plan's order.
        apart: keep small layers apart too, so that each one's part can be told.
    """
    found: Block = {}
    small: list[Tensor] = []
    factors.reverse()
    for row, layer in zip(plan.layers, layers, strict=True):
        factor = factors.pop()  # freed as soon as it is used
        emptied(factor, count)
        one = held(layer, row.order, factor, trace=plan.trace)
        if row.order == "M":
            # Rows begin at cache lines, wherever they stand: a product's bits can depend on that.
            columns = one.a.shape[2]
            a = one.a if columns == padded(columns) else pad(one.a, (0, padded(columns) - columns))
            if columns < _SMALL and not apart:
                small.append(a)
                continue
            one = Held(layer, "M", a)
        found[layer.name] = one
    if small:
        found[MERGED] = Held(None, "M", torch.cat(small, 2))
    return found


def joined(chunks: list[Block], chunk: int, block: int) -> Block:
    """One block of `block` samples of its chunks; what is missing of it is zero."""
    missing = block // chunk - len(chunks)
    if len(chunks) == 1 and not missing:
        return chunks[0]
    result: Block = {}
    for name in list(chunks[0]):
        parts = [one.pop(name) for one in chunks]
        a = torch.cat([part.a for part in parts] + [torch.zeros_like(parts[0].a)] * missing)
        g = None
        if parts[0].g is not None:
            of = [part.g for part in parts if part.g is not None]
            g = torch.cat(of + [torch.zeros_like(of[0])] * missing)
        result[name] = Held(parts[0].layer, parts[0].order, a, g)
    return result
