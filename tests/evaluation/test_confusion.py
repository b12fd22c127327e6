"""What samples are taken for, and which of them are shown."""

import json

import pytest
import torch
from torch import nn

from advfast.evaluation import EvalReport, evaluate
from advfast.evaluation.confusion import Confusion, confusion
from advfast.evaluation.examples import KEPT, margins

EPS = 0.1


def other(model, x, y):
    """Darkens the row that tells the class, and brightens that of the next one."""
    moved = x.clone()
    rows = torch.arange(len(x))
    moved[rows, 0, y % x.shape[2]] -= EPS
    moved[rows, 0, (y + 1) % 3 % x.shape[2]] += EPS
    return moved


def test_counts_are_of_the_attacked_images(cnn):
    model, images, labels = cnn
    report = evaluate(model, (images, labels), attacks=["clean", other], eps=EPS, batch_size=40)
    model.eval()
    clean = model(images).argmax(1)
    # A sample that is wrong when clean is not attacked.
    attacked = torch.where(clean == labels, model(other(model, images, labels)).argmax(1), clean)
    for name, predicted in (("clean", clean), ("other", attacked)):
        counts = torch.zeros(3, 3, dtype=torch.int64)
        counts.index_put_((labels, predicted), torch.ones(90, dtype=torch.int64), accumulate=True)
        found = report.confusion[name]
        assert found.matrix == tuple(map(tuple, counts.tolist()))
        assert sum(map(sum, found.matrix)) == 90
        assert sum(found.matrix[k][k] for k in range(3)) == report[name].correct
        assert list(found.mistakes) == sorted(found.mistakes, key=lambda entry: -entry[2])
    assert report.confusion["clean"] != report.confusion["other"]


def test_of_many_classes_the_largest_are_kept():
    torch.manual_seed(0)
    labels = torch.arange(21).repeat(40)
    predicted = torch.where(torch.rand(840) < 0.5, labels, torch.randint(0, 21, (840,)))
    predicted[:50] = torch.where(labels[:50] == 3, 7, labels[:50])
    predicted[labels == 5] = 6
    found = confusion(labels, predicted.int(), 21)
    assert found.matrix is None
    assert found.mistakes[0] == (5, 6, 40)
    assert len(found.mistakes) == 100
    assert all(true != taken for true, taken, _ in found.mistakes)
    assert found.mostly(5) == (6, 40)
    assert Confusion.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    few = confusion(labels % 20, predicted.int() % 20, 20)
    assert len(few.matrix) == 20
    assert Confusion.from_dict(json.loads(json.dumps(few.to_dict()))) == few
    assert confusion(labels, labels.int(), 21).mistakes == ()
    assert confusion(labels, labels.int(), 21).mostly(0) is None


def test_what_is_not_a_number_is_in_no_column():
    labels = torch.tensor([0, 0, 1, 1])
    found = confusion(labels, torch.tensor([0, -1, 0, -1], dtype=torch.int32), 2)
    assert found.matrix == ((1, 0), (1, 0))


@pytest.mark.parametrize("batch_size", [90, 13])
def test_examples_are_the_surest_that_broke(cnn, batch_size):
    model, images, labels = cnn
    attacks = {"clean": "clean", "still": lambda model, x, y: x, "pgd-1": "pgd-1", "other": other}
    report = evaluate(model, (images, labels), attacks=attacks, eps=EPS, batch_size=batch_size)
    strongest = min(("pgd-1", "other"), key=lambda name: report[name].correct)
    assert report.strongest() == strongest
    assert {one.attack for one in report.examples} == {strongest}
    only = evaluate(
        model, (images, labels), attacks=["clean", other], eps=EPS, batch_size=batch_size
    )
    model.eval()
    logits = model(images)
    moved = other(model, images, labels)
    after = model(moved)
    broken = ((logits.argmax(1) == labels) & (after.argmax(1) != labels)).nonzero()[:, 0]
    margin = margins(logits, labels)
    expected = sorted(broken.tolist(), key=lambda row: -margin[row].item())[:KEPT]
    assert len(broken) > KEPT // 2
    assert [one.sample for one in only.examples] == expected
    for one in only.examples:
        row = one.sample
        assert one.attack == "other"
        assert (one.label, one.predicted) == (int(labels[row]), int(after[row].argmax()))
        assert one.margin == pytest.approx(margin[row].item(), rel=1e-4)
        assert one.confidence == pytest.approx(logits[row].softmax(0)[labels[row]].item(), rel=1e-4)
        assert one.confidence_attacked == pytest.approx(
            after[row].softmax(0).max().item(), rel=1e-4
        )
        assert one.distance == pytest.approx(EPS, rel=1e-5)
        assert torch.equal(one.image, images[row])
        assert torch.equal(one.attacked, moved[row])
        # A batch is not held by the few that are kept.
        assert one.image.untyped_storage().nbytes() == 4 * one.image.numel()
    back = EvalReport.from_dict(json.loads(json.dumps(only.to_dict())))
    assert back == only and back.examples[0].image is None


def test_margins():
    logits = torch.tensor(
        [[1.0, 3.0, 2.0], [torch.nan, 0, 0], [torch.inf, 0, 0], [0.0, torch.inf, torch.inf]]
    )
    found = margins(logits, torch.tensor([1, 1, 0, 1]))
    assert found[0] == 1
    assert found.isfinite().all()
    assert found[2] > 1e30 and found[1] < -1e30 and found[3] < -1e30


def test_a_model_whose_logits_overflow_is_still_reported(tmp_path):
    class Infinite(nn.Module):
        def forward(self, x):
            high = x.flatten(1).amax(1, keepdim=True) > 0.55
            logits = torch.cat([x.flatten(1)[:, :1] * 0 + torch.inf, x.flatten(1)[:, :1]], 1)
            return torch.where(high, torch.full_like(logits, torch.nan), logits)

    images = torch.full((6, 1, 2, 2), 0.5)
    report = evaluate(
        Infinite(), (images, torch.zeros(6).long()), attacks=["clean", other], eps=EPS, sanity=False,
        out=tmp_path, report=True,
    )  # fmt: skip
    assert (report["clean"].correct, report["other"].correct) == (6, 0)
    assert [one.predicted for one in report.examples] == [-1] * 6
    content = json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert EvalReport.from_dict(content) == report
