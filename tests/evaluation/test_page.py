"""The HTML page: whole, escaped, without a network; and the figures."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from matplotlib.image import imread

from advfast.attacks.sanity import Finding, Sweep
from advfast.evaluation import Accuracy, EvalReport, evaluate
from advfast.evaluation.confusion import confusion
from advfast.evaluation.examples import Example
from advfast.evaluation.page import render
from advfast.evaluation.report import Cost

EPS = 8 / 255
EVIL = '<script>alert("x")</script>'
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Elements, balanced; texts of the cells of each table; attributes that load something."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.loads, self.text = [], [], [], []
        self.tables, self.ids = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        attributes = dict(attributes)
        self.loads += [attributes[name] for name in ("src", "href", "action") if name in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        assert not any(name.startswith("on") for name in attributes)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data.strip()


def full(classes=4, names=None, norm="linf"):
    """A report with everything in it."""
    torch.manual_seed(0)
    labels = torch.arange(200) % classes
    attacks = ("clean", "autoattack")
    predicted = {
        name: torch.where(torch.rand(200) < share, labels, torch.randint(0, classes, (200,)))
        for name, share in zip(attacks, (0.9, 0.4), strict=True)
    }
    results = {name: Accuracy(int((of == labels).sum()), 200) for name, of in predicted.items()}
    per_class = {
        name: {
            k: Accuracy(int((of[labels == k] == k).sum()), int((labels == k).sum()))
            for k in range(classes)
        }
        for name, of in predicted.items()
    }
    images = torch.rand(8, 3, 12, 12)
    examples = tuple(
        Example(
            "autoattack", 10 * k, k % classes, (k + 1) % classes, 9.5 - k, 0.9999, 0.8, EPS,
            images[k], (images[k] + EPS * torch.randn(3, 12, 12).sign()).clamp(0, 1),
        )
        for k in range(8)
    )  # fmt: skip
    return EvalReport(
        results, EPS, norm, 3725.0, worst=results["autoattack"], per_class=per_class,
        class_names=names, attacks={"clean": "as they are", "autoattack": "four attacks"},
        attack_seconds={"clean": 0.5, "autoattack": 3700.0}, model="small-cnn", data="mine (test)",
        settings={"batch_size": 500, "seed": 0, "precision": "fp32", "limit": None},
        stages={"autoattack": {"apgd-ce": Accuracy(120, 200), "square": results["autoattack"]}},
        confusion={name: confusion(labels, of, classes) for name, of in predicted.items()},
        costs={"autoattack": Cost(1_234_567, 2345)},
        findings=(Finding("square-wins", "Square did it", "try bpda", {"fell": 0.05}),),
        curves=Sweep(
            [0.0, EPS / 2, EPS, 2 * EPS, 4 * EPS], [1, 0.8, 0.5, 0.2, 0.1], [1, 5, 20, 50],
            [0.7, 0.6, 0.5, 0.5], [0.6, 1.0, 1.4, float("nan")], 128, (), 1.0, 0.01,
        ),
        examples=examples, warnings=("a warning",), errors={"mine": "RuntimeError: no"},
        reproduce={"call": "advfast.evaluate(model, data)", "command": "advfast evaluate run"},
        fingerprint={"weights": "abc", "pixels": "def"},
    )  # fmt: skip


def test_what_is_on_the_page(tmp_path):
    report = full(names=("cat", "dog", "fox", "owl"))
    written = report.save(tmp_path, page=True)
    assert [file.name for file in written] == [
        "evaluation.json",
        "evaluation.txt",
        "evaluation.png",
        "evaluation-curves.png",
        "evaluation-examples.png",
        "evaluation.html",
    ]
    text = written[-1].read_text()
    page = Page(text)
    assert page.ids == [
        "findings", "accuracy", "curves", "examples", "classes", "confusion", "reproduce",
    ]  # fmt: skip
    assert page.tags.count("h1") == 1 and page.tags.count("img") == 3
    # Nothing is loaded: the figures are inside.
    assert all(link.startswith("data:image/png;base64,") for link in page.loads)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?:|//\w|url\(|@import", re.sub(r"base64,[\w+/=]+", "", text))
    words = " ".join(" ".join(page.text).split())
    assert "small-cnn on mine (test)" in words
    assert "200 samples, Linf eps = 8/255" in words
    assert words.index("try bpda") < words.index("Square did it")  # the advice first
    assert "autoattack four attacks" in words
    assert "mine has no result: RuntimeError: no" in words and "a warning" in words
    assert "advfast evaluate run" in words and "advfast.evaluate(model, data)" in words
    assert f"torch {torch.__version__}" in words and "1:02:05 h" in words
    accuracy, examples, classes, *confusions = page.tables
    found = report["autoattack"]
    low, high = found.interval
    assert [row[0] for row in accuracy] == ["attack", "clean", "autoattack", "apgd-ce", "square"]
    assert accuracy[2][1:7] == [
        f"{100 * found.value:.1f} %",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{found.correct} / 200",
        "1:01:40 h",
        "1.23 million",
        "2,345",
    ]
    assert examples[1][:6] == ["0", "0 cat", "1 dog", "> 99.9 %", "80.0 %", "9.5"]
    assert [row[0] for row in classes[1:]] == ["0 cat", "1 dog", "2 fox", "3 owl"]
    assert classes[1][3] == f"{100 * report.per_class['autoattack'][0].value:.1f}"
    matrix = report.confusion["autoattack"].matrix
    assert [[int(cell or 0) for cell in row[1:]] for row in confusions[1][1:]] == [
        list(row) for row in matrix
    ]
    # The second one, of the strongest attack, is unfolded.
    assert re.findall(r"<details( open)?><summary>(\w+)", text) == [
        ("", "clean"),
        (" open", "autoattack"),
    ]


def test_everything_from_the_user_is_escaped(tmp_path):
    report = full(names=(EVIL, "b", "c", "d"))
    report = replace(
        report,
        model=EVIL, data=EVIL, warnings=(EVIL,), errors={EVIL: EVIL}, attacks={"clean": EVIL},
        settings={EVIL: EVIL}, reproduce={"call": EVIL, "command": EVIL}, versions={EVIL: EVIL},
        findings=(Finding(EVIL, EVIL, EVIL, {EVIL: EVIL}),), fingerprint={"weights": EVIL, "pixels": EVIL},
        results={EVIL: report["clean"], "autoattack": report["autoattack"]},
        per_class={EVIL: report.per_class["clean"]},
        stages={EVIL: {EVIL: report["clean"], "b": report["clean"]}},
        confusion={EVIL: report.confusion["clean"]},
        examples=tuple(replace(one, attack=EVIL) for one in report.examples),
    )  # fmt: skip
    text = render(report, {})
    assert "<script" not in text and "alert(&#34;x&#34;)" in text
    page = Page(text)
    assert "script" not in page.tags
    assert " ".join(page.text).count("<script>") > 20


@pytest.mark.parametrize("classes", [21, 130])
def test_many_classes(classes):
    report = full(classes)
    assert report.confusion["clean"].matrix is None
    page = Page(render(report, {}))
    table = page.tables[2]
    assert len(table) == 1 + min(classes, 100)
    if classes > 100:
        assert "The 100 of 130 classes that are lowest under autoattack." in " ".join(page.text)
    mistakes = page.tables[-1]
    assert mistakes[0] == ["class", "taken for", "samples"]
    first = report.confusion["autoattack"].mistakes[0]
    assert mistakes[1] == [str(value) for value in first]
    assert len(mistakes) == 31


def test_a_bare_report_has_a_page_too(tmp_path):
    report = EvalReport({"clean": Accuracy(5, 10)}, 0.3, "l2", 1.0)
    page = Page(report.html())
    assert page.ids == ["accuracy", "reproduce"]
    assert "L2 eps = 0.3" in " ".join(page.text)
    # One that was read from a file has no images of examples, but what they were.
    back = EvalReport.from_dict(json.loads(json.dumps(full().to_dict())))
    read = Page(back.html())
    assert "examples" in read.ids and read.tags.count("img") == 2


def test_files_of_an_older_evaluation_do_not_stay(tmp_path):
    full().save(tmp_path, page=True)
    bare = EvalReport({"clean": Accuracy(5, 10)}, 0.3, "l2", 1.0)
    bare.save(tmp_path)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["evaluation.json", "evaluation.png", "evaluation.txt"]


def test_without_matplotlib_there_is_a_page_without_figures(tmp_path, monkeypatch):
    import sys

    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.warns(RuntimeWarning, match="skipped: matplotlib is not installed") as told:
        full().save(tmp_path, page=True)
    assert len(told) == 1
    page = Page((tmp_path / "evaluation.html").read_text())
    assert "img" not in page.tags and "curves" not in page.ids and "confusion" in page.ids


SHAPES = [(3, 12, 10), (8, 8, 3), (16,), (2, 4, 8, 8)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_examples_of_any_shape(tmp_path, shape):
    size = torch.Size(shape).numel()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(size, 4))
    images = torch.rand(30, *shape)
    labels = model(images).argmax(1)
    report = evaluate(
        model,
        (images, labels),
        attacks=("pgd-5",),
        eps=0.2,
        out=tmp_path,
        report=True,
        sanity=False,
    )
    drawn = tmp_path / "evaluation-examples.png"
    data = report.examples[0].image
    assert drawn.exists() == (
        data.dim() == 2 or ((data.dim() == 3 and 3 in data.shape) or data.shape[0] == 1)
    )
    assert "examples" in Page((tmp_path / "evaluation.html").read_text()).ids
    if drawn.exists():
        pixels = imread(drawn)[..., :3]
        assert (pixels.max(2) - pixels.min(2) > 0.3).mean() > 0.05  # the perturbations


def test_the_curves_are_drawn(tmp_path):
    full().save(tmp_path, page=True)
    pixels = imread(tmp_path / "evaluation-curves.png")[..., :3]
    red = (pixels[..., 0] > 0.55) & (pixels[..., 1] < 0.4) & (pixels[..., 2] < 0.3)
    blue = (pixels[..., 2] > 0.5) & (pixels[..., 0] < 0.3)
    half = pixels.shape[1] // 2
    assert blue[:, :half].sum() > 300 and blue[:, half:].sum() > 300
    assert red[:, half:].sum() > 300 and red[:, :half].sum() == 0


def test_an_older_report_is_still_read():
    content = full().to_dict()
    newer = (
        "stages",
        "confusion",
        "costs",
        "findings",
        "curves",
        "examples",
        "reproduce",
        "fingerprint",
    )
    old = {name: value for name, value in content.items() if name not in newer}
    old["format"] = "advfast-evaluation-1"
    back = EvalReport.from_dict(json.loads(json.dumps(old)))
    assert back.results == full().results and back.per_class == full().per_class
    assert back.findings == () and back.curves is None
    assert "autoattack" in str(back) and Page(render(back, {})).ids


def test_the_call_and_what_is_left_out_of_it(cnn):
    model, images, labels = cnn

    def mine(model, x, y):
        return x

    def call(**kwargs):
        kwargs = {"sanity": False, **kwargs}
        return evaluate(model, (images, labels), **kwargs).reproduce["call"]

    assert call(eps=8 / 255) == (
        "advfast.evaluate(model, data, attacks=('clean', 'pgd-20'), eps=8/255, norm='linf', sanity=False)"
    )
    assert call(
        attacks={"a": mine, "b": "clean"}, eps=0.1, norm="L2", seed=3, limit=40, sanity="auto"
    ) == (
        "advfast.evaluate(model, data, attacks={'a': mine, 'b': 'clean'}, eps=0.1, norm='l2', seed=3, limit=40)"
    )
    assert "attacks=('clean',)" in call(attacks=["clean"])
