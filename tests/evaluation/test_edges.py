"""Input at the edge: eps 0, everything wrong, few classes, odd batches, and AutoAttack in all of it."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advfast import AutoAttack
from advfast.evaluation import evaluate

ATTACKS = ("clean", "pgd-3", "autoattack")
EPS = 0.05


def linear(classes=5, size=16):
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(size, classes)).eval()


def short(model):
    """Two parts of AutoAttack, with few steps."""
    attack = AutoAttack(
        model, eps=EPS, version="custom", attacks_to_run=["apgd-ce", "square"], verbose=False
    )
    attack.apgd.n_iter, attack.square.n_queries = 5, 30
    return attack


def data(model, count=12, shape=(1, 4, 4)):
    images = torch.rand(count, *shape)
    return images, model(images).argmax(1)


def test_at_eps_0_every_attack_gives_the_clean_accuracy(tmp_path):
    model = linear()
    images, labels = data(model)
    labels[:3] = (labels[:3] + 1) % 5
    report = evaluate(
        model, (images, labels), attacks=ATTACKS, eps=0.0, sanity=True, out=tmp_path, report=True
    )
    assert {found.correct for found in report.results.values()} == {9}
    assert report.examples == () and report.worst.correct == 9
    assert "square-wins" not in [finding.code for finding in report.findings]


def test_all_points_wrong_already(tmp_path):
    model = linear()
    images, labels = data(model)
    report = evaluate(
        model, (images, (labels + 1) % 5), attacks=ATTACKS, eps=EPS, sanity=True, out=tmp_path,
        report=True,
    )  # fmt: skip
    assert {found.correct for found in report.results.values()} == {0}
    assert report.stages == {} and report.costs == {} and report.examples == ()
    assert report.confusion["autoattack"] == report.confusion["clean"]


def test_two_classes():
    model = linear(2)
    images, labels = data(model, 3)
    report = evaluate(model, (images, labels), attacks=ATTACKS, eps=EPS)
    assert report["autoattack"].correct <= report["pgd-3"].correct <= 3
    parts = list(report.stages["autoattack"])
    assert parts == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert report.stages["autoattack"]["square"] == report["autoattack"]
    assert "few-classes" in [finding.code for finding in report.findings]


@pytest.mark.parametrize("batch_size", [5, 100])
def test_the_batch_size_changes_nothing(batch_size, tmp_path):
    model = linear()
    images, labels = data(model)
    loader = DataLoader(TensorDataset(images, labels), batch_size=batch_size)
    attacks = {"pgd-3": "pgd-3", "both": short(model)}
    expected = evaluate(model, (images, labels), attacks=attacks, eps=EPS)
    found = evaluate(model, loader, attacks=attacks, eps=EPS, out=tmp_path)
    assert found.results == expected.results and found.stages == expected.stages
    assert list(found.stages["both"]) == ["apgd-ce", "square"]
    assert found.confusion == expected.confusion
    assert 0 < expected["both"].correct < 12


def test_an_empty_loader_and_wrong_pixels_write_nothing(tmp_path):
    model = linear()
    empty = DataLoader(TensorDataset(torch.rand(0, 1, 4, 4), torch.zeros(0).long()))
    for given, message in (
        (empty, "no samples"),
        (DataLoader(TensorDataset(torch.rand(4, 1, 4, 4) * 2, torch.zeros(4).long())), "pixels"),
        ((torch.rand(4, 1, 4, 4), torch.full((4,), 9)), r"labels must be 0 \.\. 4"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(model, given, attacks=ATTACKS, eps=EPS, out=tmp_path / "out", report=True)
        assert not (tmp_path / "out").exists()


def test_wrong_pixels_in_a_later_batch_lose_nothing(tmp_path):
    model = linear()
    images, labels = data(model)
    bad = images.clone()
    bad[9] = 2.0
    loader = DataLoader(TensorDataset(bad, labels), batch_size=4)
    with pytest.raises(ValueError, match="pixels in"):
        evaluate(model, loader, attacks=("clean", "pgd-3"), eps=EPS, out=tmp_path)
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)  # mended
    found = evaluate(model, loader, attacks=("clean", "pgd-3"), eps=EPS, out=tmp_path, resume=True)
    assert (
        found.results
        == evaluate(model, (images, labels), attacks=("clean", "pgd-3"), eps=EPS).results
    )
