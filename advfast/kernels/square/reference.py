"""The definition, in plain torch, in the order of operations of the published implementation (fra31/auto-attack)."""

from __future__ import annotations

import torch
from torch import Tensor


def _inside(x: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    """[n, 1, H, W] bool: the windows."""
    down = torch.arange(x.shape[2], device=x.device)[:, None] - places[:, 0, None, None]
    across = torch.arange(x.shape[3], device=x.device)[None] - places[:, 1, None, None]
    return ((down >= 0) & (down < height) & (across >= 0) & (across < width))[:, None]


def square_window(
    best: Tensor,  # [n, C, H, W] float32 | float64
    x0: Tensor,  # [n, C, H, W]
    places: Tensor,  # [n, 2] int64
    signs: Tensor,  # [n, C]
    eps: float,
    height: int,
    width: int,
) -> Tensor:
    moved = best + 2 * eps * signs[:, :, None, None]
    moved = torch.clamp(torch.min(torch.max(moved, x0 - eps), x0 + eps), 0.0, 1.0)
    return torch.where(_inside(best, places, height, width), moved, best)


def square_accept_(
    best: Tensor,  # [n, C, H, W], written
    candidate: Tensor,  # [n, C, H, W]
    improved: Tensor,  # [n] bool
    places: Tensor,  # [n, 2] int64
    height: int,
    width: int,
) -> None:
    where = _inside(best, places, height, width) & improved[:, None, None, None]
    best.copy_(torch.where(where, candidate, best))
