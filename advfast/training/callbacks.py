"""What a run tells its callbacks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advfast.data import Batch

HOOKS = ("on_train_begin", "on_step_end", "on_epoch_end", "on_train_end")


@dataclass
class TrainState:
    """Where a run stands. Callbacks get it at every call; they may set `stop`.

    Attributes:
        model: in training.
        optimizer: of the run.
        config: the arguments of the run.
        folder: where it writes.
        epochs: of the run.
        steps_per_epoch: optimiser steps.
        epoch: the one at hand, from 1.
        step: steps done in this epoch.
        lr: learning rate of the last step.
        loss: of the last step, a number on the device: reading it makes a GPU wait.
        correct: samples of the last batch that were classified right, also on the device.
        batch: the last one: clean images, labels, sample numbers.
        images_per_second: in this epoch.
        row: of the history, after an epoch.
        history: a row an epoch.
        stop: set to True to end the run after this step (and its validation), as if it were the last one.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    config: dict[str, Any]
    folder: Path
    epochs: int
    steps_per_epoch: int
    epoch: int = 1
    step: int = 0
    lr: float = 0.0
    loss: Tensor = field(default_factory=lambda: torch.tensor(float("nan")))
    correct: Tensor = field(default_factory=lambda: torch.tensor(0))
    batch: Batch | None = None
    images_per_second: float = 0.0
    row: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    stop: bool = False

    @property
    def global_step(self) -> int:
        """Steps done in the run."""
        return (self.epoch - 1) * self.steps_per_epoch + self.step


class Callbacks:
    """Calls the hooks that each callback has, in order.

    Raises:
        TypeError: a callback has none of them.
    """

    def __init__(self, callbacks: Iterable[object]) -> None:
        self._hooks: dict[str, list[Any]] = {name: [] for name in HOOKS}
        for callback in callbacks:
            found = [name for name in HOOKS if callable(getattr(callback, name, None))]
            if not found or isinstance(callback, type):
                raise TypeError(
                    f"a callback must be an object with at least one of {', '.join(HOOKS)}, got "
                    f"{callback!r}"
                )
            for name in found:
                self._hooks[name].append(getattr(callback, name))

    def call(self, hook: str, state: TrainState) -> None:
        for function in self._hooks[hook]:
            function(state)
