import csv
import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

import advfast
from advfast import models
from advfast.data import TensorSource, load
from advfast.evaluation import Accuracy, evaluate
from advfast.training import checkpoint, finish, train
from advfast.training.loop import NonFiniteLoss

from .conftest import EPS, RECIPE

assembled = sys.modules["advfast.training.assemble"]


def weights(result):
    return result.model.state_dict()


def test_adversarial_training_is_robust_and_standard_training_is_not(robust, standard):
    # Chance is 10 %. Measured over seeds: 73-75 % against 15-20 %, both above 96 % clean.
    assert robust.best.test["clean"].value > 0.93
    assert standard.best.test["clean"].value > 0.93
    assert robust.best.test["pgd-20"].value > 0.60
    assert standard.best.test["pgd-20"].value < 0.40


def test_reported_robustness_holds_against_a_hand_written_pgd(robust):
    images, labels = load("digits").test.batch(torch.arange(500))
    model = robust.model
    torch.manual_seed(1)
    x = (images + torch.empty_like(images).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(20):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), labels), x)
        x = x.detach() + EPS / 4 * gradient.sign()
        x = (images + (x - images).clamp(-EPS, EPS)).clamp(0, 1)
    broken = (model(x).argmax(1) == labels).float().mean().item()
    # Another random start moves a few of 500 images.
    assert abs(broken - robust.best.test["pgd-20"].value) < 0.02


def test_result_and_files_agree(robust):
    path = robust.path
    assert sorted(file.name for file in path.iterdir()) == [
        "adversarial.png",
        "best.pt",
        "config.yaml",
        "curves.png",
        "history.csv",
        "history.json",
        "last.pt",
        "results.json",
    ]
    assert [row["epoch"] for row in robust.history] == list(range(1, 11))
    with open(path / "history.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 10
    assert [float(row["val_robust"]) for row in rows] == [r["val_robust"] for r in robust.history]
    assert json.loads((path / "history.json").read_text())["history"] == robust.history
    config = yaml.safe_load((path / "config.yaml").read_text())
    given = {name: value for name, value in robust.config.items() if value is not None}
    assert given.pop("modifiers") == []
    assert config == given
    assert config["alpha"] == EPS / 4
    assert robust.environment["samples"] == {"train": 1102, "val": 195, "test": 500}
    results = json.loads((path / "results.json").read_text())
    best = results["best"]["test"]["results"]["pgd-20"]
    assert best["correct"] == robust.best.test["pgd-20"].correct
    assert not robust.model.training


def test_best_is_the_best_on_held_out_data(robust, standard):
    robust_rank = [(row["val_robust"], row["val_clean"]) for row in robust.history]
    assert robust.best.epoch == 1 + robust_rank.index(max(robust_rank))
    standard_rank = [(row["val_clean"], row["val_robust"]) for row in standard.history]
    assert standard.best.epoch == 1 + standard_rank.index(max(standard_rank))
    assert robust.last.epoch == standard.last.epoch == 10


@pytest.mark.parametrize("which", ["best", "last"])
def test_checkpoint_reproduces_the_accuracy(robust, which):
    selected = getattr(robust, which)
    model = checkpoint.load(selected.checkpoint)
    assert isinstance(model, models.SmallCNN)
    report = evaluate(model, "digits", eps=EPS)
    assert report["clean"] == selected.test["clean"]
    assert report["pgd-20"] == selected.test["pgd-20"]


def test_same_seed_same_weights(tmp_path, tiny):
    settings = dict(RECIPE, epochs=2, steps=2)
    runs = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        torch.manual_seed(len(runs))  # must not matter
        state = torch.get_rng_state()
        runs.append(train("small-cnn", tiny, seed=seed, out=tmp_path / name, **settings))
        assert torch.equal(torch.get_rng_state(), state)  # and is left alone
    one, again, other = (weights(run) for run in runs)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["linear2.weight"], other["linear2.weight"])
    times = ("seconds", "images_per_second")
    assert [{k: v for k, v in row.items() if k not in times} for row in runs[0].history] == [
        {k: v for k, v in row.items() if k not in times} for row in runs[1].history
    ]


def test_test_set_is_evaluated_once_after_training(tmp_path, tiny, monkeypatch):
    test = TensorSource(torch.rand(40, 1, 8, 8), torch.arange(40) % 3)
    calls = []

    def spy(model, data, **kwargs):
        rows = (tmp_path / "history.csv").read_text().count("\n") - 1 if calls else 0
        calls.append(("test" if data is test else "val", rows))
        return evaluate(model, data, **kwargs)

    monkeypatch.setattr(assembled, "evaluate", spy)
    monkeypatch.setattr(finish, "evaluate", spy)
    result = train("small-cnn", tiny, test=test, out=tmp_path, **dict(RECIPE, epochs=3, steps=1))
    models_tested = 1 if result.best.epoch == 3 else 2
    assert calls == [("val", 0), ("val", 1), ("val", 2), *[("test", 3)] * models_tested]


def test_test_set_has_no_influence_on_training(tmp_path, tiny):
    settings = dict(RECIPE, epochs=2, steps=1)
    labels = torch.arange(20) % 3
    tests = (torch.rand(20, 1, 8, 8), labels), (torch.zeros(20, 1, 8, 8), labels), None
    runs = [
        train("small-cnn", tiny, test=test, out=tmp_path / str(i), **settings)
        for i, test in enumerate(tests)
    ]
    for run in runs[1:]:
        assert all(
            torch.equal(weights(runs[0])[name], value) for name, value in weights(run).items()
        )
        assert run.best.epoch == runs[0].best.epoch
    assert runs[2].best.test is None
    assert runs[2].picture is not None


def test_model_is_trained_in_place_and_holds_the_best_weights(tmp_path, tiny):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    before = model[1].weight.detach().clone()
    result = train(model, tiny, out=tmp_path, **dict(RECIPE, epochs=4, lr=0.5, steps=2))
    assert result.model is model
    assert not torch.equal(model[1].weight, before)
    saved = checkpoint.read(result.best.checkpoint)["state"]
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


def test_best_weights_are_those_of_the_best_epoch(tmp_path, tiny, monkeypatch):
    # Held-out accuracy is made to peak at epoch 2 of 4.
    scores = iter([0.3, 0.8, 0.5, 0.8])

    def peaked(*args, **kwargs):
        clean, robust = (Accuracy(round(100 * value), 100) for value in (0.9, next(scores)))
        return {"clean": clean, "pgd-10": robust}

    monkeypatch.setattr(assembled, "evaluate", peaked)
    result = train("small-cnn", tiny, out=tmp_path, **dict(RECIPE, epochs=4, steps=1))
    assert (result.best.epoch, result.last.epoch) == (2, 4)
    best, last = (checkpoint.read(tmp_path / name) for name in ("best.pt", "last.pt"))
    assert (best["epoch"], last["epoch"]) == (2, 4)
    assert torch.equal(weights(result)["linear2.bias"], best["state"]["linear2.bias"])
    assert not torch.equal(best["state"]["linear2.bias"], last["state"]["linear2.bias"])


@pytest.mark.parametrize(("method", "best"), [("pgd-at", 2), ("standard", 3)])
def test_best_is_by_what_the_method_is_for(tmp_path, tiny, monkeypatch, method, best):
    # (clean, robust) on held-out data: the two disagree, and epoch 4 is no better than 3.
    scores = iter([(0.9, 0.3), (0.5, 0.8), (0.95, 0.5), (0.95, 0.5)])

    def scored(*args, **kwargs):
        clean, robust = (Accuracy(round(100 * value), 100) for value in next(scores))
        return {"clean": clean, "pgd-10": robust}

    monkeypatch.setattr(assembled, "evaluate", scored)
    settings = dict(RECIPE, epochs=4, steps=1)
    assert train("small-cnn", tiny, method=method, out=tmp_path, **settings).best.epoch == best


def test_batch_norm_and_a_last_batch_of_one(tmp_path):
    # 64 + 1 samples: batch normalisation cannot train on one.
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 2))
    data = torch.rand(65, 1, 8, 8), torch.arange(65) % 2
    held_out = torch.rand(8, 1, 8, 8), torch.arange(8) % 2
    train(model, data, val=held_out, out=tmp_path, **dict(RECIPE, epochs=3, steps=2))
    # Crafting has not moved the running statistics: one update a step.
    assert checkpoint.read(tmp_path / "last.pt")["state"]["1.num_batches_tracked"] == 3


class Breaks(nn.Module):
    """Logits become NaN in the given training step."""

    def __init__(self, step):
        super().__init__()
        self.linear = nn.Linear(64, 3)
        self.step, self.calls = step, 0

    def forward(self, x):
        logits = self.linear(x.flatten(1))
        if self.training:
            self.calls += 1
            if self.calls == self.step:
                logits = logits * torch.nan
        return logits


def test_non_finite_loss_stops_and_keeps_what_was_saved(tmp_path, tiny):
    model = Breaks(step=5)  # 111 training images in batches of 64: 2 steps an epoch
    with pytest.raises(
        NonFiniteLoss, match=r"nan at step 5 \(epoch 3 of 4.*epochs up to 2 are saved"
    ):
        train(model, tiny, out=tmp_path, **dict(RECIPE, epochs=4, steps=1))
    kept = checkpoint.read(tmp_path / "last.pt")
    assert kept["epoch"] == 2
    assert all(value.isfinite().all() for value in kept["state"].values())
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not (tmp_path / "results.json").exists()


def test_diverging_run_says_at_which_step(tmp_path, tiny):
    with pytest.raises(NonFiniteLoss, match="lower learning rate"):
        train("small-cnn", tiny, out=tmp_path, **dict(RECIPE, lr=1e20))
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


def test_existing_run_is_not_overwritten_by_accident(tmp_path, tiny):
    settings = dict(RECIPE, epochs=1, steps=1, out=tmp_path)
    train("small-cnn", tiny, **settings)
    before = (tmp_path / "best.pt").read_bytes()
    with pytest.raises(FileExistsError, match="overwrite"):
        train("small-cnn", tiny, **settings)
    assert (tmp_path / "best.pt").read_bytes() == before
    train("small-cnn", tiny, seed=1, overwrite=True, **settings)
    assert (tmp_path / "best.pt").read_bytes() != before


def test_default_folders_are_new(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = dict(RECIPE, epochs=1, steps=1)
    paths = [train("small-cnn", tiny, **settings).path for _ in range(2)]
    assert paths == [Path("runs/custom-pgd-at-seed0"), Path("runs/custom-pgd-at-seed0-2")]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "pgdat"}, ValueError, "did you mean 'pgd-at'"),
        ({"model": "small-cn"}, ValueError, "did you mean 'small-cnn'"),
        ({"model": 3}, TypeError, "nn.Module or a name, got int"),
        ({"model": nn.Flatten()}, ValueError, "no parameters"),
        ({"model": nn.Linear(8, 3)}, ValueError, r"logits of shape \[B, K\]"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(9, 3))}, ValueError, "does not take"),
        (
            {"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 2))},
            ValueError,
            r"0 \.\. 1 .* got 2",
        ),
        ({"data": "digit"}, ValueError, "did you mean 'digits'"),
        ({"data": 3}, TypeError, "got int"),
        ({"data": (torch.rand(1, 1, 8, 8), torch.zeros(1).long())}, ValueError, "at least 2"),
        ({"val": (torch.rand(2, 1, 8, 8), torch.tensor([0, 7]))}, ValueError, "labels of val"),
        ({"test": (torch.rand(2, 1, 9, 9), torch.tensor([0, 1]))}, ValueError, "images of test"),
        ({"test": "digits"}, TypeError, "test must be a pair"),
        ({"eps": -0.1}, ValueError, "eps"),
        ({"eps": 8}, ValueError, "8/255, not 8"),
        ({"alpha": 0.0}, ValueError, "alpha"),
        ({"steps": -1}, ValueError, "steps"),
        ({"norm": "l3"}, ValueError, "norm"),
        ({"bn": "evil"}, ValueError, "bn"),
        ({"epochs": 0}, ValueError, "epochs"),
        ({"batch_size": 1.5}, ValueError, "batch_size"),
        ({"lr": 0.0}, ValueError, "lr"),
        ({"momentum": 1.0}, ValueError, "momentum"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay"),
        ({"seed": -1}, ValueError, "seed"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, tiny, change, error, message):
    arguments = dict(RECIPE, model="small-cnn", data=tiny, out=tmp_path / "run") | change
    with pytest.raises(error, match=message):
        train(**arguments)
    assert not (tmp_path / "run").exists()


def test_progress_without_a_terminal(tmp_path, tiny, capsys):
    train("small-cnn", tiny, out=tmp_path, **dict(RECIPE, epochs=3, steps=1, progress=True))
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert "small-cnn on custom (110 training images, 20 held out, 0 test)" in lines[0]
    assert str(tmp_path) in lines[1]
    assert [line.split(":")[0] for line in lines[2:]] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert advfast.__version__ in (tmp_path / "results.json").read_text()
