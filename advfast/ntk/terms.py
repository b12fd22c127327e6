"""What a network's kernel is a sum of, and what capturing it for some samples gives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """One summand of the kernel: one weight's, or of parameters that are taken together.

    kind "product": a weight applied at `positions` output positions; see advfast/kernels/ntk/api.py for the letters.
    A weight that is used several times has its uses side by side in the pixels and positions.
    kind "tokens": an embedding of width `channels`, looked up at `positions` positions.
    kind "rows": the gradient itself, `columns` numbers a sample and readout.
    """

    name: str  # of the parameter, "layer1.0.conv1.weight"; of several, the first
    kind: str
    columns: int  # elements of the parameter(s)
    parameters: tuple[str, ...] = ()  # names of all parameters in it
    groups: int = 1
    positions: int = 1  # S
    channels: int = 1  # c
    pixels: int = 1  # L
    features: int = 1  # e
    taps: Tensor | None = None  # int32 [S, T]

    @property
    def window(self) -> int:
        """T: taps of a position."""
        return 1 if self.taps is None else self.taps.shape[1]


@dataclass(frozen=True)
class Product:
    x: Tensor  # [n, groups, L, e]
    g: Tensor  # [n, R, groups, S, c]


@dataclass(frozen=True)
class Tokens:
    ids: Tensor  # int64 [n, S]
    g: Tensor  # [n, R, S, c]


@dataclass(frozen=True)
class Rows:
    j: Tensor  # [n, R, columns]


Factor = Product | Tokens | Rows
