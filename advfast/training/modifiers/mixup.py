"""Mixup (Zhang et al., ICLR 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from advfast.data import randomness

from .mixing import Mixing


class Mixup(Mixing):
    """lambda * x_i + (1 - lambda) * x_j, with lambda from Beta(alpha, alpha), one for the batch.

    Rice et al. (ICML 2020) take alpha=1.4 in adversarial training. See `Mixing`.
    """

    name = "mixup"
    purpose = randomness.MIXUP

    def mix(self, images: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
        share = self._drawn[0]
        own = share.to(images.dtype)
        mixed = torch.empty_like(images).copy_(images[partner])
        # Rounding may lead out of [0, 1].
        return mixed.mul_(1 - own).add_(own * images).clamp_(0, 1), share
