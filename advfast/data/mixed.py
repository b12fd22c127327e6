"""Batches of two sources at a fixed ratio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import randomness
from .joined import joined
from .loader import Loader
from .sources import Source


class Mixed(Loader):
    """A `Loader` whose batches have a fixed number of samples of another source, as Gowal et al. (2020) mix them.

    An epoch is as long as one of `source` alone, ceil(len(source) / batch_size) steps, and every batch is whole:
    round(extra_share * batch_size) samples are drawn from `extra` with replacement, by (seed, epoch), the rest is the
    next part of a permutation of `source`, in random order among each other. So an epoch has a share of `source` only,
    unless that is smaller than what is needed: then another permutation follows. Numbers of extra samples begin at
    len(source); one that is drawn twice in an epoch is augmented alike.

    Args:
        source, batch_size, settings: see `Loader`.
        extra: the other source, with images of the same shape.
        extra_share: above 0 and below 1.

    Raises:
        TypeError, ValueError: as `Loader`; a share that leaves one of the two without samples.
    """

    def __init__(
        self,
        source: Source,
        extra: Source,
        batch_size: int,
        *,
        extra_share: float,
        augment: Sequence[str] | str = (),
        **settings: Any,
    ) -> None:
        number = isinstance(extra_share, (int, float)) and not isinstance(extra_share, bool)
        if not number or not 0 < extra_share < 1:
            raise ValueError(f"extra_share must be above 0 and below 1, got {extra_share!r}")
        self.base = len(source)
        super().__init__(joined(source, extra), batch_size, augment=augment, **settings)
        self.extras = round(extra_share * batch_size)
        if not 0 < self.extras < batch_size:
            raise ValueError(
                f"extra_share={extra_share} of batch_size={batch_size} is {self.extras} samples: "
                "at least one of each kind is needed"
            )

    def __len__(self) -> int:
        return -(-self.base // self.batch_size)

    def whole(self, step: int) -> int:
        return self.batch_size

    def order(self, epoch: int) -> Tensor:
        steps, own = len(self), self.batch_size - self.extras
        permutations = randomness.generator(self.seed, epoch, randomness.ORDER)
        random = randomness.generator(self.seed, epoch, randomness.EXTRA)
        rounds = -(-steps * own // self.base)
        base = np.concatenate([permutations.permutation(self.base) for _ in range(rounds)])
        extra = random.integers(self.base, self.samples, (steps, self.extras))
        rows = np.concatenate([base[: steps * own].reshape(steps, own), extra], axis=1)
        return torch.from_numpy(random.permuted(rows, axis=1).reshape(-1)).long()
