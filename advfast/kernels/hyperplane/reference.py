"""The definition, in plain torch, by sorting.

With c = |<w, point> - b|, entries move toward the hyperplane, each by at most its `room` to the wall of the box:

* linf: by min(t, room_i), with t such that sum of |w_i| min(t, room_i) is c;
* l2: by min(t |w_i|, room_i), likewise (the Lagrange condition of the quadratic problem);
* l1: by all their room in the order of falling |w_i|, the last one by the part that is missing (a fractional knapsack).

The first two are piecewise linear in t and bend where an entry comes to its wall.
"""

from __future__ import annotations

import torch
from torch import Tensor

CUT = 1e-8
"""l2, l1: entries of w so much smaller than the largest count as 0."""


def _prepared(points: Tensor, w: Tensor, b: Tensor, norm: str) -> tuple[Tensor, ...]:
    """(direction -1, 0 or 1, room to the wall, |w| brought near 1, c in its scale), [B, D] and [B, 1]."""
    excess = (w.double() * points.double()).sum(1, keepdim=True) - b[:, None]
    size = w.abs().amax(1, keepdim=True)
    # A power of two, so that squares neither overflow nor vanish.
    exponent = torch.frexp(size).exponent.clamp(-120, 120).neg()
    moved = w.abs() > (CUT * size if norm != "linf" else 0)
    steepness = torch.where(moved, torch.ldexp(w.abs(), exponent), 0.0)
    direction = torch.where(moved, torch.where(excess >= 0, -w.sign(), w.sign()), 0.0)
    room = torch.where(direction > 0, 1 - points, points * direction.abs()).clamp(min=0)
    return direction, room, steepness, torch.ldexp(excess.abs(), exponent).to(points.dtype)


def _at(table: Tensor, k: Tensor) -> Tensor:
    return table.gather(1, k.clamp(max=table.shape[1] - 1))


def _multiplier(room: Tensor, steepness: Tensor, rate: Tensor, c: Tensor) -> Tensor:
    """[B, 1] the t >= 0 with sum of steepness * min(t * rate, room) = c; inf where even all the room is too little."""
    wall = torch.where(steepness > 0, room / rate, 0.0)
    wall, order = wall.sort(dim=1)
    held = (steepness * room).gather(1, order)
    before = held.cumsum(1) - held
    slope = (steepness * rate).gather(1, order).flip(1).cumsum(1).flip(1)
    k = (before + wall * slope < c).sum(1, keepdim=True)
    t = ((c - _at(before, k)) / _at(slope, k)).clamp(min=0)
    return torch.where(k < room.shape[1], torch.where(c > 0, t, 0.0), torch.inf)


def _knapsack(room: Tensor, steepness: Tensor, c: Tensor) -> Tensor:
    """[B, D] lengths of the l1 displacement."""
    sorted_, order = steepness.sort(dim=1, descending=True, stable=True)
    held = sorted_ * room.gather(1, order)
    reach = held.cumsum(1)
    k = (reach < c).sum(1, keepdim=True)
    rank = torch.arange(room.shape[1], device=room.device)
    part = (c - _at(reach - held, k)) / _at(sorted_, k)
    lengths = torch.where(rank < k, room.gather(1, order), torch.where(rank == k, part, 0.0))
    lengths = torch.empty_like(room).scatter_(1, order, lengths)
    return torch.where(c > 0, torch.minimum(lengths, room), 0.0)


def hyperplane_project(points: Tensor, w: Tensor, b: Tensor, norm: str) -> Tensor:
    out = torch.empty_like(points)
    if not points.numel():
        return out
    shape = (points.shape[0], points.shape[1:].numel())
    # Both in the order of memory, which is the same for both.
    flat = points.as_strided(shape, (shape[1], 1)), w.as_strided(shape, (shape[1], 1))
    direction, room, steepness, c = _prepared(*flat, b, norm)
    if norm == "l1":
        lengths = _knapsack(room, steepness, c)
    else:
        rate = torch.ones_like(steepness) if norm == "linf" else steepness
        t = _multiplier(room, steepness, rate, c)
        lengths = torch.where(steepness > 0, torch.minimum(t * rate, room), 0.0)
    out.as_strided(shape, (shape[1], 1)).copy_(direction * lengths)
    return out
