"""PGD adversarial training (Madry et al., ICLR 2018)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from advfast.attacks import PGDAttack

from .base import Settings, Step


class PGDAT:
    """Cross-entropy on PGD adversarial images alone: min over weights of E max over |d| <= eps of CE(f(x + d), y).

    One uniform random start; the last iterate is trained on.
    """

    trains_on = "adversarial"

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self.model = model
        # The loader has checked the images and `train` the labels: no need to in every step.
        self.attack = PGDAttack(model, **settings._asdict(), check=False)

    def __call__(self, images: Tensor, labels: Tensor) -> Step:
        logits = self.model(self.attack(images, labels))
        return Step(F.cross_entropy(logits, labels), logits)
