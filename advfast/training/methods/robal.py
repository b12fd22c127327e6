"""RoBal: adversarial training on long-tailed data with a scale-invariant classifier (Wu et al., CVPR 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from advfast.attacks import losses
from advfast.data import Batch
from advfast.models import branch, use_cosine_head

from .at_bsl import ATBSL
from .base import Settings, Step

if TYPE_CHECKING:
    from ..loop import Batches


class RoBal(ATBSL):
    """CE(s (c' - m_y 1_y) + tau_b log n, y) + beta KL(softmax c || softmax c'), c [B, C] cosines in place of logits.

    c are those of an image and c' of its PGD image, which raises CE(c', y) from a uniform start. Before a run starts
    the model's last nn.Linear becomes an `advfast.models.CosineLinear`, whose logits are s c; it is saved and evaluated
    with the model. The margin m_k = margin + tau_m / s log(n_k / min n) is taken from the cosine of the true class, and
    the logarithms of the counts n [C] are added to all logits, in training alone. Options:

    * scale: s, 10;
    * margin: 0.1;
    * tau_b, tau_m: 1.2 and 0, the released configuration "N" for CIFAR-10 ("R" has 1.5 and 0.3);
    * beta: 6;
    * counts: n, where the data do not tell.

    steps None is 5, and alpha 0.0078 at eps 0.031, as published, and in this proportion at others. It is the loss of
    the released training code; not in it are the adjustment of the classifier at test time, the constant that is added
    to the norms of the class vectors (1/32), and a second forward pass of each image for the KL.

    Raises:
        ValueError: an option out of range; before a run starts, as `ATBSL`, or a model without an nn.Linear.
    """

    options = ("scale", "margin", "tau_b", "tau_m", "beta", "counts")
    defaults: ClassVar[dict[str, Any]] = {"alpha_of_eps": 0.0078 / 0.031, "steps": 5}
    soft_labels = False

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        self.scale = self.number("scale", 10.0)
        if not self.scale:
            raise ValueError("scale must be above 0, got 0")
        self.margin = self.number("margin", 0.1)
        self.tau_b = self.number("tau_b", 1.2)
        self.tau_m = self.number("tau_m", 0.0)
        self.beta = self.number("beta", 6.0)
        self.pgd = self.attack(loss=self.attacked)

    def begin(self, batches: Batches, images: Tensor) -> None:
        use_cosine_head(self.model, self.scale)
        super().begin(batches, images)
        self.bias = self.tau_b * self.log_counts
        # In units of the logits.
        self.margins = self.scale * self.margin + self.tau_m * (
            self.log_counts - self.log_counts.min()
        )

    def attacked(self, logits: Tensor, labels: Tensor) -> Tensor:
        """CE of the cosines, [B]."""
        return losses.ce(losses.widen(logits) / self.scale, labels)

    def loss(self, images: Tensor, batch: Batch) -> Step:
        labels = batch.labels
        with branch(self.model, "clean"):
            clean = self.logits(batch.images)
        logits = self.logits(images)
        # Not one_hot: on a CPU it reads the labels, and would wait for them.
        own = labels[:, None] == torch.arange(logits.shape[1], device=labels.device)
        shifted = logits + self.bias - own * self.margins
        distance = losses.kl(logits / self.scale, clean / self.scale).mean()
        return Step(self.cross_entropy(shifted, labels) + self.beta * distance, logits)

    def passes(self) -> float:
        return 2 * self.steps + 6
