"""Convolutions of any rank, and transposed ones, as products over pixels and positions."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .calls import Split
from .rules import Broadcast


@functools.lru_cache(maxsize=256)
def conv_taps(
    pixels: tuple[int, ...],
    positions: tuple[int, ...],
    window: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    copies: int,
    device: torch.device,
) -> Tensor:
    """int32 [copies * S, T]: the pixel that each tap of each position reads, -1 outside; `copies` images in a row."""
    taps = torch.zeros((), dtype=torch.int64)
    inside = torch.ones((), dtype=torch.bool)
    rank = len(pixels)
    for d in range(rank):
        at = (
            torch.arange(positions[d])[:, None] * stride[d]
            - padding[d]
            + torch.arange(window[d]) * dilation[d]
        )
        shape = [1] * (2 * rank)
        shape[d], shape[rank + d] = at.shape
        at = at.view(shape)
        taps = taps * pixels[d] + at
        inside = inside & (at >= 0) & (at < pixels[d])
    size = math.prod(pixels)
    taps = torch.where(inside, taps, -1).view(math.prod(positions), -1)
    shifts = torch.arange(copies)[:, None, None] * size
    taps = torch.where(taps < 0, -1, taps + shifts).flatten(0, 1)
    return taps.to(torch.int32).to(device)


def _each(value: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * rank
    return tuple(value) * (rank if len(value) == 1 else 1)


def _pixels(x: Tensor, groups: int) -> Tensor:
    """[n, groups, copies * L, e], contiguous, of x [n, copies, groups * e, *spatial]."""
    x = x.flatten(3).unflatten(2, (groups, -1))  # [n, copies, groups, e, L]
    return x.permute(0, 2, 1, 4, 3).flatten(2, 3).contiguous()


class _Conv(Broadcast):
    ROLES = ("weight", "bias")

    def known(self) -> bool:
        return self.argument("input").dim() == self.argument("weight").dim()

    def fits(self, role: str, split: Split) -> bool:
        return split.dim == 0

    def stand_in(self, role: str) -> Tensor:
        t = super().stand_in(role)
        if self.channels_last and t.dim() == 4:
            t = t.contiguous(memory_format=torch.channels_last)
        return t

    def kind(self, role: str) -> str:
        return "product" if role == "weight" else "rows"

    def placed(self, role: str) -> tuple[int, ...]:
        return (*self.operands[role].tensor.shape, *(1,) * (len(self.shape) - 2))

    def geometry(self) -> tuple[tuple[int, ...], ...]:
        """Window, stride, left padding and dilation."""
        window = tuple(self.argument("weight").shape[2:])
        rank = len(window)
        stride = _each(self.argument("stride", 1), rank)
        dilation = _each(self.argument("dilation", 1), rank)
        padding = self.argument("padding", 0)
        if padding == "valid":
            padding = 0
        elif padding == "same":  # an odd rest goes to the right
            padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, window, strict=True))
        return window, stride, _each(padding, rank), dilation


class Conv(_Conv):
    NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")

    def prepare(self, split: Split) -> None:
        super().prepare(split)
        if "weight" not in self.operands:
            return
        x = self.argument("input").detach()
        window, stride, padding, dilation = self.geometry()
        self.groups = self.argument("groups", 1)
        positions = self.shape[2:]
        pointwise = math.prod(window) == 1 and not any(padding)
        if pointwise:  # pixels that are skipped do not count
            for d, (step, count) in enumerate(zip(stride, positions, strict=True)):
                if step > 1:
                    x = x[(slice(None),) * (2 + d) + (slice(None, (count - 1) * step + 1, step),)]
        self.source = _pixels(split.front(x), self.groups)
        self._geometry = None
        if not pointwise:
            pixels = tuple(x.shape[2:])
            self._geometry = (
                pixels, positions, window, stride, padding, dilation, split.per, x.device
            )  # fmt: skip

    def taps(self) -> Tensor | None:
        return None if self._geometry is None else conv_taps(*self._geometry)

    def positions(self, g: Tensor) -> Tensor:
        g = self.split.front(g).flatten(3).unflatten(2, (self.groups, -1))
        return g.permute(0, 2, 1, 4, 3).flatten(2, 3)

    def arranged(self, rows: Tensor) -> Tensor:
        return rows.mT.flatten(-4)  # [groups, c, e, T]


class ConvTranspose(_Conv):
    """The roles change: a weight is applied at each pixel of the input, and its c numbers are the window of the
    output's gradient there."""

    NAMES = (
        "input",
        "weight",
        "bias",
        "stride",
        "padding",
        "output_padding",
        "groups",
        "dilation",
    )

    def prepare(self, split: Split) -> None:
        super().prepare(split)
        if "weight" not in self.operands:
            return
        x = self.argument("input").detach()
        window, stride, padding, dilation = self.geometry()
        self.groups = self.argument("groups", 1)
        self.source = _pixels(split.front(x), self.groups)
        taps = conv_taps(
            self.shape[2:], tuple(x.shape[2:]), window, stride, padding, dilation, 1, x.device
        )
        size = math.prod(self.shape[2:])
        self._index = torch.where(taps < 0, size, taps).to(torch.int64)  # [S, K]

    def positions(self, g: Tensor) -> Tensor:
        g = self.split.front(g).flatten(3).unflatten(2, (self.groups, -1))
        g = torch.cat([g, g.new_zeros(*g.shape[:-1], 1)], -1)
        g = g[..., self._index.flatten()].unflatten(-1, self._index.shape)
        g = g.permute(0, 2, 1, 4, 3, 5)  # [n, groups, copies, S, c, K]
        return g.flatten(4).flatten(2, 3)

    def arranged(self, rows: Tensor) -> Tensor:
        return rows.squeeze(-2).mT.flatten(-3)  # [groups, e, (c, K)]


CONV_RULES: dict = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), Conv),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), ConvTranspose),
}
