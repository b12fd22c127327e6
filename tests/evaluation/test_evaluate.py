import json

import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from advfast.evaluation import Accuracy, evaluate

EPS = 0.1


@pytest.fixture
def linear():
    """A two-class linear model, images away from the edge of the box, and each image's exact margin."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    images = 0.3 + 0.4 * torch.rand(200, 3, 2, 2)
    with torch.no_grad():
        model[1].bias -= model(images).mean(0)
        logits = model(images)
    labels = torch.randint(0, 2, (200,))
    margin = (logits.gather(1, labels[:, None]) - logits.gather(1, 1 - labels[:, None]))[:, 0]
    return model, images, labels, margin


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_accuracy_of_a_linear_model_is_exact(linear, norm):
    # A linear margin falls by eps times the dual norm of w0 - w1, which PGD reaches exactly (l2: almost).
    model, images, labels, margin = linear
    weights = model[1].weight[0] - model[1].weight[1]
    reach = EPS * weights.norm(p=1 if norm == "linf" else 2).item()
    assert ((margin - reach).abs() > 1e-4).all()  # no sample on the edge
    report = evaluate(model, (images, labels), eps=EPS, norm=norm)
    assert report["clean"].correct == int((margin > 0).sum())
    assert report["pgd-20"].correct == int((margin > reach).sum())
    assert 0 < report["pgd-20"].correct < report["clean"].correct
    assert report["clean"].total == 200


def test_result_does_not_depend_on_batch_size(linear):
    model, images, labels, _ = linear
    seen = []

    def record(module, inputs):
        if not torch.is_grad_enabled():
            seen.append(inputs[0])

    handle = model.register_forward_pre_hook(record)
    attacked = []
    for size in (200, 7):
        seen.clear()
        evaluate(model, (images, labels), attacks=("pgd-1",), eps=EPS, batch_size=size)
        attacked.append(torch.cat(seen))
    handle.remove()
    # After one step the random start still shows.
    assert ((attacked[0] - images).abs() < 0.9 * EPS).any()
    assert torch.equal(attacked[0], attacked[1])


def test_model_is_left_as_it_was():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(72, 2)
    )
    model.train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, (torch.rand(9, 1, 8, 8), torch.arange(9) % 2), eps=EPS)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_dropout_and_batch_norm_are_in_eval_mode():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(0.9), nn.Linear(4, 2))
    data = (torch.rand(24, 1, 2, 2), torch.arange(24) % 2)
    first = evaluate(model, data, attacks=("clean", "pgd-3"), eps=EPS)
    second = evaluate(model, data, attacks=("clean", "pgd-3"), eps=EPS, batch_size=1)
    assert {name: first[name] for name in first} == {name: second[name] for name in second}


@pytest.mark.parametrize("name", ["pgd", "pgd-0", "pgd-x", "pgd20", "fgsm", "PGD-20", 3, "pgd-20 "])
def test_unknown_attack(linear, name):
    model, images, labels, _ = linear
    with pytest.raises(ValueError, match="'clean' or 'pgd-K'"):
        evaluate(model, (images, labels), attacks=(name,))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"attacks": ()}, "at least one"),
        ({"batch_size": 0}, "batch_size"),
        ({"eps": -1}, "eps"),
        ({"norm": "l3"}, "norm"),
    ],
)
def test_bad_arguments(linear, kwargs, message):
    model, images, labels, _ = linear
    with pytest.raises(ValueError, match=message):
        evaluate(model, (images, labels), **kwargs)


@pytest.mark.parametrize(("correct", "total"), [(8, 10), (0, 20), (1, 3), (500, 500), (823, 1000)])
def test_wilson_interval(correct, total):
    expected = binomtest(correct, total).proportion_ci(method="wilson")
    assert Accuracy(correct, total).interval == pytest.approx(tuple(expected), abs=1e-9)


def test_report_is_readable_and_json(linear):
    model, images, labels, _ = linear
    report = evaluate(model, (images, labels), attacks=("clean", "pgd-3"), eps=EPS)
    assert list(report) == ["clean", "pgd-3"]
    text = str(report)
    assert text.count("\n") == 1
    assert f"{100 * report['clean'].value:.1f} %" in text
    content = json.loads(json.dumps(report.to_dict()))
    assert content["results"]["pgd-3"]["correct"] == report["pgd-3"].correct
    assert content["eps"] == EPS
