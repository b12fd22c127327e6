"""AutoAttack on linear models, where the robust accuracy has a closed form."""

import pytest
import torch
from torch import nn

import advfast
from advfast.attacks.autoattack.versions import cost, part_settings

from .linear_models import digits, margins, trained

CLOSE = 2e-6
"""Margins that float32 cannot tell from 0."""


def evaluated(model, x, y, norm="Linf", eps=0.1, queries=100, **settings):
    run = advfast.AutoAttack(model, norm, eps, verbose=False, **settings)
    run.square.n_queries = queries
    run.run_standard_evaluation(x, y)
    return run.result


@pytest.fixture(scope="module")
def ten():
    x, y = digits()
    return trained(x[:1397], y[:1397], 10, 0.1), x[1397:1597], y[1397:1597]


@pytest.mark.parametrize("rng", ["philox", "upstream"])
def test_linf_of_ten_classes_is_exact(ten, rng):
    model, x, y = ten
    n = 200 if rng == "philox" else 50
    margin = margins(model, x[:n], y[:n], 0.1)
    assert margin.abs().min() > CLOSE
    result = evaluated(model, x[:n], y[:n], rng=rng, fold=rng == "philox")
    assert torch.equal(result.robust, margin > 0)
    assert 0.4 < result.robust_accuracy < 0.8 < result.accuracies["clean"]
    pgd = advfast.evaluate(model, (x[:n], y[:n]), attacks=("pgd-20",), eps=0.1)
    assert pgd.results["pgd-20"].correct >= int(result.robust.sum())
    assert (result.images - x[:n]).abs().max() <= 0.1 + 1e-6
    assert result.images.min() >= 0 and result.images.max() <= 1
    assert torch.equal(model(result.images).argmax(1) == y[:n], result.robust)


@pytest.mark.parametrize("eps", [0.05, 0.14])
def test_linf_of_two_classes_is_exact(eps):
    x, y = digits(classes=2)
    model = trained(x[:1397], y[:1397], 2, eps)
    x, y = x[1397:1597], y[1397:1597]
    margin = margins(model, x, y, eps)
    assert margin.abs().min() > CLOSE
    result = evaluated(model, x, y, eps=eps)
    assert torch.equal(result.robust, margin > 0) and 0.1 < result.robust_accuracy < 0.9
    assert len(result.notes) == 2 and "1 beside the right one" in result.notes[0]


def test_l2_and_l1_where_the_box_is_out_of_reach_are_exact():
    for norm, eps, low, high in (("l2", 0.2, 0.3, 0.7), ("l1", 0.2, 0.4, 0.6)):
        x, y = digits(low=low, high=high)
        model = trained(x[:1397], y[:1397], 10, eps, "l2", steps=300)
        x, y = x[1397:1447], y[1397:1447]
        margin = margins(model, x, y, eps, norm)
        result = evaluated(model, x, y, norm, eps, queries=20)
        assert torch.equal(result.robust, margin > 0), norm
        assert 0.2 < result.robust_accuracy < 0.9
        length = (result.images - x).flatten(1).norm(p=int(norm[1]), dim=1)
        assert length.max() <= eps * (1 + 1e-5)


def test_more_eps_is_less_robust(ten):
    model, x, y = (part[:30] if isinstance(part, torch.Tensor) else part for part in ten)
    before, counts = None, []
    for eps in (0.0, 0.03, 0.1, 0.2):
        robust = evaluated(model, x, y, eps=eps, queries=20).robust
        assert before is None or not (robust & ~before).any()
        before = robust
        counts.append(int(robust.sum()))
    assert counts[0] > counts[2] > counts[3]


def test_no_part_alone_is_stronger(ten):
    model, x, y = (part[:30] if isinstance(part, torch.Tensor) else part for part in ten)
    run = advfast.AutoAttack(model, eps=0.1, verbose=False)
    run.square.n_queries = 100
    run.run_standard_evaluation(x, y)
    together = run.result.robust
    run.run_standard_evaluation_individual(x, y)
    assert list(run.results) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    for result in run.results.values():
        assert not (together & ~result.robust).any()


class Rescaled(nn.Module):
    def __init__(self, model, scale, shift):
        super().__init__()
        self.model, self.scale, self.shift = model, scale, shift

    def forward(self, x):
        return self.scale * self.model(x) + self.shift


def test_dlr_sees_neither_scale_nor_shift_of_the_logits(ten):
    model, x, y = (part[:30] if isinstance(part, torch.Tensor) else part for part in ten)
    for attacks in (["apgd-dlr"], ["apgd-t"]):
        found = []
        for scale, shift in ((1.0, 0.0), (64.0, 0.0), (0.5, 3.0)):
            run = advfast.AutoAttack(
                Rescaled(model, scale, shift), eps=0.1, version="custom", attacks_to_run=attacks,
                verbose=False,
            )  # fmt: skip
            run.apgd.restarts = 1
            run.run_standard_evaluation(x, y)
            found.append(run.result.robust)
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
        assert 0 < found[0].sum() < len(y)


def test_the_cost_of_a_robust_sample_is_what_it_is_said_to_be(ten):
    """Where nothing breaks, every sample goes through everything; without `fold`, Square asks one query at a time."""
    model, x, y = ten
    right = model(x).argmax(1) == y
    x, y = x[right][:6], y[right][:6]
    for version, norm in (
        ("standard", "linf"),
        ("plus", "linf"),
        ("rand", "l2"),
        ("standard", "l1"),
    ):
        run = advfast.AutoAttack(model, norm, 1e-6, version=version, fold=False, verbose=False)
        run.square.n_queries = 30
        for part in (run.apgd, run.apgd_targeted, run.fab):
            part.steps = 12
        run.run_standard_evaluation(x, y)
        result = run.result
        assert result.robust_accuracy == 1
        for name, passes in result.forwards.items():
            if name != "clean":
                settings = part_settings(name, run.knobs)
                expected = cost(name, settings, 10)
                if name.startswith("fab"):
                    assert expected[0] / 2 <= passes / 6 <= 1.5 * expected[0]
                else:
                    assert (passes, result.backwards[name]) == (6 * expected[0], 6 * expected[1])
        forwards = sum(n for name, n in result.forwards.items() if name != "clean")
        assert result.cost == (round(forwards / 6), round(sum(result.backwards.values()) / 6))
