"""What the training loop asks of a method."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Settings(NamedTuple):
    """The attack used in training.

    eps and alpha are in pixel units; alpha None is eps/4; bn is the policy of PGDAttack while it crafts.
    """

    eps: float
    alpha: float | None
    steps: int
    norm: str
    bn: str


class Step(NamedTuple):
    """One batch's outcome: the loss (a scalar to differentiate) and the logits [B, K] on what was trained on."""

    loss: Tensor
    logits: Tensor


class Method(Protocol):
    """Called once for each batch, with the model in train mode; must leave it in train mode."""

    trains_on: str
    """"adversarial" or "clean": what the training accuracy is of, and what the best epoch is chosen by."""

    def __call__(self, images: Tensor, labels: Tensor) -> Step: ...
