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


def _flat(v: Tensor) -> Tensor:
    return v.reshape(v.shape[0], v.shape[1:].numel())


def _shift(size: Tensor, beyond: Tensor, eps: float) -> Tensor:
    """[B, 1] by how much every entry [B, D] must shrink so that the l1 norm is eps, given by sorting.

    An entry shrinks by min(max(shift, beyond), size). The whole shrinkage is linear between the sorted ends of these
    intervals, its slope the number of intervals that are open there.
    """
    dim = size.shape[1]
    ends, order = torch.cat((beyond, size), 1).sort(1)
    slope = torch.where(order < dim, 1.0, -1.0).to(size.dtype).cumsum(1)
    following = torch.cat((ends[:, 1:], torch.zeros_like(ends[:, :1])), 1)
    shrunk = beyond.sum(1, keepdim=True) + ((following - ends) * slope).cumsum(1)
    lacking = eps - size.sum(1, keepdim=True)
    last = (shrunk + lacking < 0).sum(1, keepdim=True).sub(1).clamp(0, 2 * dim - 2)
    rest = -shrunk.gather(1, last) - lacking
    return rest / slope.gather(1, last + 1) + following.gather(1, last)


def l1_box_correction(
    delta: Tensor,  # [B, ...] float32 | float64
    x0: Tensor,  # [B, ...]
    eps: float,
) -> Tensor:
    if not delta.numel():
        return delta.clone()
    change, centre = _flat(delta), _flat(x0)
    size = change.abs()
    beyond = -torch.min(torch.zeros_like(change), torch.min(1 - centre - change, centre + change))
    far = beyond.sum(1, keepdim=True) + (eps - size.sum(1, keepdim=True)) < 0
    shift = _shift(size, beyond, eps)
    shrinks = torch.where(far, torch.min(torch.max(beyond, shift), size), beyond)
    return (change.sign() * -shrinks).reshape(delta.shape)


def apgd_l1_step(
    x: Tensor,  # [B, ...] float32 | float64
    x0: Tensor,  # [B, ...]
    gradient: Tensor,  # [B, ...]
    step: Tensor,  # [B]
    rank: Tensor,  # [B] int64
    eps: float,
) -> Tensor:
    if not x.numel():
        return x.clone()
    magnitude = _flat(gradient.abs())
    least = magnitude.sort(1).values.gather(1, rank[:, None])
    direction = torch.where(magnitude >= least, _flat(gradient).sign(), 0.0)
    length = direction.abs().sum(1, keepdim=True) + 1e-10
    moved = (step[:, None] * direction / length).reshape(x.shape)
    delta = x + moved - x0
    return x0 + delta + l1_box_correction(delta, x0, eps)
