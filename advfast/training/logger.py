"""What the loggers have in common: which numbers of a run, and when."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from pathlib import Path

from advfast.files import write_text

from .callbacks import TrainState


class Logger:
    """A callback of `advfast.train`: loss, accuracy, learning rate and speed while it runs; a row's numbers each epoch.

    Every number has the step of the run as its place, so that those of steps and of epochs share one axis. Of several
    ranks the first one logs.

    Args:
        every: steps between numbers; the loss is read from the device only there, since reading makes a GPU wait.

    Raises:
        ValueError: `every` below 1.
    """

    def __init__(self, every: int = 50) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be an integer >= 1, got {every!r}")
        self.every = every

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name, such as "step/loss" or "epoch/val_robust", after so many steps of the run."""
        raise NotImplementedError

    def on_step_end(self, state: TrainState) -> None:
        step = state.global_step
        if step % self.every and step != 1:
            return
        values = {"step/loss": state.loss.item()}
        if state.batch is not None:
            values["step/accuracy"] = state.correct.item() / len(state.batch.labels)
        values["step/lr"] = state.lr
        values["step/images_per_second"] = state.images_per_second
        self.log(values, step)

    def on_epoch_end(self, state: TrainState) -> None:
        values = {
            f"epoch/{name}": float(value)
            for name, value in state.row.items()
            if isinstance(value, Real)
        }
        self.log(values, state.global_step)


def remembered(state: TrainState, file: str) -> str | None:
    """What was written to a file of the run's folder before it was resumed; None for a run that begins."""
    path = state.folder / file
    if not state.global_step or not path.exists():
        return None
    return path.read_text(encoding="utf-8").strip()


def remember(folder: Path, file: str, text: str) -> None:
    write_text(folder / file, text + "\n")
