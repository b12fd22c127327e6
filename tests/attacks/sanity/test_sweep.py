"""PGD against its radius and its steps: the curves, and what is read from them."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

import advfast
from advfast.attacks.sanity import Sweep, sweep
from advfast.attacks.sanity.sweep import findings

from ..masking.defences import accuracy, adversarially_trained, digits, undefended


def test_curves_are_those_of_the_attack():
    """Each point is a PGD of its own; checked against separate calls."""
    _, _, images, labels = digits()
    model = undefended()
    found = sweep(model, images, labels, eps=0.1, samples=40, seed=3)
    right = (model(images).argmax(1) == labels).nonzero()[:40, 0]
    x, y = images[right], labels[right]

    def by_hand(eps, alpha, steps):
        adversarial = advfast.PGDAttack(model, eps, alpha, steps, seed=3)(x, y)
        logits = model(adversarial)
        loss = nn.functional.cross_entropy(logits.double(), y)
        return float((logits.argmax(1) == y).double().mean()), float(loss)

    assert found.samples == 40 and found.steps == [1, 2, 5, 10, 20, 50]
    assert found.eps == pytest.approx([0, 0.025, 0.05, 0.1, 0.2, 0.4])
    assert found.accuracy[0] == 1.0 and found.accuracy[2] == by_hand(0.05, 0.0125, 20)[0]
    for index, (steps, alpha) in enumerate([(1, 0.1), (2, 0.1), (5, 0.05), (10, 0.025)]):
        expected = by_hand(0.1, alpha, steps)
        assert found.step_accuracy[index] == expected[0]
        assert found.step_loss[index] == pytest.approx(expected[1])
    assert found.start_loss == pytest.approx(by_hand(0.1, 0.025, 0)[1])
    assert (found.widest_eps, found.widest_accuracy) == (1.0, 0.0)
    assert not found.findings


def test_leaves_everything_as_it_was():
    _, _, images, labels = digits()
    model = copy.deepcopy(undefended()).train()
    state, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    one = sweep(model, images, labels, eps=0.1, samples=10)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert sweep(model, images, labels, eps=0.1, samples=10) == one


@pytest.mark.parametrize(
    ("norm", "eps", "widest"), [("linf", 0.3, 1.0), ("l2", 1.0, 8.0), ("l1", 4.0, 64.0)]
)
def test_norms(norm, eps, widest):
    _, _, images, labels = digits()
    found = sweep(adversarially_trained(), images, labels, eps=eps, norm=norm, samples=16)
    assert found.widest_eps == widest and found.widest_accuracy == 0
    assert max(found.eps) == (1.0 if norm == "linf" else 4 * eps)
    assert not found.findings


def test_nothing_to_attack():
    _, _, images, labels = digits()
    wrong = sweep(undefended(), images, (labels + 1) % 10, eps=0.1)
    # A few digits are taken for the next one.
    assert wrong.samples == int((undefended()(images).argmax(1) == (labels + 1) % 10).sum())
    none = sweep(undefended(), images[:0], labels[:0], eps=0.1)
    assert none.samples == 0 and none.accuracy == [0.0] and not none.findings
    zero = sweep(undefended(), images, labels, eps=0.0)
    assert zero.eps == [0.0] and zero.accuracy == [1.0] and zero.steps == []


def test_tiny_eps_is_no_reason_to_doubt():
    _, _, images, labels = digits()
    assert not sweep(undefended(), images, labels, eps=1e-4, samples=32).findings


def test_float64_and_16_bits():
    _, _, images, labels = digits()
    for dtype in (torch.float64, torch.bfloat16):
        found = sweep(copy.deepcopy(undefended()).to(dtype), images, labels, eps=0.1, samples=32)
        assert found.samples == 32 and not found.findings
        assert found.step_accuracy[-1] < 0.8


def test_bad_arguments():
    _, _, images, labels = digits()
    for change, said in (
        ({"eps": -1.0}, "eps must be"),
        ({"norm": "l3"}, "norm"),
        ({"samples": 0}, "samples must be an integer >= 1"),
        ({"loss": "kl"}, "loss must be one of ce, margin, dlr"),
    ):
        with pytest.raises(ValueError, match=said):
            sweep(undefended(), images, labels, **{"eps": 0.1, **change})
    with pytest.raises(TypeError, match="callable"):
        sweep(3, images, labels, eps=0.1)


HEALTHY = Sweep(
    [0.0, 0.1, 0.2], [1.0, 0.5, 0.0], [1, 20, 50], [0.6, 0.5, 0.5], [1.0, 1.5, 1.6], 128,
    (), 1.0, 0.0, 0.2,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"accuracy": [1.0, 1.0, 1.0]}, []),  # the radius may be small: nothing is flat by that alone
        ({"widest_accuracy": 0.06}, ["eps-flat"]),
        ({"widest_accuracy": 0.05}, []),
        ({"accuracy": [1.0, 0.5, 0.53]}, ["eps-flat"]),
        ({"accuracy": [1.0, 0.5, 0.51]}, []),
        ({"step_loss": [0.2, 0.2, 0.2]}, ["steps-flat"]),
        ({"step_loss": [1.0, 1.5, 1.3]}, ["loss-not-rising"]),
        ({"step_loss": [1.0, 1.5, 1.45]}, []),
        ({"step_accuracy": [0.4, 0.5, 0.5]}, ["single-step-stronger"]),
        ({"step_accuracy": [0.49, 0.5, 0.5]}, []),
        # DLR is below 0 where it has not succeeded.
        ({"step_loss": [-0.5, -0.3, -0.2], "start_loss": -0.9}, []),
        ({"step_loss": [-0.9, -0.9, -0.9], "start_loss": -0.9}, ["steps-flat"]),
    ],
)  # fmt: skip
def test_findings_of_curves(changes, said):
    found = list(findings(dataclasses.replace(HEALTHY, **changes)))
    assert [finding.code for finding in found] == said
    assert all(finding.advice and finding.values for finding in found)


def test_where_the_networks_stand():
    """So that the tests above are of networks that were worth it."""
    _, _, images, _ = digits()
    assert accuracy(adversarially_trained(), images) > 0.9
