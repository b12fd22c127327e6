"""TRADES (Zhang et al., ICML 2019)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from advfast.attacks import TPGD, GaussianPGD, losses
from advfast.data import Batch
from advfast.models import branch

from . import guide
from .base import Method, Settings, Step

STARTS = ("normal", "uniform")


class TRADES(Method):
    """CE(f(x), y) + beta KL(softmax f(x) || softmax f(x')), means over the batch (eq. 5); x' raises that KL.

    The attack sees the clean prediction once, detached. Label smoothing is in the cross-entropy alone. Where a batch
    has a guide g [B, K] of weight w (see `advfast.training.modifiers.TE`), x' raises beta KL + w mean_K (softmax f(x')
    - g)^2, and the loss has w mean (softmax f(x) - g)^2 more, on the clean images: as published. Options:

    * beta: 6, as published;
    * start: "normal", std times normal noise, or "uniform" in the ball (Wang et al., ICML 2023);
    * std: of the normal start, 0.001;
    * detach_target: no gradient through softmax f(x) in the KL. False, as published.

    alpha is 0.007 at eps 0.031, as published, and in this proportion at others.

    Raises:
        ValueError: an option out of range.
    """

    options = ("beta", "start", "std", "detach_target")
    defaults: ClassVar[dict[str, Any]] = {"alpha_of_eps": 0.007 / 0.031, "steps": 10}
    guided = True

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        self.beta = self.number("beta", 6.0)
        self.detach_target = self.option("detach_target", False)
        if not isinstance(self.detach_target, bool):
            raise ValueError(f"detach_target must be true or false, got {self.detach_target!r}")
        start = self.option("start", "normal")
        if start not in STARTS:
            raise ValueError(f"start must be one of {', '.join(STARTS)}, got {start!r}")
        if start == "normal":
            std = self.number("std", 0.001)
            self.kl_pgd = self.attack(TPGD, std=std)
            self.guided_pgd = self.attack(GaussianPGD, std=std, loss=guide.objective)
        elif "std" in settings.options:
            raise ValueError("std is of the normal start, and start is 'uniform'")
        else:
            self.kl_pgd = self.attack(loss="kl")
            self.guided_pgd = self.attack(loss=guide.objective)

    def craft(self, batch: Batch) -> Tensor:
        if batch.guide is None:
            return self.kl_pgd(batch.images, sample_ids=batch.indices)
        clean = guide.probabilities(self, self.logits, batch.images, self.settings.bn)
        labels = guide.table(self.beta * clean, batch)
        return self.guided_pgd(batch.images, labels, sample_ids=batch.indices)

    def loss(self, images: Tensor, batch: Batch) -> Step:
        clean = self.clean_logits(batch.images)
        adversarial = self.logits(images)
        target = clean.detach() if self.detach_target else clean
        distance = losses.kl(adversarial, target).mean()
        loss = self.cross_entropy(clean, batch.labels) + self.beta * distance
        if batch.guide is not None:
            loss = loss + guide.pull(clean, batch)
        return Step(loss, adversarial)

    def clean_logits(self, images: Tensor) -> Tensor:
        with branch(self.model, "clean"):
            return self.logits(images)

    def passes(self) -> float:
        return 2 * self.steps + 7
