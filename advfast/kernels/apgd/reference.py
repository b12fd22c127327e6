"""The definition, in plain torch, in the order of operations of the published implementation (fra31/auto-attack)."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-12
"""Added to the norms that are divided by."""


def _over(values: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, ...]."""
    return values.reshape(-1, *[1] * (x.dim() - 1))


def _size(v: Tensor) -> Tensor:
    """[B, 1, ...] Euclidean norms."""
    return _over((v**2).reshape(v.shape[0], v.shape[1:].numel()).sum(-1).sqrt(), v)


def _to_cube(z: Tensor, x0: Tensor, eps: float) -> Tensor:
    return torch.min(torch.max(z, x0 - eps), x0 + eps).clamp(0.0, 1.0)


def _to_ball(z: Tensor, x0: Tensor, eps: float) -> Tensor:
    """Radially, then into the box."""
    delta = z - x0
    size = _size(delta)
    radius = torch.full((), eps, dtype=z.dtype, device=z.device)
    return (x0 + delta / (size + TINY) * torch.min(radius, size)).clamp(0.0, 1.0)


def apgd_step_(
    x: Tensor,  # [B, ...] float32 | float64
    x_prev: Tensor,  # [B, ...] like x, overwritten with the next iterate
    x0: Tensor,  # [B, ...]
    gradient: Tensor,  # [B, ...]
    step: Tensor,  # [B]
    momentum: float,
    eps: float,
    norm: str,
    improved: Tensor | None,  # [B] bool
    best: Tensor | None,  # [B, ...], written where improved
    best_gradient: Tensor | None,  # [B, ...], likewise
) -> None:
    if improved is not None and best is not None and best_gradient is not None:
        rows = improved.nonzero()[:, 0]
        best[rows] = x[rows]
        best_gradient[rows] = gradient[rows]
    step = _over(step, x)
    if norm == "linf":
        z = _to_cube(x + step * torch.sign(gradient), x0, eps)
    else:
        z = _to_ball(x + step * (gradient / (_size(gradient) + TINY)), x0, eps)
    mixed = x + (z - x) * momentum
    if momentum != 1.0:
        mixed = mixed + (x - x_prev) * (1 - momentum)
    x_prev.copy_(_to_cube(mixed, x0, eps) if norm == "linf" else _to_ball(mixed, x0, eps))
