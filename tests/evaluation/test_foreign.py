"""Attacks that are not ours: how they are called, checked, and kept from harming the rest."""

from functools import partial

import pytest
import torch
from torch import nn

from advfast import PGDAttack
from advfast.evaluation import AttackFailed, EvalReport, evaluate

EPS = 0.1


def still(model, x, y):
    return x


def far(model, x, y, distance=2 * EPS):
    """Up by `distance`, which stays inside the box."""
    return x + distance


def test_results_outside_the_ball_are_flagged_and_counted_as_they_are(cnn):
    model, images, labels = cnn
    report = evaluate(model, (images, labels), attacks=["clean", far], eps=EPS)
    right = model.eval()(images).argmax(1) == labels
    moved = right & (model(images + 2 * EPS).argmax(1) == labels)
    assert report["far"].correct == int(moved.sum())
    (warning,) = report.warnings
    assert f"far: {int(right.sum())} results are outside the linf ball by up to 0.1 " in warning
    assert "largest distance 0.2)" in warning
    assert str(report).endswith(f"warning: {warning}")


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.8), ("l1", 6.4)])
def test_the_edge_of_the_ball(cnn, norm, eps):
    # Every pixel by 0.1: linf 0.1, l2 0.1 * sqrt(64), l1 0.1 * 64.
    model, images, labels = cnn
    inside = partial(far, distance=0.1 * (1 + 5e-5))
    outside = partial(far, distance=0.1 * (1 + 3e-4))
    attacks = {"inside": inside, "outside": outside}
    report = evaluate(model, (images, labels), attacks=attacks, eps=eps, norm=norm)
    assert [warning.split(":")[0] for warning in report.warnings] == ["outside"]


def test_pixels_outside_the_box_and_nan(cnn):
    model, images, labels = cnn

    def outside(model, x, y):
        x[0, 0, 0, 0] = 1.01
        return x

    def nan(model, x, y):
        x[:2] = torch.nan
        return x

    report = evaluate(model, (images, labels), attacks=["clean", outside, nan], eps=1.0)
    assert report.warnings[0].startswith("outside: 1 results have pixels outside [0, 1]")
    assert report.warnings[1].startswith("nan: 2 samples have NaN among their logits")
    assert report.warnings[2].startswith("nan: 2 results contain NaN or infinity")
    assert report["nan"].correct == report["clean"].correct - 2  # the images given were copies


def test_how_an_attack_is_called(cnn):
    model, images, labels = cnn
    model.train()
    seen = {}

    def attack(given, x, y):
        seen.update(
            model=given,
            training=given.training,
            grad=torch.is_grad_enabled(),
            inference=torch.is_inference_mode_enabled(),
        )
        x = x.requires_grad_()
        nn.functional.cross_entropy(given(x), y).backward()
        return x + EPS * x.grad.sign()

    with torch.inference_mode():
        report = evaluate(model, (images, labels), attacks=[attack], eps=EPS)
    assert seen == {"model": model, "training": False, "grad": True, "inference": False}
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    one_step = PGDAttack(model, EPS, EPS, 1, False)
    assert (
        report["attack"] == evaluate(model, (images, labels), attacks={"a": one_step}, eps=EPS)["a"]
    )


def test_what_an_attack_does_to_the_model_is_undone(cnn):
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.3), cnn[0])
    images, labels = cnn[1:]
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    expected = evaluate(model, (images, labels), eps=EPS)

    def rude(model, x, y):
        model.train()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        model(x).sum().backward()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        return x

    report = evaluate(
        model, (images, labels), attacks=["clean", rude, "pgd-20"], eps=EPS, batch_size=30
    )
    assert report["pgd-20"] == expected["pgd-20"]
    assert report["rude"] == report["clean"] == expected["clean"]
    assert report.warnings == ()
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert not frozen.requires_grad
    assert all((parameter.grad == 1).all() for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_writing_to_the_weights_is_reported(cnn):
    model, images, labels = cnn

    def writes(model, x, y):
        with torch.no_grad():
            model.linear2.bias.add_(0)
        return x

    report = evaluate(model, (images, labels), attacks=[writes], eps=EPS)
    assert (
        "writes: it wrote to the weights of the model (linear2.bias, 1 in all)"
        in report.warnings[0]
    )


def test_an_instance_of_pgd_attack(cnn):
    model, images, labels = cnn
    attack = PGDAttack(model, EPS, None, 5, seed=0)
    report = evaluate(model, (images, labels), attacks=["pgd-5", attack], eps=EPS, batch_size=20)
    assert report["PGDAttack-5"] == report["pgd-5"]
    assert report.attacks["PGDAttack-5"].startswith("PGDAttack(model=SmallCNN, eps=0.1")
    small = evaluate(model, (images, labels), attacks=[attack], eps=EPS / 2)
    assert "outside the linf ball" in small.warnings[0]


def test_names(cnn):
    model, images, labels = cnn

    class Kind:
        def __call__(self, model, x, y):
            return x

    attacks = ["clean", still, still, partial(still), Kind(), lambda m, x, y: x, "clean"]
    report = evaluate(model, (images, labels), attacks=attacks, eps=EPS)
    assert list(report) == ["clean", "still", "partial", "Kind", "attack"]
    report = evaluate(model, (images, labels), attacks=[partial(still), partial(still)], eps=EPS)
    assert list(report) == ["partial", "partial-2"]
    report = evaluate(model, (images, labels), attacks={"mine": still, "long": "pgd-30"}, eps=EPS)
    assert list(report) == ["mine", "long"]


def test_wrong_signatures_are_seen_before_any_work(cnn):
    model, images, labels = cnn
    attacked = []

    def first(model, x, y):
        attacked.append(x)
        return x

    def needs_eps(model, x, y, *, eps):
        return x

    for wrong in (lambda x, y: x, needs_eps):
        with pytest.raises(TypeError, match="callable as attack"):
            evaluate(model, (images, labels), attacks=[first, wrong], eps=EPS)
    assert attacked == []


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x: x[1:], r"must return images of shape \(\d+, 1, 8, 8\)"),
        (lambda x: [x], "must return a tensor of adversarial images, got list"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_failing_at_once_stops_at_once(cnn, result, message):
    model, images, labels = cnn
    model.train()
    batches = []

    def attack(model, x, y):
        batches.append(len(x))
        return result(x)

    with pytest.raises(AttackFailed, match=message) as caught:
        evaluate(model, (images, labels), attacks=["clean", attack], eps=EPS, batch_size=30)
    assert "attack 'attack', called as attack(model, images, labels)" in str(caught.value)
    assert caught.value.report is None
    assert len(batches) == 1
    assert model.training


def test_failing_later_loses_nothing(cnn, tmp_path):
    model, images, labels = cnn
    calls = []

    def attack(model, x, y):
        calls.append(len(x))
        if len(calls) == 2:
            raise RuntimeError("out of luck")
        return x

    expected = evaluate(model, (images, labels), eps=EPS)
    with pytest.raises(AttackFailed, match="RuntimeError: out of luck") as caught:
        evaluate(
            model,
            (images, labels),
            attacks=["clean", attack, "pgd-20"],
            eps=EPS,
            batch_size=30,
            out=tmp_path,
        )
    report = caught.value.report
    assert report.results == expected.results
    assert report.worst == expected["pgd-20"]
    assert report.errors == {"attack": "RuntimeError: out of luck"}
    assert len(calls) == 2
    with pytest.raises(KeyError, match="out of luck"):
        report["attack"]
    assert (
        "attack: no result: RuntimeError: out of luck" in (tmp_path / "evaluation.txt").read_text()
    )


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_what_was_done_before_an_interruption_is_written(cnn, tmp_path, kind):
    import json

    model, images, labels = cnn
    model.train()
    calls = []

    def forward(module, inputs):
        calls.append(1)
        if len(calls) == 60:
            raise kind("now")

    handle = model.register_forward_pre_hook(forward)
    with pytest.raises(kind):
        evaluate(model, (images, labels), eps=EPS, batch_size=30, out=tmp_path)
    handle.remove()
    assert model.training
    report = EvalReport.from_dict(json.loads((tmp_path / "evaluation.json").read_text()))
    assert report.samples == 60
    assert report.results == evaluate(model, (images[:60], labels[:60]), eps=EPS).results
    assert f"ended early ({kind.__name__} after 60 samples)" in report.warnings[0]
