"""PGD adversarial training (Madry et al., ICLR 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advfast.data import Batch

from . import guide
from .base import Method, Settings, Step


class PGDAT(Method):
    """Cross-entropy on PGD adversarial images alone: min over weights of E max over |d| <= eps of CE(f(x + d), y).

    One uniform random start; the last iterate is trained on. Where a batch has a guide g [B, K] of weight w (see
    `advfast.training.modifiers.TE`), both the attack and the loss have the term w mean_K (softmax f(x + d) - g)^2.
    """

    guided = True

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        self.pgd = self.attack()
        self.guided_pgd = self.attack(loss=guide.objective)

    def craft(self, batch: Batch) -> Tensor:
        if batch.guide is None:
            return self.pgd(batch.images, batch.labels, sample_ids=batch.indices)
        # Not one_hot: on a CPU it reads the labels, and would wait for them.
        classes = torch.arange(batch.guide.shape[1], device=batch.labels.device)
        own = batch.labels[:, None] == classes
        return self.guided_pgd(batch.images, guide.table(own, batch), sample_ids=batch.indices)

    def loss(self, images: Tensor, batch: Batch) -> Step:
        step = super().loss(images, batch)
        if batch.guide is None:
            return step
        return step._replace(loss=step.loss + guide.pull(step.logits, batch))

    def passes(self) -> float:
        return 2 * self.steps + 3
