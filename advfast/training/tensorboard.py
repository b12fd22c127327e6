"""Scalars of a run for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .callbacks import TrainState
from .logger import Logger


class TensorBoard(Logger):
    """A `Logger` that writes event files. A resumed run goes on in the same folder; what an earlier process had written
    beyond the place of resumption is hidden.

    Args:
        folder: for the event files; None is "tensorboard" in the folder of the run. `tensorboard --logdir runs` shows
            all runs in runs/.
        every: steps between scalars.

    Raises:
        ImportError: the tensorboard package is not installed.
        ValueError: `every` below 1.
    """

    def __init__(self, folder: str | Path | None = None, every: int = 50) -> None:
        super().__init__(every)
        _writer_class()  # a missing package should show before the run, not in it
        self.folder = None if folder is None else Path(folder)
        self._writer: Any = None

    def on_train_begin(self, state: TrainState) -> None:
        folder = self.folder or state.folder / "tensorboard"
        resumed = state.global_step + 1 if state.global_step else None
        self._writer = _writer_class()(log_dir=str(folder), purge_step=resumed)
        if not resumed:
            text = json.dumps(state.config, indent=2, default=str)
            # TensorBoard shows Markdown; four spaces make it a block of code.
            self._writer.add_text("config", "    " + text.replace("\n", "\n    "))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def on_epoch_end(self, state: TrainState) -> None:
        super().on_epoch_end(state)
        self._writer.flush()

    def on_train_end(self, state: TrainState) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


def _writer_class() -> Callable[..., Any]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            'TensorBoard needs the package tensorboard: pip install "advfast[tensorboard]"'
        ) from error
    return SummaryWriter
