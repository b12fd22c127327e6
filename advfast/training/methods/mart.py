"""MART: misclassification-aware adversarial training (Wang et al., ICLR 2020)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advfast.attacks import GaussianPGD
from advfast.data import Batch
from advfast.models import branch

from .base import Method, Settings, Step

TINY = 1e-12
ONE_FOR_LOG, ONE_FOR_WEIGHT = 1.0001, 1.0000001
"""The authors' 1, where a logarithm of 0 or a negative weight could come of rounding."""


class MART(Method):
    """BCE(p', y) + beta mean((1 - p_y) KL(p || p')), with p = softmax f(x), p' = softmax f(x') (eq. 10, 11).

    BCE is -log p'_y - log(1 - max over j != y of p'_j). x' is PGD on cross-entropy from 0.001 times normal noise.
    Label smoothing is in the first term of BCE. Options:

    * beta: the paper's lambda; 5, as published for ResNet-18 (6 for WRN-34-10).

    alpha is 0.007 at eps 0.031, as published, and in this proportion at others.

    Raises:
        ValueError: an option out of range.
    """

    options = ("beta",)
    defaults: ClassVar[dict[str, Any]] = {"alpha_of_eps": 0.007 / 0.031, "steps": 10}
    soft_labels = False

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        self.beta = self.number("beta", 5.0)
        self.pgd = self.attack(GaussianPGD)

    def craft(self, batch: Batch) -> Tensor:
        return self.pgd(batch.images, batch.labels, sample_ids=batch.indices)

    def loss(self, images: Tensor, batch: Batch) -> Step:
        labels = batch.labels
        with branch(self.model, "clean"):
            log_clean = torch.log_softmax(self.logits(batch.images), 1)
        logits = self.logits(images)
        clean, adversarial = log_clean.exp(), torch.softmax(logits, 1)
        # Not one_hot: on a CPU it reads the labels, and would wait for them.
        own = labels[:, None] == torch.arange(logits.shape[1], device=labels.device)
        wrong = adversarial.masked_fill(own, 0).amax(1)
        bce = self.cross_entropy(logits, labels) - (ONE_FOR_LOG - wrong + TINY).log().mean()
        kl = (clean * (log_clean - (adversarial + TINY).log())).sum(1)
        weight = ONE_FOR_WEIGHT - clean.gather(1, labels[:, None])[:, 0]
        return Step(bce + self.beta * (kl * weight).mean(), logits)

    def passes(self) -> float:
        return 2 * self.steps + 6
