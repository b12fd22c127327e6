"""What is random about an epoch, from (seed, epoch) alone: the same on every device, from any batch on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ORDER, SAMPLE_KEYS, CROP, FLIP, CUTOUT, EXTRA, CUTMIX, MIXUP, PROBE = range(9)
"""What a generator is for; each draws its own numbers, so that adding a flip does not change the crops."""

_WORD = 2**32


def generator(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    """Independent numbers for each (seed 0 .. 2**64 - 1, epoch, purpose)."""
    # Four whole words: SeedSequence pads shorter lists with zeros, and mixes neighbouring seeds well.
    words = np.array([seed % _WORD, seed // _WORD, epoch, purpose], dtype=np.uint32)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def epoch_order(seed: int, epoch: int, samples: int) -> Tensor:
    """[samples] int64: a permutation."""
    return torch.from_numpy(generator(seed, epoch, ORDER).permutation(samples)).long()


def sample_keys(seed: int, epoch: int, samples: int) -> Tensor:
    """[samples] int64 >= 0: what seeds the reading of a sample in this epoch, by sample number."""
    return torch.from_numpy(generator(seed, epoch, SAMPLE_KEYS).integers(0, 2**63 - 1, samples))
