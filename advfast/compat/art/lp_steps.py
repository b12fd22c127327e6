"""ART's step for what the fused one does not have: norms other than inf and 2, a box for each feature.

For a finite norm p ART follows the steepest direction of the p ball (p = 1: one coordinate a step) and returns into
the ball by rescaling. advfast's own l1 follows the normalised gradient and projects; both stay in the ball.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from advfast.attacks.network import Network


class LpSettings(NamedTuple):
    """eps, alpha: numbers, or tensors that broadcast over the inputs. low, high: of the box, None for no box."""

    p: float
    eps: Tensor | float
    alpha: Tensor | float
    steps: int
    momentum: float | None
    low: Tensor | None
    high: Tensor | None


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.dim() - 1))


def _norm(values: Tensor, p: float) -> Tensor:
    return _per_sample(torch.linalg.vector_norm(values.flatten(1), p, dim=1), values)


def direction(gradient: Tensor, p: float) -> Tensor:
    """Of the p-norm unit ball the point that the gradient favours; zero for a zero gradient."""
    if p == math.inf:
        return gradient.sign()
    if p == 1:
        flat = gradient.flatten(1)
        largest = flat.abs().argmax(1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, largest, 1.0).view_as(gradient) * gradient.sign()
    conjugate = p / (p - 1)
    size = _norm(gradient, conjugate)
    share = gradient.abs() / torch.where(size == 0, 1.0, size)
    return share ** (conjugate - 1) * gradient.sign()


def into_ball(delta: Tensor, eps: Tensor | float, p: float) -> Tensor:
    """delta inside the ball of radius eps: clamped for inf, else scaled."""
    if p == math.inf:
        limit = torch.as_tensor(eps, dtype=delta.dtype, device=delta.device)
        return delta.sign() * torch.minimum(delta.abs(), limit)
    size = _norm(delta, p)
    return delta * torch.where(size == 0, 0.0, (eps / size).clamp(max=1.0))


def into_box(x: Tensor, settings: LpSettings) -> Tensor:
    if settings.low is None or settings.high is None:
        return x
    return torch.maximum(torch.minimum(x, settings.high), settings.low)


def lp_steps(
    network: Network,
    x: Tensor,  # [B, ...] start
    x0: Tensor,  # [B, ...]
    objective: Callable[[Tensor], Tensor],
    settings: LpSettings,
    mask: Tensor | None,
) -> Tensor:
    """The last of `steps` iterates from x, in ART's order: step, box, ball.

    Args:
        objective: logits -> [B], to be raised.
        mask: bool, broadcasts over x, False where nothing moves.
    """
    velocity = torch.zeros_like(x)
    for _ in range(settings.steps):
        _, gradient = network.gradient(x, objective)
        gradient = torch.nan_to_num(gradient, nan=0.0, posinf=None, neginf=None)
        if mask is not None:
            gradient = torch.where(mask, gradient, 0.0)
        if settings.momentum is not None:
            size = _norm(gradient, 1)
            velocity = settings.momentum * velocity + gradient / torch.where(size == 0, 1.0, size)
            gradient = velocity
        x = into_box(x + settings.alpha * direction(gradient, settings.p), settings)
        x = x0 + into_ball(x - x0, settings.eps, settings.p)
    return x
