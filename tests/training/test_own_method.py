"""A method of the user's from outside of the package: the class of docs/training.md, by its file."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from advfast import cli
from advfast.training import checkpoint, train
from advfast.userfile import load_object

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def section(page):
    return page.split("## Your own method\n")[1].split("\n## ")[0]


@pytest.fixture
def file(tmp_path):
    (block,) = re.findall(r"^```python\n(.*?)^```", section(PAGE.read_text()), re.M | re.S)
    path = tmp_path / "pairing.py"
    path.write_text(block)
    return path


def run(tiny, method, folder, **changes):
    wanted = {"eps": 0.1, "steps": 2, "epochs": 1, "batch_size": 48, "progress": False}
    return train("small-cnn", tiny, method=method, out=folder, **wanted | changes)


def weights(folder):
    return checkpoint.read(folder / "last.pt")["state"]


def same(one, other):
    return all(torch.equal(weights(one)[name], value) for name, value in weights(other).items())


def test_by_its_file_and_by_its_class(tmp_path, tiny, file):
    name = f"{file}:LogitPairing"
    options = {"method_options": {"weight": 2.0}}
    first = run(tiny, name, tmp_path / "file", **options)
    run(tiny, load_object(name), tmp_path / "class", **options)
    run(tiny, name, tmp_path / "none", method_options={"weight": 0})
    run(tiny, "pgd-at", tmp_path / "pgd")
    assert first.config["method"] == name
    assert same(tmp_path / "file", tmp_path / "class")
    assert same(tmp_path / "none", tmp_path / "pgd")
    assert not same(tmp_path / "file", tmp_path / "none")


def test_on_the_command_line_and_again_from_its_config(tmp_path, file, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    short = ["train", "--epochs", "1", "--steps", "1", "--batch-size", "300", "--quiet"]
    method = ["--method", "pairing.py:LogitPairing", "--method-option", "weight=3"]
    try:
        assert cli.main([*short, *method]) == 0
        folder = Path("runs/digits-LogitPairing-seed0")
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["method"] == "pairing.py:LogitPairing"
        assert config["method_options"] == {"weight": 3}
        again = ["train", "--config", str(folder / "config.yaml"), "--quiet", "--out", "again"]
        assert cli.main(again) == 0
        assert same(folder, Path("again"))
        capsys.readouterr()
        wrong = ["--method", "pairing.py:LogitPairin"]
        assert cli.main([*short, *wrong]) == 1
    finally:
        torch.set_num_threads(threads)
    error = capsys.readouterr().err.strip()
    assert "defines no 'LogitPairin'" in error and "did you mean 'LogitPairing'" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "there is no file"),
        ("1 / 0", ValueError, "own.py, line 1: ZeroDivisionError"),
        ("Mine = 3", TypeError, "must be a function or class, got int"),
        ("def Mine(model, settings):\n    return 3", TypeError, "something that makes a int"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_before_training(tmp_path, tiny, content, error, message):
    path = tmp_path / "own.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=message):
        run(tiny, f"{path}:Mine", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_its_options_are_checked(tmp_path, tiny, file):
    with pytest.raises(ValueError, match="has no option 'wait'; it has weight"):
        run(tiny, f"{file}:LogitPairing", tmp_path / "run", method_options={"wait": 1})
    assert not (tmp_path / "run").exists()
