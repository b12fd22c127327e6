"""What the training loop asks of a modifier."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from advfast.data import Batch
from advfast.graphs import plain_attributes

from ..parallel import Ranks

if TYPE_CHECKING:
    from ..loop import Batches
    from ..methods import Method


@dataclass(frozen=True)
class RunInfo:
    """What a modifier may need to know of a run before it begins.

    Attributes:
        classes: K of the model's logits [B, K].
        batch_size: the most samples of a step.
        epochs: of the run.
        steps_per_epoch: optimiser steps.
        seed: of the run.
        samples: that are trained on, numbered from 0; None where they have no numbers (a DataLoader).
        ranks: its processes.
    """

    classes: int
    batch_size: int
    epochs: int
    steps_per_epoch: int
    seed: int
    samples: int | None = None
    ranks: Ranks = field(default_factory=Ranks)


@dataclass(frozen=True)
class StepInfo:
    """Where a run stands before a step.

    Attributes:
        step: optimiser steps done in the run.
        steps_per_epoch: of them.
        epochs: of the run.
        lr: learning rate of this step.
        method: of this step.
        seed: of the run.
    """

    step: int
    steps_per_epoch: int
    epochs: int
    lr: float
    method: Method
    seed: int

    @property
    def done(self) -> float:
        """Epochs done, with the share of the one at hand."""
        return self.step / self.steps_per_epoch


@dataclass(frozen=True)
class Update:
    """The step on the weights that a modifier is around.

    Attributes:
        model: in train mode.
        gradients: () -> gradients of the batch's loss at the weights of the moment, one for each parameter that
            requires one, in order, up to a positive factor; None for one that has no part in it. Leaves buffers and
            .grad alone.
    """

    model: nn.Module
    gradients: Callable[[], list[Tensor | None]]


class Modifier:
    """Goes with any method; every hook does nothing unless overridden. Several compose in the order given.

    A modifier whose `state_dict` holds what it needs resumes like everything else. On CUDA a step is recorded into a
    graph: `batch`, `updating`, `gradient` and `after_step` are work of the device alone, and what changes from step to
    step is written by `before_step` (which is not recorded) into tensors that stay where they are; a modifier that
    cannot be recorded says so with `capturable`.
    """

    name: ClassVar[str] = "modifier"

    capturable: ClassVar[bool] = True

    needs_separable: ClassVar[bool] = False
    """Whether it needs a method that is `separable`."""

    makes_soft_labels: ClassVar[bool] = False
    """Whether `batch` returns labels [B, K]."""

    guides: ClassVar[bool] = False
    """Whether `batch` puts a `Batch.guide` in, which needs a method that is `guided` and classes for labels."""

    averages: ClassVar[bool] = False
    """Whether `evaluating` puts weights of its own into the model; of these there can be one in a run."""

    def begin(self, model: nn.Module, run: RunInfo) -> None:
        """Before the first step, with the model as it will be trained (on its device)."""

    def begin_epoch(self, epoch: int, batches: Batches) -> None:
        """Before the first step of an epoch (from 1), and when a run is resumed in the middle of it."""

    def before_step(self, info: StepInfo) -> None:
        """Before everything else of a step."""

    def batch(self, batch: Batch) -> Batch:
        """Before the images are attacked: another batch, for example a mixed one."""
        return batch

    @contextmanager
    def updating(self, update: Update) -> Iterator[None]:
        """Around gradient and optimiser's step, on images that are crafted."""
        yield

    def gradient(self, parameters: Sequence[nn.Parameter], scaler: torch.amp.GradScaler) -> None:
        """Before the optimiser's step, with the gradient of the batch, of all ranks, in the .grad of the parameters:
        not clipped yet, and times the scale of `scaler`. Recorded, as `updating` is."""

    def after_step(self, model: nn.Module) -> None:
        """After the optimiser's step."""

    def after_epoch(self, model: nn.Module, epoch: int, batches: Batches) -> None:
        """After the last step of an epoch, before validation."""

    def columns(self) -> dict[str, float]:
        """After `after_epoch`: what it adds to the epoch's row of the history; every time the same names."""
        return {}

    @contextmanager
    def evaluating(self, model: nn.Module) -> Iterator[None]:
        """Around evaluation and saving: the weights that count."""
        yield

    def extra_passes(self) -> float:
        """Pass-units of a step on top of the method's, see `Method.passes`."""
        return 0.0

    def graph_key(self) -> Hashable:
        """What the recorded part of a step depends on besides tensors, after `before_step`: a recorded step is good for
        the steps that have the same. By default all numbers and texts among the attributes."""
        return plain_attributes(self)

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, lists and dictionaries of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave; called after `begin`."""
