"""Numbers of a run for Weights & Biases."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from .callbacks import TrainState
from .logger import Logger, remember, remembered


class WandB(Logger):
    """A `Logger` that sends to Weights & Biases. The run's id is kept in wandb.txt of its folder: a resumed run goes on
    under the same one. The arguments of the run are its config, logged once.

    Args:
        project: of W&B.
        name: of the run; None is that of its folder.
        every: steps between numbers.
        settings: further keyword arguments of wandb.init, such as entity, tags, or mode="offline".

    Raises:
        ImportError: the wandb package is not installed.
        ValueError: `every` below 1.
    """

    FILE = "wandb.txt"

    def __init__(
        self, project: str = "advfast", *, name: str | None = None, every: int = 50, **settings: Any
    ) -> None:
        super().__init__(every)
        self._package = _package()
        self.project, self.name, self.settings = project, name, settings
        self._run: Any = None

    def on_train_begin(self, state: TrainState) -> None:
        known = remembered(state, self.FILE)
        self._run = self._package.init(
            **{
                "project": self.project,
                "name": self.name or state.folder.resolve().name,
                "dir": str(state.folder),
                "config": None if known else state.config,
                "id": known,
                "resume": "allow" if known else None,
                **self.settings,
            }
        )
        # An axis of our own: W&B's step may not go back, which that of a resumed run does.
        self._run.define_metric("step")
        for kind in ("step/*", "epoch/*"):
            self._run.define_metric(kind, step_metric="step")
        if known is None:
            remember(state.folder, self.FILE, self._run.id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({"step": step, **values})

    def on_train_end(self, state: TrainState) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.finish()


def _package() -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ImportError("WandB needs the package wandb: pip install wandb") from error
