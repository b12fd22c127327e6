"""FGSM around noise (de Jorge et al., NeurIPS 2022)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from advfast.data import Batch
from advfast.kernels import random_start

from .base import Settings
from .fgsm import FGSM


class NFGSM(FGSM):
    """Cross-entropy on x' = u + alpha sign(grad CE(f(u), y)), u = x + U(-k eps, k eps), both clamped to the box alone.

    x' is not put back into the ball: |x' - x| reaches k eps + alpha, 3 eps by default. alpha None is the published
    eps; `steps` is always 1. Options:

    * k: 2 as published for CIFAR at 8/255 (3 for SVHN at 12/255, 4 for a wide network at 16/255); 0 is FGSM.

    Raises:
        ValueError: k is no finite number, 0 or more.
    """

    options: ClassVar[tuple[str, ...]] = ("k",)

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        self.k = self.number("k", 2.0)
        # The ball of its attack is around the noise, so that only the box cuts the step.
        self.fgsm.eps = self.alpha

    def craft(self, batch: Batch) -> Tensor:
        start = random_start(
            batch.images.detach(),
            eps=self.k * self.eps,
            norm=self.settings.norm,
            seed=torch.randint(2**63 - 1, (1,), device=batch.images.device),
            sample_ids=batch.indices,
        )
        return self.fgsm(start, batch.labels)

    def strength(self, eps: float, alpha: float, steps: int) -> None:
        super().strength(eps, alpha, steps)
        self.fgsm.eps = alpha
