"""RobustBench: loading what is there, saying what is not, and the JSON of its leaderboard."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import advfast
from advfast.attacks.sanity import Finding
from advfast.commands.checkpoints import open_checkpoint
from advfast.compat import robustbench
from advfast.compat.robustbench.leaderboard import FIELDS, check_content, eps_text
from advfast.evaluation import EvalReport
from advfast.evaluation.accuracy import Accuracy

from . import fake_robustbench

FULL = "robustbench:cifar10/Linf/Some2020Small"


@pytest.fixture(autouse=True)
def _no_package():
    """No robustbench before the test, and none after it."""
    assert not any(name.split(".")[0] == "robustbench" for name in sys.modules)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "robustbench"]:
        del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(fake_robustbench.write(tmp_path / "site"))


@pytest.fixture
def weights(tmp_path):
    """Folder of weights for both networks of the package."""
    place = tmp_path / "models" / "cifar10" / "Linf"
    place.mkdir(parents=True)
    for name in ("Some2020Small.pt", "Some2021Both.pt_m0.pt", "Some2021Both.pt_m1.pt"):
        torch.save({"2.weight": torch.randn(10, 48), "2.bias": torch.zeros(10)}, place / name)
    return tmp_path / "models"


def test_loads_in_eval_mode(package, weights):
    model = robustbench.load("Some2020Small", model_dir=weights)
    saved = torch.load(weights / "cifar10/Linf/Some2020Small.pt")
    assert torch.equal(model[2].weight, saved["2.weight"])
    assert not any(module.training for module in model.modules())
    again = robustbench.load(FULL, "cifar100", "L2", model_dir=weights)  # the name says which
    assert torch.equal(model[2].weight, again[2].weight)


def test_loads_an_ensemble(package, weights):
    model = robustbench.load("Some2021Both", model_dir=weights)
    assert not model.models[0].training
    (weights / "cifar10/Linf/Some2021Both.pt_m1.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"Some2021Both\.pt_m1\.pt"):
        robustbench.load("Some2021Both", model_dir=weights)


def test_says_what_is_missing(package, weights, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Some2020Small\.pt.*abc123.*download=True"):
        robustbench.load("Some2020Small", model_dir=tmp_path)
    with pytest.raises(RuntimeError, match="ConnectionError: no network"):
        robustbench.load("Some2020Small", model_dir=tmp_path, download=True)
    with pytest.raises(ValueError, match=r"no network cifar10/Linf/Some2020Smal.*'Some2020Small'"):
        robustbench.load("Some2020Smal", model_dir=weights)
    with pytest.raises(ValueError, match="no network imagenet/Linf/Some2020Small"):
        robustbench.load("Some2020Small", "imagenet", model_dir=weights)
    torch.save({"2.weight": torch.zeros(3, 3)}, weights / "cifar10/Linf/Some2020Small.pt")
    with pytest.raises(RuntimeError, match="failed to load cifar10/Linf/Some2020Small"):
        robustbench.load("Some2020Small", model_dir=weights)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "robustbench", None)
    with pytest.raises(ImportError, match="not installed: pip install"):
        robustbench.load("Some2020Small")


def test_a_package_that_cannot_be_imported(tmp_path, monkeypatch):
    """robustbench 1.1.1 on PyPI imports autoattack, which is not on PyPI."""
    (tmp_path / "robustbench").mkdir()
    (tmp_path / "robustbench" / "__init__.py").write_text("import autoattack\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"importing it failed.*fra31/auto-attack"):
        robustbench.load("Some2020Small")


def test_the_copy_that_torchattacks_ships(tmp_path, monkeypatch):
    (tmp_path / "robustbench").mkdir()
    file = tmp_path / "robustbench" / "__init__.py"
    file.write_text("def load_model(name):\n    raise AssertionError\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="torchattacks"):  # by what it lacks
        robustbench.load("Some2020Small")
    del sys.modules["robustbench"]
    owners = {"robustbench": ["torchattacks"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: owners)
    file.write_text("raise AssertionError('it is not even imported')\n")
    with pytest.raises(ImportError, match="not RobustBench's but that of torchattacks"):
        robustbench.load("Some2020Small")


def test_names():
    assert robustbench.parse_name(FULL).model == "Some2020Small"
    assert robustbench.parse_name("cifar10/L2/X").eps == 0.5
    with pytest.raises(ValueError, match="robustbench:cifar10/Linf/Wong2020Fast, got"):
        robustbench.parse_name("robustbench:Wong2020Fast")
    with pytest.raises(ValueError, match=r"got 'cifar10/linf'.*'cifar10/Linf'"):
        robustbench.parse_name("robustbench:cifar10/linf/X")


def _data(count: int = 12):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 32, 32, generator=generator), torch.arange(count) % 10


def test_evaluates_at_the_leaderboards_eps(package, weights):
    report = robustbench.evaluate(
        FULL, data=_data(), n_examples=8, model_dir=weights, attacks=("clean", "pgd-2")
    )
    assert report.eps == 8 / 255 and report.norm == "linf" and report.samples == 8
    model = robustbench.load(FULL, model_dir=weights)
    other = robustbench.evaluate(
        model, threat_model="L2", data=_data(), attacks=("clean", "pgd-2"), seed=1
    )
    assert other.eps == 0.5 and other.norm == "l2" and other.samples == 12
    assert (
        other["clean"].value == advfast.evaluate(model, _data(), attacks=("clean",))["clean"].value
    )


def test_evaluate_refuses():
    with pytest.raises(ValueError, match="imagenet needs data"):
        robustbench.evaluate(nn.Identity(), dataset="imagenet")
    with pytest.raises(ValueError, match="must be one of cifar10/Linf"):
        robustbench.evaluate(nn.Identity(), dataset="mnist")


def test_command_line_names(package, weights, monkeypatch):
    trained = open_checkpoint(weights, FULL)
    assert trained.config == {"data": "cifar10", "norm": "linf", "eps": 8 / 255}
    assert trained.file == weights / "cifar10" / "Linf" / "Some2020Small.pt"
    monkeypatch.chdir(weights.parent)
    again = open_checkpoint(Path(FULL), None)
    assert torch.equal(again.model[2].weight, trained.model[2].weight)
    with pytest.raises(ValueError, match="leave out --model"):
        open_checkpoint(Path(FULL), "x.py:make")


PAPER = {
    "model_name": "Some2020Small",
    "name": "Small is robust",
    "authors": "A. Author, B. Author",
    "link": "https://example.org/paper",
    "architecture": "Linear",
}


def _report(**changes) -> EvalReport:
    total = 10_000
    whole = EvalReport(
        results={"clean": Accuracy(8334, total), "autoattack": Accuracy(4321, total)},
        eps=8 / 255,
        norm="linf",
        seconds=1.0,
        attacks={"clean": "the images", "autoattack": "AutoAttack, version standard: APGD-CE"},
        stages={
            "autoattack": {
                name: Accuracy(right, total)
                for name, right in (
                    ("clean", 8334), ("apgd-ce", 4600), ("apgd-t", 4321), ("fab-t", 4321), ("square", 4321)
                )
            }
        },
        data="cifar10 (test)",
        settings={"precision": "fp32"},
    )  # fmt: skip
    return dataclasses.replace(whole, **changes)


def test_leaderboard_json_of_a_whole_run(tmp_path):
    content = robustbench.leaderboard_json(
        _report(), **PAPER, venue="ICLR 2020", reported=46.06, out=tmp_path
    )
    file = tmp_path / "model_info" / "cifar10" / "Linf" / "Some2020Small.json"
    assert json.loads(file.read_text()) == content
    assert set(FIELDS) <= content.keys()
    assert content["clean_acc"] == "83.34" and content["autoattack_acc"] == "43.21"
    assert content["eps"] == "8/255" and content["reported"] == "46.06"
    assert content["footnote"] is None and content["unreliable"] is False
    with pytest.raises(FileExistsError, match="overwrite=True"):
        robustbench.leaderboard_json(_report(), **PAPER, out=tmp_path)
    robustbench.leaderboard_json(_report(), **PAPER, venue="x", out=tmp_path, overwrite=True)
    assert json.loads(file.read_text())["venue"] == "x"


_SHORT = {"clean": Accuracy(90, 100), "autoattack": Accuracy(40, 100)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"results": _SHORT}, "of 100 samples, not 10000"),
        ({"eps": 0.031}, "eps is 0.031, that of the leaderboard 8/255"),
        ({"norm": "l2"}, "norm is l2, not Linf"),
        ({"data": "cifar10 (train)"}, r"of cifar10 \(train\), not of the test set"),
        ({"settings": {"precision": "bf16"}}, "ran in bf16"),
        ({"warnings": ("KeyboardInterrupt after 500 samples",)}, "warns: KeyboardInterrupt"),
        ({"stages": {"autoattack": {"clean": Accuracy(1, 1), "square": Accuracy(1, 1)}}}, "parts are square"),
    ],
)  # fmt: skip
def test_leaderboard_json_refuses_less(changes, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        robustbench.leaderboard_json(_report(**changes), **PAPER, out=tmp_path)
    assert not any(tmp_path.iterdir())
    content = robustbench.leaderboard_json(
        _report(**changes), **PAPER, footnote="Ours.", incomplete=True
    )
    assert content["footnote"].startswith("Ours. Not a whole standard evaluation: ")


def test_leaderboard_json_needs_autoattack():
    for results in ({"clean": Accuracy(1, 2)}, {"autoattack": Accuracy(1, 2)}):
        with pytest.raises(ValueError, match="must hold 'clean' and 'autoattack'"):
            robustbench.leaderboard_json(_report(results=results), **PAPER, incomplete=True)
    rand = {"clean": "", "autoattack": "AutoAttack, version rand: APGD-CE"}
    with pytest.raises(ValueError, match="version standard"):
        robustbench.leaderboard_json(_report(attacks=rand), **PAPER)
    content = robustbench.leaderboard_json(_report(attacks=rand), **PAPER, incomplete=True)
    assert "version rand" in content["footnote"]


def test_leaderboard_json_is_unreliable_where_the_checks_say_so():
    doubt, note = Finding("square-wins", "", ""), Finding("few-classes", "", "")
    assert robustbench.leaderboard_json(_report(findings=(doubt, note)), **PAPER)["unreliable"]
    assert not robustbench.leaderboard_json(_report(findings=(note,)), **PAPER)["unreliable"]
    assert not robustbench.leaderboard_json(_report(findings=(doubt,)), **PAPER, unreliable=False)[
        "unreliable"
    ]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("link", "arxiv", "address"),
        ("name", " ", "name must not be empty"),
        ("authors", None, "authors must be a text"),
        ("additional_data", 1, "True or False"),
        ("number_forward_passes", 0, "integer >= 1"),
        ("reported", 146.0, "0 to 100"),
        ("model_name", "../x", "model_name must be"),
        ("dataset", "mnist", "must be one of"),
    ],
)
def test_leaderboard_json_checks_its_fields(field, value, said):
    with pytest.raises((ValueError, TypeError), match=said):
        robustbench.leaderboard_json(_report(), **{**PAPER, field: value})


def test_fields_of_published_files():
    """Two of RobustBench's own, without their names."""
    published = {
        "link": "https://arxiv.org/abs/2001.03994", "name": "T", "authors": "A", "additional_data": False,
        "number_forward_passes": 1, "dataset": "cifar10", "venue": "ICLR 2020", "architecture": "PreActResNet-18",
        "eps": "8/255", "clean_acc": "83.34", "reported": "46.06", "autoattack_acc": "43.21",
        "footnote": "F",
    }  # fmt: skip
    check_content(published)
    check_content({**published, "reported": "", "unreliable": False})
    with pytest.raises(ValueError, match="above clean_acc"):
        check_content({**published, "autoattack_acc": "90.00"})
    del published["venue"]
    with pytest.raises(ValueError, match="missing: venue"):
        check_content(published)


def test_eps_as_text():
    assert eps_text(8 / 255, "Linf") == "8/255" and eps_text(0.5, "L2") == "0.5"
    assert eps_text(0.031, "Linf") == "0.031"
