"""Defences that only look robust: plain PGD believes them, the checks do not, and what the checks advise shows it.

Each test has the three parts. The numbers are of 200 digits; "a few points" is 5 of them.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import advfast
from advfast.attacks import APGD, Square
from advfast.attacks.sanity import compare, examine, sweep

from .defences import (
    EPS,
    MeanSparse,
    Ripple,
    Round,
    Saturated,
    Scale,
    Threshold,
    ThroughNumpy,
    accuracy,
    behind_saturated,
    digits,
    robust,
    undefended,
    with_bn,
)

FEW = 0.05
MUCH = 0.3
"""By which a masked gradient overstates the accuracy."""


def found(model, eps: float = EPS) -> dict:
    _, _, images, labels = digits()
    return {finding.code: finding for finding in examine(model, images, labels, eps=eps)}


def swept(model, **options) -> set[str]:
    _, _, images, labels = digits()
    found = sweep(model, images, labels, eps=EPS, samples=32, **options)
    return {finding.code for finding in found.findings}


@pytest.fixture(scope="module")
def truth() -> float:
    """Robust accuracy of the network without a defence."""
    assert not found(undefended()) and not swept(undefended())
    return robust(undefended())


def test_the_undefended_network_is_not_robust(truth):
    assert accuracy(undefended(), digits()[2]) > 0.95 and truth < 0.55


@pytest.mark.parametrize("levels", (8, 17))
def test_quantised_input(truth, levels):
    model = nn.Sequential(Round(levels), undefended())
    assert robust(model) > truth + MUCH
    codes = found(model)
    assert {"quantised", "zero-gradient"} <= codes.keys()
    assert "bpda" in codes["quantised"].advice and codes["zero-gradient"].values["loss"] == "all"
    assert {"eps-flat", "steps-flat"} <= swept(model)

    through = nn.Sequential(advfast.bpda(Round(levels)), undefended())
    assert robust(through) < truth + FEW
    again = found(through)
    assert "zero-gradient" not in again and "quantised" in again
    assert not swept(through)


def test_an_eps_below_half_a_step(truth):
    """Nothing within eps passes the rounding: only a larger one shows how little is behind it."""
    model = nn.Sequential(advfast.bpda(Round(17)), undefended())
    assert robust(model, eps=0.03) == accuracy(model, digits()[2])
    finding = found(model, eps=0.03)["quantised"]
    assert "no change within eps is seen" in finding.message and "larger one" in finding.advice
    assert finding.values["changed_by"] > 0.03 > finding.values["unchanged_by"]
    assert "no change within eps" not in found(model, eps=0.1)["quantised"].message

    assert robust(model, eps=0.1) < truth + FEW


def test_temperature(truth):
    """The softmax of CE is saturated; DLR does not see the scale."""
    model = nn.Sequential(undefended(), Scale(1000.0))
    assert robust(model) > truth + MUCH
    codes = found(model)
    assert codes.keys() == {"zero-gradient"}
    assert codes["zero-gradient"].values["loss"] == "ce" and "dlr" in codes["zero-gradient"].advice
    assert "eps-flat" in swept(model)

    assert robust(model, loss="dlr") < truth + FEW
    assert not swept(model, loss="dlr")


def _inside(step: nn.Module, *, relu: bool) -> nn.Sequential:
    """The network with a step on its features, in the place of ReLU or before it."""
    flat, first, activation, last = undefended()
    return nn.Sequential(flat, first, step, *([activation] if relu else []), last)


def test_thresholded_activations(truth):
    step = Threshold(0.5)
    model = _inside(step, relu=False)
    assert accuracy(model, digits()[2]) > 0.9
    assert robust(model) > truth + MUCH
    assert "zero-gradient" in found(model)
    assert {"eps-flat", "steps-flat"} <= swept(model)

    through = _inside(advfast.bpda(step, backward=F.relu), relu=False)
    assert robust(through) < truth + FEW
    assert "zero-gradient" not in found(through) and not swept(through)


def test_mean_sparse(truth):
    """It leaves the gradient of what is far from the mean, which is enough: nothing is masked and nothing is said."""
    flat, first, _, _ = undefended()
    features = first(flat(digits()[0]))
    step = MeanSparse(features.mean(0), 0.5 * features.std(0))
    model, through = _inside(step, relu=True), _inside(advfast.bpda(step), relu=True)
    assert accuracy(model, digits()[2]) > 0.95
    assert abs(robust(model) - truth) < FEW and abs(robust(through) - truth) < FEW
    assert not found(model) and not swept(model)
    # Far wider, so that most is masked.
    wide = MeanSparse(features.mean(0), 2 * features.std(0))
    assert "zero-gradient" in found(_inside(wide, relu=True))


def test_random_layer(truth):
    """One gradient has nearly random signs, their mean over passes the right ones."""
    model = nn.Sequential(Ripple(), undefended())
    naive = robust(model, passes=20)
    assert naive > truth + MUCH
    codes = found(model)
    assert "randomised" in codes and "EoT" in codes["randomised"].advice
    assert codes["randomised"].values["torch_generator"] == 1

    averaged = robust(model, passes=20, eot=20)
    assert averaged < naive - MUCH
    assert robust(model, passes=20, eot=50) < truth + FEW


def test_batch_norm_in_train_mode():
    """Crafted with the batch's statistics, an attack is weaker against the network that is deployed."""
    model = copy.deepcopy(with_bn())
    truth = robust(model)
    model.train()
    before = copy.deepcopy(model.state_dict())
    codes = found(model)
    assert codes.keys() == {"train-mode"} and "eval()" in codes["train-mode"].advice
    assert codes["train-mode"].values["batch_norms"] == 2
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    crafted = _in_batches(model, bn="train")
    model.eval()
    assert accuracy(model, crafted) > truth + 0.03
    assert not found(model)
    assert robust(model) == truth


def _in_batches(model, **options):
    """Adversarial images, crafted four by four."""
    _, _, images, labels = digits()
    attack = advfast.PGDAttack(model, EPS, EPS / 4, 10, seed=0, **options)
    return torch.cat([attack(*pair) for pair in zip(images.split(4), labels.split(4), strict=True)])


def test_batch_statistics_that_stay():
    """Without running statistics eval mode does not help: an attack on one batch is none on another."""
    model = copy.deepcopy(with_bn())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    codes = found(model)
    assert codes.keys() == {"batch-dependent"} and codes["batch-dependent"].values["layers"] == 2

    crafted = _in_batches(model)
    labels = digits()[3]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))

    def right(rows):
        logits = torch.cat([model(crafted[part]) for part in rows.split(4)])
        return float((logits.argmax(1) == labels[rows]).double().mean())

    assert right(order) > right(torch.arange(len(labels))) + 0.02
    assert right(order) > robust(with_bn()) + 0.02  # the advice: with running statistics


def test_detached_gradient(truth):
    model = nn.Sequential(ThroughNumpy(), undefended())
    with pytest.raises(RuntimeError, match="no gradient"):
        robust(model)
    codes = found(model)
    assert codes.keys() == {"no-gradient"} and "bpda" in codes["no-gradient"].advice
    assert {"no-gradient", "eps-flat"} <= swept(model)
    assert robust(model, steps=0) > truth + MUCH  # what is left to do without a gradient

    through = nn.Sequential(advfast.bpda(ThroughNumpy()), undefended())
    assert robust(through) == truth
    assert not found(through)


def test_saturated_preprocessing():
    model = behind_saturated()
    naive = robust(model)
    assert {"quantised", "misleading-gradient", "zero-gradient"} & found(model).keys()
    assert "eps-flat" in swept(model)

    through = nn.Sequential(advfast.bpda(Saturated()), *model[1:])
    assert robust(through) < naive - 0.05
    assert not swept(through)


def searched(attack) -> float:
    """Accuracy under an attack of its own."""
    _, _, images, labels = digits()
    return accuracy(attack.model, attack(images, labels))


def test_square_sees_no_mask(truth):
    """It asks for logits alone, and so does better than APGD where the gradient is masked, and not where it is not."""
    masked = nn.Sequential(Round(8), undefended())
    alone = {
        "clean": accuracy(masked, digits()[2]),
        "apgd-ce": searched(APGD(masked, EPS, steps=10)),
        "square": searched(Square(masked, EPS, queries=300)),
    }
    assert alone["apgd-ce"] > truth + MUCH and alone["square"] < alone["apgd-ce"] - MUCH
    assert [finding.code for finding in compare({}, alone)] == ["black-box-stronger"]
    assert [finding.code for finding in compare(alone)] == ["square-wins"]

    plain = undefended()
    alone = {
        "apgd-ce": searched(APGD(plain, EPS, steps=10)),
        "square": searched(Square(plain, EPS, queries=300)),
    }
    assert alone["apgd-ce"] < truth + FEW < alone["square"] and not compare({}, alone)


def test_apgd_through_a_small_temperature(truth):
    cold = nn.Sequential(undefended(), Scale(1000.0))
    assert searched(APGD(cold, EPS, steps=10)) > truth + MUCH
    assert searched(APGD(cold, EPS, steps=20, loss="dlr")) < truth + FEW
