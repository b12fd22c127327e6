"""PGD adversarial training (Madry et al., ICLR 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from advfast.data import Batch

from .base import Method, Settings


class PGDAT(Method):
    """Cross-entropy on PGD adversarial images alone: min over weights of E max over |d| <= eps of CE(f(x + d), y).

    One uniform random start; the last iterate is trained on.
    """

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        self.pgd = self.attack()

    def craft(self, batch: Batch) -> Tensor:
        return self.pgd(batch.images, batch.labels, sample_ids=batch.indices)

    def passes(self) -> float:
        return 2 * self.steps + 3
