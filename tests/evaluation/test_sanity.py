"""The checks that an evaluation makes on its own, and what the report does with what they find."""

import json
from collections import Counter

import pytest
import torch
from torch import nn

from advfast.attacks.sanity import Finding
from advfast.evaluation import EvalReport, evaluate, run
from advfast.evaluation.accuracy import Accuracy

EPS = 0.1


@pytest.fixture
def data():
    return torch.rand(40, 1, 4, 4), torch.arange(40) % 5


@pytest.fixture
def masked(data):
    """A model that rounds its input: it has no gradient. Its own answers are the labels."""

    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 5)

        def forward(self, x):
            return self.linear((x * 4).round().flatten(1) / 4)

    model = Rounded().eval()
    images = data[0]
    return model, (images, model(images).argmax(1))


def codes(report):
    return [finding.code for finding in report.findings]


def test_a_masked_gradient_is_found_and_told_with_what_to_try(masked, tmp_path):
    model, data = masked
    report = evaluate(model, data, eps=EPS, out=tmp_path)
    assert report["pgd-20"].value > 0.3
    (found,) = [finding for finding in report.findings if finding.code == "zero-gradient"]
    text = " ".join((tmp_path / "evaluation.txt").read_text().split())
    assert f"doubtful: zero-gradient: {found.message}" in text
    assert f"try: {found.advice}" in text
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["findings"] == [finding.to_dict() for finding in report.findings]
    assert EvalReport.from_dict(content).findings == report.findings
    assert "zero-gradient" not in codes(evaluate(model, data, eps=EPS, sanity=False))


def test_what_is_checked_when(masked, monkeypatch):
    model, data = masked
    calls = Counter()
    for name in ("examine", "sweep"):
        function = getattr(run, name)

        def counted(*args, function=function, name=name, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(run, name, counted)

    def checked(**kwargs):
        calls.clear()
        report = evaluate(model, data, eps=EPS, batch_size=15, **kwargs)
        assert (report.curves is not None) == bool(calls["sweep"])
        return dict(calls)

    assert checked() == {"examine": 1}  # once, not for each batch
    assert checked(attacks=("clean",)) == {}
    assert checked(sanity=True) == {"examine": 1, "sweep": 1}
    assert checked(sanity=True, attacks=("clean",)) == {"examine": 1, "sweep": 1}
    assert checked(sanity=False) == {}


def test_the_curves_are_of_the_first_batch(masked):
    model, data = masked
    report = evaluate(model, data, eps=EPS, batch_size=15, sanity=True)
    assert report.curves.samples == 15
    assert report.curves.eps[0] == 0 and EPS in report.curves.eps
    flat = [finding.code for finding in report.curves.findings]
    assert "eps-flat" in flat  # rounding hides the way
    assert set(flat) <= set(codes(report))
    assert len(codes(report)) == len(set(codes(report)))
    back = EvalReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert back.curves.accuracy == report.curves.accuracy


def test_a_model_in_train_mode_is_seen_as_it_came(data):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 5))
    assert "train-mode" in codes(evaluate(model, data, eps=EPS))
    assert model.training
    assert "train-mode" not in codes(evaluate(model.eval(), data, eps=EPS))


def test_few_classes_concern_targeted_attacks_alone():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    data = torch.rand(12, 1, 4, 4), torch.arange(12) % 3
    assert codes(evaluate(model, data, eps=0.01)) == []
    assert "few-classes" in codes(evaluate(model, data, attacks=("apgd-t",), eps=0.01))


def test_the_numbers_do_not_depend_on_the_checks(cnn):
    model, images, labels = cnn
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with_them = evaluate(model, (images, labels), eps=EPS, sanity=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert with_them.results == evaluate(model, (images, labels), eps=EPS, sanity=False).results


def test_checks_that_cannot_run_do_not_stop_the_evaluation(data, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(run, "examine", broken)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    report = evaluate(model, data, eps=EPS)
    assert report.warnings == (
        "the sanity checks could not be finished: RuntimeError: out of luck",
    )
    assert report.results == evaluate(model, data, eps=EPS, sanity=False).results


def test_attacks_that_contradict_each_other(data):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).eval()
    labels = model(data[0]).argmax(1)

    def weak(model, x, y):
        return x

    attacks = {"pgd-20": weak, "pgd-1": "pgd-20", "square": "pgd-20"}
    report = evaluate(model, (data[0], labels), attacks=attacks, eps=EPS, sanity=False)
    assert report["pgd-20"].correct > report["pgd-1"].correct
    assert "order" in codes(report)


def test_stages_are_compared(monkeypatch):
    from advfast.evaluation import summary
    from advfast.evaluation.tally import Tally

    stages = {"apgd-ce": Accuracy(60, 100), "square": Accuracy(40, 100)}
    found = list(summary._findings(Tally([]), {}, {"autoattack": stages}))
    assert [finding.code for finding in found] == ["square-wins"]
    stages["square"] = Accuracy(60, 100)
    assert list(summary._findings(Tally([]), {}, {"autoattack": stages})) == []


@pytest.mark.parametrize("sanity", ["full", 1, None])
def test_bad_values(data, sanity):
    with pytest.raises(ValueError, match="sanity must be 'auto', True or False"):
        evaluate(nn.Linear(4, 2), data, sanity=sanity)


def test_findings_survive_json():
    finding = Finding("code", "message", "advice", {"share": 0.5, "count": 3, "loss": float("nan")})
    report = EvalReport({"clean": Accuracy(1, 2)}, EPS, "linf", 1.0, findings=(finding,))
    content = json.loads(json.dumps(report.to_dict()), parse_constant=pytest.fail)
    back = EvalReport.from_dict(content).findings[0]
    assert back.values["count"] == 3 and back.values["loss"] != back.values["loss"]
