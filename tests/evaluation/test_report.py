import json
import sys
from dataclasses import replace

import pytest
import torch
from matplotlib.image import imread
from scipy.stats import binomtest

from advfast.evaluation import Accuracy, EvalReport, evaluate

EPS = 0.1


@pytest.fixture
def report(cnn):
    model, images, labels = cnn
    attacks = ("clean", "pgd-1", "pgd-5")
    report = evaluate(model, (images, labels), attacks=attacks, eps=EPS, sanity=False)
    return replace(report, class_names=("cat", "ant", "2"))


def made(classes, attacks=("clean", "pgd-20")):
    """A report of `classes` classes with 10 samples each."""
    per_class = {
        name: {k: Accuracy((10 - i - k) % 11, 10) for k in range(classes)}
        for i, name in enumerate(attacks)
    }
    results = {
        name: Accuracy(sum(a.correct for a in of.values()), 10 * classes)
        for name, of in per_class.items()
    }
    return EvalReport(results, EPS, "linf", 1.0, worst=results[attacks[-1]], per_class=per_class)


@pytest.mark.parametrize(("correct", "total"), [(8, 10), (0, 20), (1, 3), (500, 500), (823, 1000)])
def test_wilson_interval(correct, total):
    expected = binomtest(correct, total).proportion_ci(method="wilson")
    assert Accuracy(correct, total).interval == pytest.approx(tuple(expected), abs=1e-9)


def test_text_is_an_aligned_table(report):
    heading, table, classes = str(report).split("\n\n")
    assert heading == "small-cnn on tensors: 90 samples, linf eps 0.1"
    header, *rows = table.splitlines()
    assert [row.split()[0] for row in rows] == ["clean", "pgd-1", "pgd-5", "worst"]
    for row, (_, accuracy) in zip(rows, report.rows().items(), strict=True):
        low, high = accuracy.interval
        assert f"{100 * accuracy.value:.1f} %" in row
        assert f"[{100 * low:.1f}, {100 * high:.1f}]" in row
        assert f"{accuracy.correct}/90" in row
    assert len({row.index("/90") for row in rows}) == 1
    assert header.index("right") + len("right") == rows[0].index("/90") + 3
    names = [line.split("  ")[0] for line in classes.splitlines()]
    assert names == ["class", "0 cat", "1 ant", "2"]
    assert len({len(line) for line in classes.splitlines()}) == 1
    assert "mostly taken for (pgd-5)" in classes.splitlines()[0]
    for number, line in enumerate(classes.splitlines()[1:]):
        taken, count = report.confusion["pgd-5"].mostly(number)
        assert line.endswith(f"  {report.name_of(taken)}, {count}x")


def test_many_classes_are_cut_short():
    text = str(made(100)).splitlines()
    assert text[-1] == "the 20 of 100 classes that are lowest under pgd-20"
    assert len(text) < 35
    lowest = [line.split()[0] for line in text if line.endswith(" 0.0 %")]
    assert lowest == [str(k) for k in range(9, 100, 11)]


def test_round_trip(report):
    content = json.loads(json.dumps(report.to_dict()))
    assert EvalReport.from_dict(content) == report
    assert content["results"]["pgd-5"]["correct"] == report["pgd-5"].correct
    assert content["results"]["pgd-5"]["interval_95"] == list(report["pgd-5"].interval)
    assert (content["samples"], content["eps"], content["norm"]) == (90, EPS, "linf")
    assert content["versions"]["torch"] == str(torch.__version__)
    assert set(content["attack_seconds"]) == {"clean", "pgd-1", "pgd-5"}
    assert content["settings"]["batch_size"] == 500
    for wrong in ({}, {"format": "other"}, []):
        with pytest.raises(ValueError, match="expected an evaluation of format"):
            EvalReport.from_dict(wrong)


def test_names_that_are_not_there(report):
    with pytest.raises(KeyError, match="'pgd-9' is none of clean, pgd-1, pgd-5"):
        report["pgd-9"]


def test_save(report, tmp_path):
    written = report.save(tmp_path / "new" / "folder")
    assert [file.name for file in written] == [
        "evaluation.json",
        "evaluation.txt",
        "evaluation.png",
    ]
    assert sorted(written) == sorted((tmp_path / "new" / "folder").iterdir())
    assert EvalReport.from_dict(json.loads(written[0].read_text())) == report
    assert written[1].read_text() == f"{report}\n"


@pytest.mark.parametrize(("classes", "attacks"), [(3, 2), (10, 3), (40, 2), (250, 6)])
def test_figure_shows_attacks_and_classes(tmp_path, classes, attacks):
    names = ("clean", *(f"pgd-{10 * k}" for k in range(1, attacks)))
    (_, _, picture) = made(classes, names).save(tmp_path)
    pixels = imread(picture)[..., :3]
    assert pixels.shape[0] > 400
    assert pixels.shape[1] > 500
    colour = pixels.max(2) - pixels.min(2) > 0.2
    width = colour.shape[1]
    assert colour[:, : width // 3].mean() > 0.02  # bars of the attacks
    assert colour[:, width // 2 :].mean() > 0.02  # classes


def test_without_matplotlib_the_rest_is_written(report, tmp_path, monkeypatch):
    report.save(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.warns(RuntimeWarning, match=r"skipped: matplotlib is not installed"):
        written = report.save(tmp_path)
    assert [file.suffix for file in written] == [".json", ".txt"]
    assert not (tmp_path / "evaluation.png").exists()  # not that of an older evaluation


def test_out_holds_an_evaluation_already(cnn, tmp_path):
    model, images, labels = cnn
    first = evaluate(model, (images, labels), attacks=("clean",), eps=EPS, out=tmp_path)
    with pytest.raises(FileExistsError, match="already holds an evaluation"):
        evaluate(model, (images, labels), eps=EPS, out=tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == first.to_dict()
    evaluate(model, (images, labels), eps=EPS, out=tmp_path, overwrite=True)
    assert "pgd-20" in json.loads((tmp_path / "evaluation.json").read_text())["results"]
