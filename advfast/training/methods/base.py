"""What the training loop asks of a method."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from advfast.data import Batch

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """What every method is made with.

    eps and alpha are in pixel units; alpha None is eps/4; bn is the policy of PGDAttack while it crafts; precision is
    "fp32", "bf16" or "fp16"; options are the method's own.
    """

    eps: float
    alpha: float | None
    steps: int
    norm: str
    bn: str = "eval"
    precision: str = "fp32"
    label_smoothing: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)


class Step(NamedTuple):
    """One batch's outcome: the loss (a scalar to differentiate) and the logits [B, K] on what was trained on."""

    loss: Tensor
    logits: Tensor


class Method:
    """How images are crafted and what the loss on them is; the loop does everything else.

    `craft` and `loss` are apart because some modifiers need the loss of the same images at other weights. Both are
    called with the model in train mode and must leave it so.

    Args:
        model: the model in training, images [B, C, H, W] -> logits [B, K].
        settings: of the attack and the loss.

    Raises:
        ValueError: an option that the method does not have.
    """

    trains_on = "adversarial"
    """"adversarial" or "clean": what the training accuracy is of, and what the best epoch is chosen by."""

    options: tuple[str, ...] = ()
    """Names in `Settings.options` that the method takes."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        for name in settings.options:
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise ValueError(f"the method has no option {name!r}; it has {known}")
        self.model = model
        self.settings = settings

    def craft(self, batch: Batch) -> Tensor:
        """The images to train on, [B, C, H, W], detached."""
        return batch.images

    def loss(self, images: Tensor, batch: Batch) -> Step:
        """The loss on crafted images; cross-entropy unless overridden."""
        logits = self.logits(images)
        return Step(self.cross_entropy(logits, batch.labels), logits)

    def logits(self, images: Tensor) -> Tensor:
        """The model in the run's precision; logits in float32 where it computes in 16 bits."""
        with self.autocast(images.device):
            logits = self.model(images)
        return logits.float() if logits.dtype in AUTOCAST.values() else logits

    def autocast(self, device: torch.device) -> AbstractContextManager:
        dtype = AUTOCAST.get(self.settings.precision)
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype)

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over the batch, with the run's label smoothing."""
        return cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)

    def state_dict(self) -> dict[str, Any]:
        """What the method carries from batch to batch; saved in every checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave."""
