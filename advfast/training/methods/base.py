"""What the training loop asks of a method."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from advfast.attacks import PGDAttack
from advfast.data import Batch
from advfast.graphs import plain_attributes

from ..parallel import Ranks

if TYPE_CHECKING:
    from ..loop import Batches

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

OF_A_CALL = ("eps", "alpha", "capture_note", "launches", "_checked")
"""Attributes of an attack that change without a change of what is recorded."""

Backward = Callable[[Tensor], None]
"""Adds the gradient of a loss (a scalar) to that of the weights; scaled in fp16."""


@dataclass(frozen=True)
class Settings:
    """What every method is made with.

    eps and alpha are in pixel units; alpha and steps None are the method's own (eps/4 and 10, unless it says
    otherwise); bn is the policy of PGDAttack while it crafts; precision is "fp32", "bf16" or "fp16"; micro_batch is the
    most samples of one pass, None for all; options are the method's own; capture is that of PGDAttack, for steps that
    are not captured as a whole.
    """

    eps: float
    alpha: float | None
    steps: int | None
    norm: str
    bn: str = "eval"
    precision: str = "fp32"
    label_smoothing: float = 0.0
    micro_batch: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    capture: str = "auto"


class Step(NamedTuple):
    """One batch's outcome: the loss (a scalar to differentiate) and the logits [B, K] on what was trained on."""

    loss: Tensor
    logits: Tensor


class Method:
    """How images are crafted and what the loss on them is; the loop does everything else.

    Most methods are `craft` and `loss`, which are apart because some modifiers need the loss of the same images at
    other weights. A method whose crafting and learning are one computation overrides `update` and is not `separable`.
    All are called with the model in train mode and must leave it so. On CUDA they are recorded into a graph: they are
    work of the device alone, and what changes from step to step is in tensors that stay where they are (see
    `begin_epoch`, `strength`); a method that cannot be says so with `capturable`.

    Args:
        model: the bare model in training, images [B, C, H, W] -> logits [B, K].
        settings: of the attack and the loss.

    Raises:
        ValueError: an option that the method does not have.
    """

    trains_on: ClassVar[str] = "adversarial"
    """"adversarial" or "clean": what the training accuracy is of, and what the best epoch is chosen by."""

    options: ClassVar[tuple[str, ...]] = ()
    """Names in `Settings.options` that the method takes."""

    defaults: ClassVar[dict[str, Any]] = {}
    """Its own values of alpha (in units of eps: "alpha_of_eps") and steps, where the user gives none."""

    separable: ClassVar[bool] = True
    """Whether `loss` can be had again at other weights on what `craft` returned."""

    soft_labels: ClassVar[bool] = True
    """Whether labels may be probabilities [B, K] (cutmix, mixup)."""

    guided: ClassVar[bool] = False
    """Whether `craft` and `loss` draw predictions to `Batch.guide`, where there is one."""

    per_rank: ClassVar[bool] = False
    """Whether `state_dict` is another one in each process of a run, which goes on with as many as it began with."""

    capturable: ClassVar[bool] = True
    """Whether a step can be a CUDA graph."""

    repeats: int = 1
    """Optimiser steps in a row on each batch."""

    waits: bool = False
    """Whether it has noise that is not there until `switch_on`."""

    ranks: Ranks
    """The processes of the run, there from `begin` on; a state that `state_dict` gives is the same in all of them."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        for name in settings.options:
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise ValueError(f"the method has no option {name!r}; it has {known}")
        self.model = model
        self.settings = settings
        self.ranks = Ranks()
        of_eps = self.defaults.get("alpha_of_eps", PGDAttack.STEP_OF_EPS)
        self.eps = float(settings.eps)
        self.alpha = self.eps * of_eps if settings.alpha is None else float(settings.alpha)
        self.steps: int = (
            self.defaults.get("steps", 10) if settings.steps is None else settings.steps
        )

    def option(self, name: str, default: Any) -> Any:
        """The user's value of one of `options`."""
        return self.settings.options.get(name, default)

    def number(self, name: str, default: float) -> float:
        """The user's value of one of `options`: a finite number, 0 or more.

        Raises:
            ValueError: it is not.
        """
        value = self.option(name, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not 0 <= value < math.inf
        ):
            raise ValueError(f"{name} must be a finite number, 0 or more, got {value!r}")
        return float(value)

    def attack(self, kind: Callable[..., PGDAttack] = PGDAttack, **settings: Any) -> PGDAttack:
        """An attack on the model with the run's settings; `settings` come in their place or beside them."""
        return kind(
            self.model,
            **{
                "eps": self.eps,
                "alpha": self.alpha,
                "steps": self.steps,
                "norm": self.settings.norm,
                "bn": self.settings.bn,
                "precision": self.settings.precision,
                "capture": self.settings.capture,
                "batch_size": self.settings.micro_batch,
                # The loader has checked the images and `train` the labels: no need to in every step.
                "check": False,
                **settings,
            },
        )

    def craft(self, batch: Batch) -> Tensor:
        """The images to train on, [B, C, H, W], detached."""
        return batch.images

    def loss(self, images: Tensor, batch: Batch) -> Step:
        """The loss on crafted images, a mean over them; cross-entropy unless overridden."""
        logits = self.logits(images)
        return Step(self.cross_entropy(logits, batch.labels), logits)

    def update(self, images: Tensor, batch: Batch, backward: Backward) -> Step:
        """The gradient of the weights by `backward`, on what `craft` returned."""
        step = self.loss(images, batch)
        backward(step.loss)
        return step

    def begin(self, batches: Batches, images: Tensor) -> None:
        """Before a run begins or is resumed: the place for tensors that stay, and for what cannot go on.

        Args:
            batches: what the run reads from, each once (see `repeats`).
            images: two training images [2, C, H, W] on the device, not augmented.

        Raises:
            ValueError: the method cannot train on these batches.
        """

    def begin_epoch(self, epoch: int, batches: Batches) -> None:
        """Before the first step of an epoch (from 1), and when a run is resumed in the middle of it."""

    def after_epoch(self, epoch: int) -> None:
        """After the last step of an epoch, before validation; by all ranks."""

    def strength(self, eps: float, alpha: float, steps: int) -> None:
        """From now on with this radius, step size and number of steps (warm-up of eps, ramp of steps).

        Where a step is recorded, eps and alpha are 0-d tensors (float64): so a replay takes those of its step.
        """
        self.eps, self.alpha, self.steps = eps, alpha, steps
        for attack in self.attacks():
            attack.eps, attack.alpha, attack.steps = eps, alpha, steps

    def attacks(self) -> list[PGDAttack]:
        """The attacks that `strength` sets alike."""
        return [value for value in vars(self).values() if isinstance(value, PGDAttack)]

    def graph_key(self) -> Hashable:
        """What a recorded step depends on besides tensors, eps and alpha: it is good for the steps that have the same.

        By default all numbers and texts among the attributes of the method and of its attacks.
        """
        return plain_attributes(self, "eps", "alpha"), *(
            plain_attributes(attack, *OF_A_CALL) for attack in self.attacks()
        )

    def switch_on(self) -> None:
        """Collective: of one that `waits`, from now on with its noise. Called between two steps, maybe again."""

    def passes(self) -> float:
        """Pass-units of a step: a forward pass, a backward pass to the input and one to the weights count 1 each."""
        return 3.0

    def logits(self, images: Tensor) -> Tensor:
        """The model in the run's precision; logits in float32 where it computes in 16 bits."""
        with self.autocast(images.device):
            logits = self.model(images)
        return logits.float() if logits.dtype in AUTOCAST.values() else logits

    def clean_logits(self, images: Tensor) -> Tensor:
        """`logits` of clean images, by the layers that the method trains on such."""
        return self.logits(images)

    def autocast(self, device: torch.device) -> AbstractContextManager:
        dtype = AUTOCAST.get(self.settings.precision)
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype)

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over the batch, with the run's label smoothing; labels [B] or probabilities [B, K]."""
        return cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)

    def tables(self) -> dict[str, list[dict[str, int]]]:
        """What is written beside the history, after every epoch: name of a CSV file in `names` -> its rows so far."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What the method carries from batch to batch; saved in every checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave."""
