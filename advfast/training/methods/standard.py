"""Training on clean images, for comparison."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Settings, Step


class Standard:
    """Cross-entropy on the images as they are; the attack settings are not used."""

    trains_on = "clean"

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self.model = model

    def __call__(self, images: Tensor, labels: Tensor) -> Step:
        logits = self.model(images)
        return Step(F.cross_entropy(logits, labels), logits)
