"""PGD adversarial training (Madry et al., ICLR 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from advfast.attacks import PGDAttack
from advfast.data import Batch

from .base import Method, Settings


class PGDAT(Method):
    """Cross-entropy on PGD adversarial images alone: min over weights of E max over |d| <= eps of CE(f(x + d), y).

    One uniform random start; the last iterate is trained on.
    """

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        self.attack = PGDAttack(
            model,
            eps=settings.eps,
            alpha=settings.alpha,
            steps=settings.steps,
            norm=settings.norm,
            bn=settings.bn,
            precision=settings.precision,
            # The loader has checked the images and `train` the labels: no need to in every step.
            check=False,
        )

    def craft(self, batch: Batch) -> Tensor:
        return self.attack(batch.images, batch.labels)
