"""Scalars of a run for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any

from .callbacks import TrainState


class TensorBoard:
    """A callback of `advfast.train`: loss, accuracy, learning rate and speed while it runs; a row's numbers each epoch.

    Every scalar has the step of the run as its place, so that those of steps and of epochs share one axis. A resumed
    run goes on in the same folder; what an earlier process had written beyond the place of resumption is hidden.

    Args:
        folder: for the event files; None is "tensorboard" in the folder of the run. `tensorboard --logdir runs` shows
            all runs in runs/.
        every: steps between scalars; the loss is read from the device only there, since reading makes a GPU wait.

    Raises:
        ImportError: the tensorboard package is not installed.
        ValueError: `every` below 1.
    """

    def __init__(self, folder: str | Path | None = None, every: int = 50) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be an integer >= 1, got {every!r}")
        _writer_class()  # a missing package should show before the run, not in it
        self.folder = None if folder is None else Path(folder)
        self.every = every
        self._writer: Any = None

    def on_train_begin(self, state: TrainState) -> None:
        folder = self.folder or state.folder / "tensorboard"
        resumed = state.global_step + 1 if state.global_step else None
        self._writer = _writer_class()(log_dir=str(folder), purge_step=resumed)
        if not resumed:
            text = json.dumps(state.config, indent=2, default=str)
            # TensorBoard shows Markdown; four spaces make it a block of code.
            self._writer.add_text("config", "    " + text.replace("\n", "\n    "))

    def on_step_end(self, state: TrainState) -> None:
        step = state.global_step
        if step % self.every and step != 1:
            return
        self._add("step/loss", state.loss.item(), step)
        if state.batch is not None:
            self._add("step/accuracy", state.correct.item() / len(state.batch.labels), step)
        self._add("step/lr", state.lr, step)
        self._add("step/images_per_second", state.images_per_second, step)

    def on_epoch_end(self, state: TrainState) -> None:
        for name, value in state.row.items():
            if isinstance(value, Real):
                self._add(f"epoch/{name}", float(value), state.global_step)
        self._writer.flush()

    def on_train_end(self, state: TrainState) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _add(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)


def _writer_class() -> Callable[..., Any]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            'TensorBoard needs the package tensorboard: pip install "advfast[tensorboard]"'
        ) from error
    return SummaryWriter
