"""Multiply-adds and memory of each order of contraction, layer by layer.

Orders of a product layer (letters as in advfast/kernels/ntk/api.py, d = T*e):

* M: the gradients themselves, once a sample, then their products;
* C: the patch Gram, times one side's gradients, times the other's;
* G: the patch Gram, the Gram of the output gradients, multiplied entry by entry and summed.

A fourth (one side's gradients, applied to the other side's patches) is never the cheapest: where it beats M, C beats
it (it needs S < R d / (R + d), and there S^2 is small too). Source of M and C: Novak et al., ICML 2022, table 2; counts
here are per ordered pair and with the patch Gram by shifted sums.
"""

from __future__ import annotations

from dataclasses import dataclass

from .terms import Layer

ORDERS = ("M", "C", "G")


@dataclass(frozen=True)
class Work:
    """Multiply-adds by kind of kernel, and numbers kept a sample."""

    rows: float = 0.0  # making gradients
    gram: float = 0.0  # their products
    patch: float = 0.0  # patch Gram
    pair: float = 0.0  # the rest of C and G
    kept: int = 0  # numbers a sample

    @property
    def macs(self) -> float:
        return self.rows + self.gram + self.patch + self.pair


@dataclass(frozen=True)
class Size:
    """How much of it: samples whose factors are made, ordered pairs that are computed, readouts."""

    samples: float
    pairs: float
    readouts: int
    trace: bool = False


def padded(columns: int) -> int:
    """Columns of a row of gradients as they are stored: whole cache lines, so that every row begins at one."""
    return -(-columns // 16) * 16


def patch_macs(layer: Layer) -> float:
    """Of one pair: from the patches, or from the Gram of the pixels by shifted sums."""
    direct = layer.positions**2 * layer.window * layer.features
    if layer.window == 1:
        return layer.groups * direct
    shifted = layer.pixels**2 * layer.features + layer.window * layer.positions**2
    return layer.groups * min(direct, shifted)


def work(layer: Layer, order: str, size: Size) -> Work:
    """What this layer costs in this order ("rows" layers: M; "tokens": C)."""
    r, s, c = size.readouts, layer.positions, layer.channels
    square = r if size.trace else r * r  # pairs of readouts wanted
    if order == "M":
        making = 0 if layer.kind == "rows" else r * s * layer.columns
        return Work(
            rows=size.samples * making,
            gram=size.pairs * square * layer.columns,
            kept=r * padded(layer.columns),
        )
    kept = layer.groups * (layer.pixels * layer.features + r * s * c)
    patch = 0.0 if layer.kind == "tokens" else size.pairs * patch_macs(layer)
    if order == "C":
        pair = layer.groups * (r * s * s * c + square * s * c)
    else:
        pair = layer.groups * square * (s * s * c + s * s)
    return Work(patch=patch, pair=size.pairs * pair, kept=kept)


def forward_macs(layers: tuple[Layer, ...]) -> float:
    """Multiply-adds of one sample's forward pass in the layers with weights."""
    return float(
        sum(layer.positions * layer.columns for layer in layers if layer.kind == "product")
    )


def orders_of(layer: Layer) -> tuple[str, ...]:
    if layer.kind == "product":
        return ORDERS
    return ("C",) if layer.kind == "tokens" else ("M",)
