"""Splits that keep the proportions of the classes."""

from __future__ import annotations

import torch
from torch import Tensor


def stratified_split(labels: Tensor, count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Splits sample numbers in two, each class in proportion.

    Args:
        labels: [N] integer classes.
        count: samples in the second part, 1 .. N-1.
        seed: the split depends on it and on `labels` alone.

    Returns:
        (first [N - count], second [count]): sorted int64 sample numbers, disjoint, together 0 .. N-1.

    Raises:
        ValueError: `count` out of range.
    """
    total = len(labels)
    if not 0 < count < total:
        raise ValueError(f"count must be 1 .. {total - 1} for {total} samples, got {count}")
    generator = torch.Generator().manual_seed(seed)
    # In order of class, and within a class at random, every (total/count)-th sample is taken: the share of a class
    # is then within one sample of its proportion.
    shuffled = torch.randperm(total, generator=generator)
    order = shuffled[torch.argsort(labels.cpu()[shuffled], stable=True)]
    taken = (torch.arange(count) * total + total // 2) // count
    second = torch.zeros(total, dtype=torch.bool)
    second[order[taken]] = True
    return (~second).nonzero()[:, 0], second.nonzero()[:, 0]
