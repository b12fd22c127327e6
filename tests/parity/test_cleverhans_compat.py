"""advfast.compat.cleverhans against cleverhans itself: results, draws, errors."""

import importlib.util
import math

import pytest
import torch
from torch import nn

from advfast.compat import cleverhans as ours

from ..attacks.networks import batch, cnn, mlp

if importlib.util.find_spec("cleverhans") is None:
    pytest.skip("cleverhans is not installed here", allow_module_level=True)

from cleverhans.torch import utils
from cleverhans.torch.attacks.fast_gradient_method import fast_gradient_method as their_fgm
from cleverhans.torch.attacks.projected_gradient_descent import (
    projected_gradient_descent as their_pgd,
)

EPS = {math.inf: 8 / 255, 2: 0.5, 1: 4.0}
CLIPS = [(0.0, 1.0), (None, None), (-0.5, 1.25)]


def confident_cnn() -> nn.Module:
    net = cnn()
    with torch.no_grad():
        net[-1].weight.mul_(4)
    return net


def gap(norm) -> float:
    return 0.0 if norm == math.inf else 1e-6


@pytest.mark.parametrize("clips", CLIPS)
@pytest.mark.parametrize("norm", [math.inf, 2, 1])
def test_fast_gradient_method(norm, clips):
    net, (images, labels) = confident_cnn(), batch(16)
    targets = (labels + 1) % 10
    for keywords in ({}, {"y": labels}, {"y": targets, "targeted": True}):
        expected = their_fgm(net, images, EPS[norm], norm, *clips, **keywords)
        found = ours.fast_gradient_method(
            net, images, EPS[norm], norm, *clips, **keywords, fold=False
        )
        assert (found - expected).abs().max() <= gap(norm)
        fast = ours.fast_gradient_method(net, images, EPS[norm], norm, *clips, **keywords)
        assert ((fast - expected).abs() < 1e-5).float().mean() > 0.998
        assert not torch.equal(found, images)


@pytest.mark.parametrize("clips", CLIPS)
@pytest.mark.parametrize("norm", [math.inf, 2])
def test_projected_gradient_descent_from_the_same_seed(norm, clips):
    net, (images, labels) = confident_cnn(), batch(16)
    eps = EPS[norm]
    for keywords in (
        {},
        {"y": labels},
        {"rand_init": False},
        {"y": (labels + 1) % 10, "targeted": True},
        {"rand_minmax": eps / 3},
        {"rand_minmax": 3 * eps, "sanity_checks": False},
        {"nb_iter": 0},
    ):
        keywords = {"nb_iter": 7, **keywords}
        results = []
        for attack, extra in ((their_pgd, {}), (ours.projected_gradient_descent, {"fold": False})):
            torch.manual_seed(5)
            results.append(
                attack(net, images, eps, eps / 4, keywords["nb_iter"], norm, *clips,
                       **{k: v for k, v in keywords.items() if k != "nb_iter"}, **extra)
            )  # fmt: skip
        assert (results[0] - results[1]).abs().max() <= gap(norm)
        torch.manual_seed(5)
        fast = ours.projected_gradient_descent(
            net, images, eps, eps / 4, norm=norm, clip_min=clips[0], clip_max=clips[1], **keywords
        )
        assert ((fast - results[0]).abs() < 1e-5).float().mean() > 0.998
    assert (results[1] - images).abs().max() > 0.01


def test_without_sanity_checks_inputs_may_lie_outside_the_bounds():
    net, (images, labels) = cnn(), batch(8)
    images = images * 1.2 - 0.1
    keywords = {"clip_min": 0.0, "clip_max": 1.0, "y": labels, "sanity_checks": False}
    for norm in (math.inf, 2):
        expected = their_fgm(net, images, EPS[norm], norm, **keywords)
        found = ours.fast_gradient_method(net, images, EPS[norm], norm, **keywords, fold=False)
        assert (found - expected).abs().max() <= 1e-6
    expected = their_pgd(net, images, 0.03, 0.01, 5, math.inf, rand_init=False, **keywords)
    found = ours.projected_gradient_descent(
        net, images, 0.03, 0.01, 5, math.inf, rand_init=False, **keywords, fold=False
    )
    assert (found - expected).abs().max() <= 1e-6
    assert images.min() < 0 and found.min() == 0 and found.max() == 1


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_any_callable_in_the_mode_it_is_in(mode):
    images, labels = batch(16)
    net = cnn(dropout=0.0)
    getattr(net, mode)()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    # Ours first: cleverhans moves the running statistics and writes .grad.
    results = [
        ours.projected_gradient_descent(
            model, images, 0.03, 0.01, 5, math.inf, 0, 1, labels, rand_init=False, fold=False
        )
        for model in (net, *([lambda x: net(x)] if mode == "eval" else []))
    ]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(part.training == (mode == "train") for part in net.modules())
    assert all(weight.grad is None for weight in net.parameters())
    expected = their_pgd(net, images, 0.03, 0.01, 5, math.inf, 0, 1, labels, rand_init=False)
    assert all(torch.equal(found, expected) for found in results)


def test_flat_inputs_and_soft_labels():
    torch.manual_seed(1)
    net, x = mlp(), torch.randn(12, 20)
    for norm in (math.inf, 2):
        expected = their_pgd(net, x, 0.3, 0.05, 10, norm, rand_init=False)
        found = ours.projected_gradient_descent(
            net, x, 0.3, 0.05, 10, norm, rand_init=False, fold=False
        )
        assert (found - expected).abs().max() <= gap(norm)
    soft = torch.softmax(torch.randn(12, 4), 1)
    for norm in (math.inf, 1):
        expected = their_fgm(net, x, 0.3, norm, y=soft)
        found = ours.fast_gradient_method(net, x, 0.3, norm, y=soft, fold=False)
        assert (found - expected).abs().max() <= 1e-6


def test_small_functions():
    torch.manual_seed(2)
    gradient = torch.randn(20, 3, 4, 4)
    gradient[3] = 0.0
    gradient[4, 0, 0, :2] = torch.tensor([50.0, -50.0])  # a tie
    for eps in (0.0, 0.1, 3.0):
        for norm in (math.inf, 2, 1):
            rows = slice(None) if norm != 1 else [i for i in range(20) if i != 3]
            expected = utils.optimize_linear(gradient[rows], eps, norm)
            assert torch.allclose(ours.optimize_linear(gradient[rows], eps, norm), expected)
        assert torch.equal(ours.optimize_linear(gradient[3:4], eps, 1), torch.zeros(1, 3, 4, 4))
        for norm in (math.inf, 2):
            given = gradient.clone()
            assert torch.allclose(
                ours.clip_eta(given, norm, eps), utils.clip_eta(gradient.clone(), norm, eps)
            )
            assert torch.equal(given, gradient)


def _pgd(attack, **changed):
    settings = {"eps": 0.1, "eps_iter": 0.05, "nb_iter": 1, "norm": math.inf, **changed}
    net, (images, labels) = cnn(), batch(4)
    images = settings.pop("x", images)
    return attack(net, images, y=settings.pop("y", labels), **settings)


def _fgm(attack, **changed):
    settings = {"eps": 0.1, "norm": math.inf, **changed}
    net, (images, labels) = cnn(), batch(4)
    images = settings.pop("x", images)
    return attack(net, images, y=labels, **settings)


BOX = {"clip_min": 0.0, "clip_max": 1.0}
CALLS = {
    "pgd norm 1": (_pgd, {"norm": 1}),
    "pgd norm 1 before eps": (_pgd, {"norm": 1, "eps": -1}),
    "pgd norm 3": (_pgd, {"norm": 3}),
    "pgd norm by name": (_pgd, {"norm": "linf"}),
    "pgd eps": (_pgd, {"eps": -0.1}),
    "pgd eps_iter": (_pgd, {"eps_iter": -0.1}),
    "pgd eps_iter above eps": (_pgd, {"eps_iter": 0.2}),
    "pgd clips": (_pgd, {"clip_min": 1.0, "clip_max": 0.0}),
    "pgd one clip": (_pgd, {"clip_min": 0.0, "sanity_checks": False}),
    "pgd other clip": (_pgd, {"clip_max": 1.0}),
    "pgd below": (_pgd, {"x": torch.rand(4, 3, 12, 12) - 1, **BOX}),
    "pgd above": (_pgd, {"x": torch.rand(4, 3, 12, 12) + 1, "norm": 2, **BOX}),
    "pgd eps larger than the box": (_pgd, {"eps": 1.5, **BOX}),
    "pgd eps_iter twice": (_pgd, {"alpha": 0.1}),
    "fgm norm 3": (_fgm, {"norm": 3}),
    "fgm norm 0": (_fgm, {"norm": 0}),
    "fgm eps": (_fgm, {"eps": -0.1}),
    "fgm clips": (_fgm, {"clip_min": 1.0, "clip_max": 0.0}),
    "fgm one clip": (_fgm, {"clip_max": 1.0}),
    "fgm below": (
        _fgm, {"x": torch.rand(4, 3, 12, 12) - 1, "sanity_checks": True, **BOX},
    ),
    "clip_eta norm 1": (lambda f, **_: f(torch.ones(2, 3), 1, 0.5), None),
    "clip_eta norm 3": (lambda f, **_: f(torch.ones(2, 3), 3, 0.5), None),
    "optimize_linear norm 3": (lambda f, **_: f(torch.ones(2, 3), 0.5, 3), None),
}  # fmt: skip
FUNCTIONS = {
    "pgd": (their_pgd, ours.projected_gradient_descent),
    "fgm": (their_fgm, ours.fast_gradient_method),
    "clip_eta": (utils.clip_eta, ours.clip_eta),
    "optimize_linear": (utils.optimize_linear, ours.optimize_linear),
}


@pytest.mark.parametrize("case", CALLS)
def test_the_same_type_of_error(case):
    call, changed = CALLS[case]
    kinds = []
    for function in FUNCTIONS[case.split()[0]]:
        with pytest.raises(Exception) as caught:
            call(function, **(changed or {}))
        kinds.append(caught.type)
    assert kinds[0] is kinds[1]


def test_no_work_returns_the_input_itself():
    for call, changed, pair in (
        (_pgd, {"eps": 0}, FUNCTIONS["pgd"]),
        (_pgd, {"eps_iter": 0}, FUNCTIONS["pgd"]),
        (_fgm, {"eps": 0}, FUNCTIONS["fgm"]),
    ):
        images = batch(4)[0]
        for function in pair:
            assert call(function, x=images, **changed) is images


def test_types_that_cleverhans_does_not_take():
    net, (images, labels) = cnn().double(), batch(8)
    with pytest.raises(RuntimeError):
        their_pgd(net, images.double(), 0.03, 0.01, 3, math.inf, 0, 1, labels)
    found = ours.projected_gradient_descent(
        net, images.double(), 0.03, 0.01, 3, math.inf, 0, 1, labels
    )
    assert found.dtype == torch.float64 and not found.requires_grad
    assert their_fgm(cnn(), images, 0.03, math.inf).requires_grad  # a graph that nobody asked for
