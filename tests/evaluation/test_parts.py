"""Attacks of several parts: what each came to, what they cost."""

import json

import pytest
import torch

from advfast.evaluation import Accuracy, EvalReport, evaluate
from advfast.evaluation import run as module
from advfast.evaluation.attacks import Entry
from advfast.evaluation.report import Cost

EPS = 0.1


@pytest.fixture
def parted(cnn, monkeypatch):
    """An attack of two parts: the first breaks samples of class 0, the second those of class 1 too; nothing is left of
    a batch without others for the second."""
    model, images, labels = cnn

    def entries(attacks, model, **settings):
        entry = Entry("both", "first, then second", None)

        def craft(images, labels, numbers):
            entry.forwards += 3 * len(images)
            entry.backwards += len(images)
            first = labels != 0
            entry.stages = {"first": first}
            if first.any():
                entry.stages["second"] = first & (labels != 1)
            entry.watch(0.5, int(first.sum()))
            broken = (labels < 2).view(-1, 1, 1, 1)
            return torch.where(broken, other(images, labels), images)

        entry.craft = craft
        return [Entry("clean", "", None), entry]

    def other(images, labels):
        """Images that are certainly taken for another class, wherever they are."""
        found = []
        for label in labels.tolist():
            at = (model.eval()(cnn[1]).argmax(1) != label).nonzero()[0, 0]
            found.append(cnn[1][at])
        return torch.stack(found)

    monkeypatch.setattr(module, "entries", entries)
    return model, images, labels


def test_stages_are_cumulative_and_end_at_the_accuracy(parted):
    model, images, labels = parted
    order = (
        labels.argsort()
    )  # batches of one class: in the first, nothing is left for the second part
    images, labels = images[order], labels[order]
    right = model.eval()(images).argmax(1) == labels
    report = evaluate(
        model, (images, labels), attacks=("both",), eps=1.0, batch_size=15, sanity=False
    )
    expected = {
        "first": int((right & (labels != 0)).sum()),
        "second": int((right & (labels == 2)).sum()),
    }
    assert report.stages == {
        "both": {part: Accuracy(count, 90) for part, count in expected.items()}
    }
    assert report["both"] == report.stages["both"]["second"]
    assert 0 < expected["second"] < expected["first"] < report["clean"].correct
    assert report.costs == {"both": Cost(3 * int(right.sum()), int(right.sum()))}


def test_parts_and_costs_are_in_the_table_and_the_json(parted):
    model, images, labels = parted
    report = evaluate(model, (images, labels), attacks=("both",), eps=1.0, sanity=False)
    table = str(report).split("\n\n")[1].splitlines()
    assert [line.split("  ")[0] for line in table[:3]] == ["attack", "clean", "both"]
    assert table[3].startswith("  first ") and table[4].startswith("  second ")
    cost = report.costs["both"]
    assert table[2].endswith(f"{cost.forwards} + {cost.backwards}")
    assert table[0].endswith("passes")
    first = report.stages["both"]["first"]
    assert f"{first.correct}/90" in table[3]
    assert table[5:] == [
        "indented: after this part of the attack and those before it",
        "passes: images through the model, forwards + backwards",
    ]
    content = json.loads(json.dumps(report.to_dict()))
    assert content["stages"]["both"]["first"]["correct"] == first.correct
    assert content["costs"]["both"] == {"forwards": cost.forwards, "backwards": cost.backwards}
    assert EvalReport.from_dict(content) == report


def test_a_batch_without_anything_to_attack_keeps_no_old_parts(parted):
    model, images, labels = parted
    right = model.eval()(images).argmax(1) == labels
    order = torch.cat([right.nonzero()[:, 0], (~right).nonzero()[:, 0]])
    images, labels = images[order], labels[order]
    whole = evaluate(model, (images, labels), attacks=("both",), eps=1.0, sanity=False)
    split = evaluate(
        model,
        (images, labels),
        attacks=("both",),
        eps=1.0,
        batch_size=int(right.sum()),
        sanity=False,
    )
    assert whole.stages == split.stages
    assert whole.results == split.results
