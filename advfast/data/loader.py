"""Batches of a Source."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .sources import Source


def batches(
    source: Source,
    batch_size: int,
    *,
    device: torch.device | str = "cpu",
    order: torch.Generator | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """All samples once.

    Args:
        source: the data.
        batch_size: samples a batch; the last one may be smaller.
        device: where the batches are put.
        order: shuffles with this generator; None keeps the order of the data.

    Yields:
        (images [B, C, H, W] float32, labels [B] int64, sample numbers [B] int64).
    """
    total = len(source)
    numbers = torch.arange(total) if order is None else torch.randperm(total, generator=order)
    for chosen in numbers.split(batch_size):
        images, labels = source.batch(chosen)
        yield images.to(device), labels.to(device), chosen.to(device)
