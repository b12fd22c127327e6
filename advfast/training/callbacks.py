"""What a run tells its callbacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advfast.data import Batch

from .parallel import Ranks
from .prefix import Prefix

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
        batch: the last one: clean images, labels, sample numbers; of several ranks, this one's share, as `loss` and
            `correct`.
        images_per_second: in this epoch.
        row: of the history, after an epoch.
        history: a row an epoch.
        stop: set to True to end the run after this step (and its validation), as if it were the last one.
        method: of the last step; before the first one, that of the run.
        modifiers: of the run.
        data: the training data, a Source or a DataLoader.
        ranks: the processes of the run.
        prefix: epochs on clean images; `prefix.epochs` is their number as far as it is known.
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
    method: Any = None
    modifiers: Sequence[Any] = ()
    data: object = None
    ranks: Ranks = field(default_factory=Ranks)
    prefix: Prefix = field(default_factory=Prefix)

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes and shows."""
        return self.ranks.first

    @property
    def global_step(self) -> int:
        """Steps done in the run."""
        return (self.epoch - 1) * self.steps_per_epoch + self.step


def of_rank(callbacks: Iterable[object], rank: int) -> list[object]:
    """Those that are called in this process: on the first rank all, on others those with a true `every_rank`.

    A callback that changes weights, or takes part in communication, must be called on every rank; one that writes or
    shows, on one. `stop` may be set on any.
    """
    return [found for found in callbacks if not rank or getattr(found, "every_rank", False)]


class Callbacks:
    """Calls the hooks that each callback has, in order.

    What a callback has in its `state_dict` is saved with the run, and given to its `load_state_dict` before
    `on_train_begin` of a run that is resumed, if that has a callback of the same class (of several: at the same place).

    Raises:
        TypeError: a callback has none of them.
    """

    def __init__(self, callbacks: Iterable[object]) -> None:
        callbacks = list(callbacks)
        self._hooks: dict[str, list[Any]] = {name: [] for name in HOOKS}
        self._stateful = [
            found
            for found in callbacks
            if hasattr(found, "state_dict") and hasattr(found, "load_state_dict")
        ]
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

    def state_dict(self) -> dict[str, Any]:
        """Of those that have one, by class."""
        return {name: callback.state_dict() for name, callback in self._named()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, callback in self._named():
            if name in state:
                callback.load_state_dict(state[name])

    def _named(self) -> Iterator[tuple[str, Any]]:
        seen: dict[str, int] = {}
        for callback in self._stateful:
            name = type(callback).__qualname__
            seen[name] = seen.get(name, 0) + 1
            yield f"{name}-{seen[name]}", callback
