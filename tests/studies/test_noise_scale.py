"""The study of learning rate / batch size: what it measures, expects, and shows of a run that diverges."""

import importlib
import math

import pytest
import torch

from advfast import cli, evaluate, training
from advfast.data import load
from advfast.studies import load_study, noise_scale
from advfast.studies.result import StudyResult
from advfast.training import checkpoint

from ..training.test_resume import assert_same

module = importlib.import_module("advfast.studies.noise_scale")  # the function has its name

SMALL = {"epochs": 1, "steps": 1, "samples": 60, "limit": 50, "progress": False}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_row_has_the_accuracy_of_the_last_epoch_on_both_parts(tmp_path, monkeypatch):
    runs, measured, original = [], [], training.train

    def train(**arguments):
        result = original(**arguments)
        last = checkpoint.read(result.last.checkpoint)["state"]
        runs.append((result, arguments, last))
        for parameter in result.model.parameters():
            parameter.data.zero_()  # the best epoch, as far from the last one as can be
        return result

    def seen(model, part, **arguments):
        assert_same(dict(model.state_dict()), runs[0][2])
        report = evaluate(model, part, **arguments)
        measured.append((part, report))
        return report

    monkeypatch.setattr(module.training, "train", train)
    monkeypatch.setattr(module, "evaluate", seen)
    result = noise_scale(
        lrs=[0.1], batch_sizes=[20], seeds=[3], out=tmp_path, **SMALL | {"epochs": 2}
    )
    (row,) = result.rows
    ((trained, arguments, _),) = runs
    assert (arguments["lr"], arguments["batch_size"], arguments["seed"]) == (0.1, 20, 3)
    (train_part, on_train), (test_part, on_test) = measured
    assert train_part is arguments["data"] and len(train_part.labels) == 60
    assert len(test_part.labels) == len(load("digits").test.labels) == 500
    assert on_train["clean"].total == on_test["clean"].total == 50
    assert row["train_clean"] == on_train["clean"].value
    assert row["test_robust"] == on_test["pgd-20"].value
    assert row["robust_gap"] == pytest.approx(row["train_robust"] - row["test_robust"])
    assert row["loss"] == trained.history[1]["train_loss"]
    assert row["lr_over_batch"] == pytest.approx(0.005)
    assert row["effective_step"] == pytest.approx(1.0)
    assert (tmp_path / "noise_scale.png").read_bytes().startswith(b"\x89PNG")
    assert load_study(tmp_path).rows == result.rows


def test_a_run_that_diverges_is_a_row_without_measures_and_is_counted(tmp_path):
    result = noise_scale(
        lrs=[0.05, 1e25], batch_sizes=[20], seeds=[0], optimizer="pnm", out=tmp_path,
        optimizer_options={"betas": [0.9, 0.0]}, **SMALL | {"epochs": 2},
    )  # fmt: skip
    good, bad = result.rows
    assert good["effective_step"] == pytest.approx(0.05) and good["loss"] > 0
    assert bad["lr_over_batch"] == pytest.approx(5e23) and bad["effective_step"] == 1e25
    assert all(bad[name] is None for name in module._MEASURED)
    assert tuple(good) == tuple(bad)
    assert "lr 1e+25: 1 of 1 runs diverged" in str(result)
    assert [expectation.held for expectation in result.expectations] == [None, True, None]
    assert (tmp_path / "noise_scale.png").exists()


def made(rows):
    """A result of (batch size, lr, gap, robust test accuracy)s."""
    found = []
    for batch_size, lr, gap, robust in rows:
        row = dict.fromkeys(module._MEASURED) | {
            "batch_size": batch_size, "lr": lr, "seed": 0, "lr_over_batch": lr / batch_size,
        }  # fmt: skip
        if robust is not None:
            row |= {"robust_gap": gap, "test_robust": robust, "loss": 1.0}
        found.append(row)
    varied = ("batch_size", "lr", "seed")
    measures = (*module._MEASURED, "lr_over_batch")
    return StudyResult("noise-scale", {}, varied, measures, found)


def held(rows):
    return [expectation.held for expectation in module.expectations(made(rows))]


def test_expectations_are_told_by_the_numbers():
    falls = [(100, 0.1, 0.3, 0.5), (100, 0.2, 0.2, 0.6), (100, 0.4, 0.1, 0.4)]
    assert held(falls) == [True, True, None]
    rises = [(100, 0.1, 0.1, 0.5), (100, 0.2, 0.2, 0.6), (100, 0.4, 0.3, 0.7)]
    assert held(rises) == [False, False, None]
    # At chance there is no gap: that is not generalisation. Nor is a run that diverged at the end.
    assert held([*rises, (100, 0.8, 0.0, 0.1)]) == [False, True, None]
    assert held([*rises, (100, 0.8, None, None)]) == [False, True, None]
    assert held([(100, 0.1, 0.3, 0.5)]) == [None, None, None]
    assert held([(100, 0.1, None, None)]) == [None, None, None]


def test_batch_sizes_are_compared_where_they_share_a_ratio():
    same = [(32, 0.1, 0.3, 0.5), (128, 0.4, 0.28, 0.5), (32, 0.4, 0.1, 0.5)]
    assert held(same)[2] is True
    other = [(32, 0.1, 0.3, 0.5), (128, 0.4, 0.15, 0.5), (32, 0.4, 0.1, 0.5)]
    assert held(other)[2] is False


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lrs": [0.1, 0.0]}, ValueError, "lrs must be finite numbers > 0, got 0"),
        ({"lrs": [0.1, math.inf]}, ValueError, "lrs must be finite numbers > 0"),
        ({"lrs": [0.1, 0.1]}, ValueError, "lrs must be different values"),
        ({"lrs": []}, ValueError, "lrs must be different values, at least one"),
        ({"batch_sizes": [0]}, ValueError, "batch_sizes must be integers >= 1, got 0"),
        ({"batch_sizes": [2.5]}, ValueError, "batch_sizes must be integers >= 1"),
        ({"seeds": [-1]}, ValueError, "seeds must be integers >= 0"),
        ({"samples": 5000}, ValueError, "samples must be 1 .. 1196 or None, got 5000"),
        ({"lr": 0.1}, TypeError, "'lr' is no argument"),
        ({"optimizer": "sdg"}, ValueError, "did you mean 'sgd'"),
    ],
)
def test_bad_arguments_are_said_before_any_run(tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.setattr(module.training, "train", None)
    with pytest.raises(error, match=message):
        noise_scale(out=tmp_path / "study", **{"progress": False, **arguments})
    assert not (tmp_path / "study").exists()


def test_from_the_command_line_and_resumed(tmp_path, capsys, monkeypatch):
    words = [
        "study", "noise-scale", "--lrs", "0.05,1/10", "--batch-sizes", "20", "--seeds", "0",
        "--epochs", "1", "--steps", "1", "--samples", "60", "--limit", "50", "--quiet",
        "--optimizer", "pnm", "--out", str(tmp_path),
    ]  # fmt: skip
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert "expected, and what came:" in said.out and said.err == ""
    rows = load_study(tmp_path).rows
    assert [row["lr"] for row in rows] == [0.05, 0.1]
    assert rows[1]["effective_step"] == pytest.approx(0.1 / math.sqrt(5))
    monkeypatch.setattr(module.training, "train", None)  # nothing is left to run
    assert cli.main([*words, "--resume"]) == 0
    assert load_study(tmp_path).rows == rows
    assert cli.main([*words, "--resume", "--optimizer", "sgd"]) == 1
    assert "optimizer was 'pnm' and is now 'sgd'" in capsys.readouterr().err


def test_own_data_need_test_images(tmp_path):
    splits = load("digits")
    images, labels = splits.train.batch(torch.arange(200))
    with pytest.raises(ValueError, match="needs test images whose labels are known, got none"):
        noise_scale({"train": (images, labels)}, out=tmp_path / "study")
    arguments = {"lrs": [0.1], "batch_sizes": [20], "seeds": [0], "eps": 0.1, **SMALL}
    result = noise_scale({"train": (images, labels), "test": splits.test}, **arguments)
    assert result.settings["data"] == "own" and result.rows[0]["loss"] > 0
