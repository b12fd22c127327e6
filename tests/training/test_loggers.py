"""W&B and MLflow by fakes that check how they are called, and by the real packages where they are installed."""

import importlib
import math
import os
import signal
import sys
from types import ModuleType, SimpleNamespace

import pytest

from advfast.training import MLflow, WandB, logger

from .test_resume import course, data  # noqa: F401  data is a fixture


class FakeRun:
    def __init__(self, **settings):
        self.settings, self.id = settings, settings["id"] or "made-up"
        self.logged, self.axes, self.finished = [], {}, False

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, values):
        assert not self.finished and self.axes["step/*"] == "step"
        self.logged.append(values)

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    fake = ModuleType("wandb")
    fake.runs = []
    fake.init = lambda **settings: fake.runs.append(FakeRun(**settings)) or fake.runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


class FakeClient:
    """As strict as MLflow: a parameter is set once, a metric is finite or NaN, an ended run is over."""

    store = SimpleNamespace()

    def __init__(self, tracking_uri=None):
        self.store.uri = tracking_uri

    def get_experiment_by_name(self, name):
        return self.store.experiments.get(name)

    def create_experiment(self, name):
        self.store.experiments[name] = SimpleNamespace(experiment_id="7")
        return "7"

    def create_run(self, experiment, run_name):
        self.store.runs["r1"] = {"name": run_name, "params": {}, "metrics": [], "status": "RUNNING"}
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def update_run(self, run, status):
        self.store.runs[run]["status"] = status

    def log_param(self, run, key, value):
        assert isinstance(value, str) and key not in self.store.runs[run]["params"]
        self.store.runs[run]["params"][key] = value

    def log_batch(self, run, metrics):
        assert self.store.runs[run]["status"] == "RUNNING"
        self.store.runs[run]["metrics"] += metrics

    def set_terminated(self, run, status):
        self.store.runs[run]["status"] = status


@pytest.fixture
def mlflow(monkeypatch):
    fake, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    FakeClient.store = SimpleNamespace(experiments={}, runs={})
    fake.MlflowClient, fake.entities = FakeClient, entities
    entities.Metric = lambda key, value, timestamp, step: (key, value, step)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return FakeClient.store


class Terminate:
    def on_step_end(self, state):
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)


def interrupted(folder, data, make):  # noqa: F811
    """A run of 9 steps in 3 epochs that is stopped after 4 of them and goes on."""
    with pytest.raises(SystemExit):
        course(folder, data, callbacks=[make(), Terminate()])
    return course(folder, data, callbacks=[make()])


def test_wandb_logs_steps_and_rows_and_goes_on_under_the_same_id(tmp_path, data, wandb):  # noqa: F811
    result = interrupted(tmp_path, data, lambda: WandB("project", every=2, tags=["a"]))
    first, second = wandb.runs
    assert first.settings["config"]["eps"] == 0.1
    assert first.settings["project"] == "project" and first.settings["tags"] == ["a"]
    assert first.settings["name"] == tmp_path.name
    assert (first.settings["id"], second.settings["id"]) == (None, "made-up")
    assert (first.settings["resume"], second.settings["resume"]) == (None, "allow")
    assert second.settings["config"] is None
    assert first.finished and second.finished
    logged = first.logged + second.logged
    steps = [row["step"] for row in logged if "step/loss" in row]
    assert steps == [1, 2, 4, 6, 8]
    rows = [row for row in logged if "epoch/epoch" in row]
    assert [row["step"] for row in rows] == [3, 6, 9]
    for row, wanted in zip(rows, result.history, strict=True):
        assert {f"epoch/{name}": value for name, value in wanted.items()}.items() <= row.items()


def test_mlflow_logs_steps_and_rows_and_goes_on_under_the_same_id(tmp_path, data, mlflow):  # noqa: F811
    result = interrupted(tmp_path, data, lambda: MLflow("name", uri="file:x", every=2))
    assert mlflow.uri == "file:x"
    assert list(mlflow.experiments) == ["name"]
    (run,) = mlflow.runs.values()
    assert run["name"] == tmp_path.name
    assert run["params"]["eps"] == "0.1" and run["params"]["method"] == "pgd-at"
    assert run["status"] == "FINISHED"
    assert [step for name, _, step in run["metrics"] if name == "step/lr"] == [1, 2, 4, 6, 8]
    robust = [(value, step) for name, value, step in run["metrics"] if name == "epoch/val_robust"]
    assert robust == [
        (row["val_robust"], step) for row, step in zip(result.history, (3, 6, 9), strict=True)
    ]


def test_a_stopped_run_is_told_to_mlflow(tmp_path, data, mlflow):  # noqa: F811
    with pytest.raises(SystemExit):
        course(tmp_path, data, callbacks=[MLflow(), Terminate()])
    assert mlflow.runs["r1"]["status"] == "KILLED"


def test_a_run_that_begins_anew_gets_another_id(tmp_path, data, wandb):  # noqa: F811
    (tmp_path / WandB.FILE).write_text("of another run")
    course(tmp_path, data, epochs=1, callbacks=[WandB()], resume=False)
    assert wandb.runs[0].settings["id"] is None
    assert (tmp_path / WandB.FILE).read_text() == "made-up\n"


@pytest.mark.parametrize(
    ("make", "module", "message"),
    [(WandB, "wandb", "pip install wandb"), (MLflow, "mlflow", "pip install mlflow")],
)
def test_a_missing_package_shows_before_the_run(monkeypatch, make, module, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=message):
        make()


@pytest.mark.parametrize("every", [0, 1.5, True])
def test_every_is_checked(every, wandb):
    with pytest.raises(ValueError, match="every must be an integer >= 1"):
        WandB(every=every)


def test_a_logger_of_ones_own_is_a_few_lines(tmp_path, data):  # noqa: F811
    class Lines(logger.Logger):
        def __init__(self):
            super().__init__(every=3)
            self.lines = []

        def log(self, values, step):
            self.lines.append((step, sorted(values)[0]))

    lines = Lines()
    course(tmp_path, data, epochs=1, callbacks=[lines])
    assert lines.lines == [(1, "step/accuracy"), (3, "step/accuracy"), (3, "epoch/epoch")]


def test_the_real_mlflow(tmp_path, data, monkeypatch):  # noqa: F811
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "store").as_uri()
    result = interrupted(tmp_path / "run", data, lambda: MLflow(uri=uri, every=2))
    client = importlib.import_module("mlflow").MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("advfast")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["eps"] == "0.1"
    history = client.get_metric_history(run.info.run_id, "epoch/val_robust")
    assert [(m.step, m.value) for m in history] == [
        (step, row["val_robust"]) for step, row in zip((3, 6, 9), result.history, strict=True)
    ]
    assert math.isfinite(client.get_metric_history(run.info.run_id, "step/loss")[0].value)
    assert mlflow is not None


def test_the_real_wandb(tmp_path, data):  # noqa: F811
    pytest.importorskip("wandb")
    interrupted(tmp_path, data, lambda: WandB(mode="offline", every=2))
    number = (tmp_path / WandB.FILE).read_text().strip()
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{number}"))) == 2
