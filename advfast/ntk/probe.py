"""Which samples a kernel is taken of."""

from __future__ import annotations

import torch
from torch import Tensor


def balanced_probe(labels: Tensor, n: int, seed: int = 0) -> Tensor:
    """Numbers of n samples, as many of each class as can be, sorted by class: int64 [n].

    Args:
        labels: classes int [N].
        n: 1 .. N.
        seed: which samples of a class are taken depends on it and on `labels` alone.

    Raises:
        ValueError: n is out of range.
    """
    if not 1 <= n <= len(labels):
        raise ValueError(f"n must be 1 .. {len(labels)}, the number of samples, got {n}")
    labels = labels.cpu()
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    # The first of every class, then the second of every class, and so on: the first n of those.
    counts = torch.unique(labels, return_counts=True)[1].tolist()
    rank = torch.cat([torch.arange(count) for count in counts])
    taken = torch.argsort(rank, stable=True)[:n]
    return by_class[taken.sort().values]
