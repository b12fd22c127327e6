"""Training on images of a single step: from the image itself, and from a uniform start."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from advfast.data import Batch

from .base import Method, Settings


class FGSM(Method):
    """Cross-entropy on x' = x + alpha sign(grad CE(f(x), y)), in the ball and the box (Goodfellow et al., ICLR 2015).

    alpha None is eps; `steps` is always 1, whatever is given. It is for work on catastrophic overfitting: with eps
    large or training long enough, a network learns to defend against this one step alone.
    """

    defaults: ClassVar[dict[str, Any]] = {"alpha_of_eps": 1.0}

    random_start: ClassVar[bool] = False

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        self.steps = 1
        self.fgsm = self.attack(random_start=self.random_start)

    def craft(self, batch: Batch) -> Tensor:
        return self.fgsm(batch.images, batch.labels, sample_ids=batch.indices)

    def strength(self, eps: float, alpha: float, steps: int) -> None:
        super().strength(eps, alpha, 1)

    def passes(self) -> float:
        return 2 + 3


class FGSMRS(FGSM):
    """FGSM from a uniform point of the ball, clamped to the box ("Fast is better than free", Wong et al., ICLR 2020).

    alpha None is the published 1.25 eps (10/255 at 8/255); after the step x' is put back into ball and box. `steps` is
    always 1. Larger steps, and many epochs at a low rate, collapse as FGSM does.
    """

    defaults: ClassVar[dict[str, Any]] = {"alpha_of_eps": 1.25}

    random_start: ClassVar[bool] = True
