"""Where the Square attack begins: stripes for linf, a grid of two-bump patterns for l2 and l1."""

from __future__ import annotations

import torch
from torch import Tensor

from .square_draws import Draws, PublishedDraws
from .square_windows import pattern

_TILES = 5
"""Along the shorter side."""


def stripes(x0: Tensor, eps: float, draws: Draws) -> Tensor:
    """[n, C, H, W] -> x0 +- eps, one sign for each column of each channel, in the box."""
    rows, channels, _, width = x0.shape
    signs = draws.start(channels * width).view(rows, channels, 1, width)
    return torch.clamp(x0 + eps * signs, 0.0, 1.0)


def tiles(x0: Tensor, norm: str, draws: Draws) -> Tensor:
    """[n, C, H, W] a perturbation of no particular size: patterns with random signs and directions, side by side."""
    if isinstance(draws, PublishedDraws):
        return _published_tiles(x0, norm, draws)
    rows, channels, height, width = x0.shape
    side = max(1, min(height, width) // _TILES)
    down, across = height // side, width // side
    bits = draws.start(down * across * (1 + channels)).view(rows, down, across, 1 + channels)
    upright, turned = (pattern(side, side, norm, t).to(x0) for t in (False, True))
    # [n, down, across, side, side], then with a sign for each channel.
    laid = torch.where((bits[..., 0] > 0)[..., None, None], turned, upright)
    grid = bits[..., 1:, None, None] * laid[..., None, :, :]
    grid = grid.permute(0, 3, 1, 4, 2, 5).reshape(rows, channels, down * side, across * side)
    delta = torch.zeros_like(x0)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    delta[:, :, top : top + down * side, left : left + across * side] = grid
    return delta


def _published_tiles(x0: Tensor, norm: str, draws: PublishedDraws) -> Tensor:
    """A direction for the batch; the first row and column are counted from the height for both axes."""
    rows, channels, height, width = x0.shape
    delta = torch.zeros_like(x0)
    side = max(1, height // _TILES)
    first = max(0, height - side * _TILES) // 2
    for down in range(height // side):
        for across in range(width // side):
            laid = pattern(side, side, norm, draws.turned()).to(x0)
            signs = draws.signs(rows, channels)[:, :, None, None]
            top, left = first + down * side, first + across * side
            part = delta[:, :, top : top + side, left : left + side]
            part += (laid * signs)[:, :, : part.shape[2], : part.shape[3]]
    return delta
