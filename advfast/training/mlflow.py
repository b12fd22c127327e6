"""Numbers of a run for MLflow."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Mapping
from typing import Any

from .callbacks import TrainState
from .logger import Logger, remember, remembered

_LONGEST = 500
"""Characters of a parameter's value that every version of MLflow takes."""


class MLflow(Logger):
    """A `Logger` that writes to MLflow's tracking. The run's id is kept in mlflow.txt of its folder: a resumed run goes
    on under the same one. The arguments of the run are its parameters, logged once.

    Args:
        experiment: made if there is none of this name.
        uri: of the tracking server or store; None is MLflow's own choice (MLFLOW_TRACKING_URI).
        name: of the run; None is that of its folder.
        every: steps between numbers.

    Raises:
        ImportError: neither mlflow nor mlflow-skinny is installed.
        ValueError: `every` below 1.
    """

    FILE = "mlflow.txt"

    def __init__(
        self,
        experiment: str = "advfast",
        *,
        uri: str | None = None,
        name: str | None = None,
        every: int = 50,
    ) -> None:
        super().__init__(every)
        self._package = _package()
        self.experiment, self.uri, self.name = experiment, uri, name
        self._client: Any = None
        self._id = ""

    def on_train_begin(self, state: TrainState) -> None:
        self._client = self._package.MlflowClient(tracking_uri=self.uri)
        known = remembered(state, self.FILE)
        if known is not None:
            self._id = known
            self._client.update_run(known, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(self.experiment)
        number = (
            self._client.create_experiment(self.experiment)
            if experiment is None
            else experiment.experiment_id
        )
        name = self.name or state.folder.resolve().name
        self._id = self._client.create_run(number, run_name=name).info.run_id
        remember(state.folder, self.FILE, self._id)
        for key, value in state.config.items():
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            self._client.log_param(self._id, key, text[:_LONGEST])

    def log(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metric = self._package.entities.Metric
        self._client.log_batch(
            self._id, metrics=[metric(name, value, now, step) for name, value in values.items()]
        )

    def on_train_end(self, state: TrainState) -> None:
        client, self._client = self._client, None
        if client is not None:
            done = state.stop or len(state.history) == state.epochs
            client.set_terminated(self._id, "FINISHED" if done else "KILLED")


def _package() -> Any:
    try:
        package = importlib.import_module("mlflow")
        importlib.import_module("mlflow.entities")
        return package
    except ImportError as error:
        raise ImportError(
            "MLflow needs the package mlflow: pip install mlflow (or mlflow-skinny)"
        ) from error
