"""The factors of the samples of a tile or a column block: filled chunk by chunk, taken block by block."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from . import contract
from .contract import Held
from .costs import padded
from .planner import Plan
from .terms import Factor, Layer

MERGED = "rows"
"""Name of the summand that all layers of order M make together: one matrix product instead of many small ones."""


class Factors:
    """Room for `samples` samples.

    Args:
        layers: of this side, in the plan's order.
        like: a tensor of the device and dtype.
        apart: keep the layers of order M apart, so that each one's part can be told.
    """

    def __init__(
        self, plan: Plan, layers: tuple[Layer, ...], samples: int, like: Tensor, *, apart: bool
    ):
        self.trace = plan.trace
        readouts, fold = (1, plan.readouts) if plan.trace else (plan.readouts, 1)
        self.held: dict[str, Held] = {}
        self._places: list[tuple[str, int, int]] = []  # held, first column, columns
        start = 0
        gaps: list[tuple[int, int]] = []
        for row, layer in zip(plan.layers, layers, strict=True):
            merge = row.order == "M" and not apart
            columns = fold * layer.columns
            self._places.append((MERGED if merge else layer.name, start if merge else 0, columns))
            if merge:
                gaps.append((start + columns, start + padded(columns)))
                start += padded(columns)
            else:
                self.held[layer.name] = contract.empty(row, layer, plan, samples, like)
        if start:
            self.held[MERGED] = Held(None, "M", like.new_empty(samples, readouts, start))
            for first, last in gaps:
                self.held[MERGED].a[:, :, first:last] = 0
        self._layers = layers

    def fill(self, factors: list[Factor], at: int, count: int) -> None:
        """Puts the first `count` samples of a captured chunk at samples at .. at + count - 1; empties `factors`."""
        factors.reverse()
        for layer, (name, start, columns) in zip(self._layers, self._places, strict=True):
            factor = factors.pop()  # freed as soon as it is used
            held = self.held[name]
            if held.order == "M":
                held = replace(held, layer=layer, a=held.a[:, :, start : start + columns])
            contract.fill(held, factor, at, count, trace=self.trace)

    def clear(self, first: int, last: int) -> None:
        """Zeros for samples first .. last - 1: the rest of a block that is partly empty."""
        for held in self.held.values():
            for t in (held.a, held.g):
                if t is not None:
                    t[first:last] = 0
