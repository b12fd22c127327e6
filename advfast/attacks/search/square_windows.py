"""Which window a query of the Square attack moves: its share of the image, its sides, what l2 and l1 put into it."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

_HALVINGS = (
    (10, 1), (50, 2), (200, 4), (500, 8), (1000, 16), (2000, 32), (4000, 64), (6000, 128), (8000, 256),
)  # fmt: skip
"""(last query, what the first share of the image is divided by until then)."""
_LAST = 512
_SCHEDULED = 10_000
"""Queries that the schedule was made for."""


def image_sides(shape: torch.Size) -> tuple[int, int, int]:
    """(channels, height, width) of a sample [...]: a vector is a row of pixels, what lies before the last two axes
    channels."""
    if len(shape) == 1:
        return 1, 1, shape[0]
    if len(shape) == 2:
        return shape[0], 1, shape[1]
    return math.prod(shape[:-2]), shape[-2], shape[-1]


def share(query: int, queries: int, p_init: float, rescale: bool) -> float:
    """The share of the image that a query's window covers.

    Args:
        rescale: the schedule of 10,000 queries is stretched or shrunk to `queries`.
    """
    if rescale:
        query = int(query / queries * _SCHEDULED)
    for last, divisor in _HALVINGS:
        if query <= last:
            return p_init / divisor
    return p_init / _LAST


def window_sides(
    share: float, channels: int, height: int, width: int, norm: str, published: bool
) -> tuple[int, int]:
    """(height, width) of the window: a square, of an odd side of 3 or more for l2 and l1.

    Where an image is too low or too narrow for the square, the window is as long as its share asks for; as published
    it is a square even so.
    """
    pixels = share * (channels * height * width) / channels
    side = max(round(math.sqrt(pixels)), 1 if norm == "linf" else 3)
    if norm != "linf" and side % 2 == 0:
        side += 1
    short, long = sorted((height, width))
    if side <= short or published:
        return min(side, short), min(side, short)
    other = min(max(round(pixels / short), side), long)
    return (short, other) if height == short else (other, short)


@functools.cache
def _bump(height: int, width: int, norm: str) -> Tensor:
    """[height, width] concentric rectangles, of l2 or l1 norm 1."""
    delta = torch.zeros(height, width)
    top, left = height // 2, width // 2
    for ring in range(max(top, left) + 1):
        rows = slice(max(top - ring, 0), min(top + ring + 1, height))
        columns = slice(max(left - ring, 0), min(left + ring + 1, width))
        delta[rows, columns] += 1.0 / torch.tensor(float(ring + 1)) ** (2 if norm == "l2" else 4)
    return delta / _size(delta, norm)


@functools.cache
def _two_bumps(height: int, width: int, norm: str) -> Tensor:
    delta = torch.zeros(height, width)
    upper = height // 2
    delta[:upper] = _bump(upper, width, norm)
    delta[upper:] = -1.0 * _bump(height - upper, width, norm)
    return delta / _size(delta, norm)


def _size(delta: Tensor, norm: str) -> Tensor:
    if norm == "l2":
        return (delta**2).sum(dim=(0, 1), keepdim=True).sqrt()
    return delta.abs().sum(dim=(0, 1), keepdim=True)


def pattern(height: int, width: int, norm: str, turned: bool) -> Tensor:
    """[height, width] what l2 and l1 put into a window: two bumps of opposite sign, of norm 1 together.

    Args:
        turned: side by side, not one above the other.
    """
    if turned:
        return _two_bumps(width, height, norm).t().contiguous()
    return _two_bumps(height, width, norm)
