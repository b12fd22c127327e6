"""advfast.compat.cleverhans by itself; tests/parity compares it with cleverhans."""

import math

import hypothesis
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from advfast import PGDAttack
from advfast.compat.cleverhans import (
    clip_eta,
    fast_gradient_method,
    optimize_linear,
    projected_gradient_descent,
)

from ..attacks.networks import batch, cnn, mlp, plain_pgd


def test_as_the_tutorial_calls_it():
    net, (x, _) = cnn(), batch(16)
    x_fgm = fast_gradient_method(net, x, 0.3, np.inf)
    x_pgd = projected_gradient_descent(net, x, 0.3, 0.01, 40, np.inf)
    for found in (x_fgm, x_pgd):
        assert found.shape == x.shape and not found.requires_grad
        # Numbers outside [0, 1] too: without clip_min and clip_max there are no bounds.
        assert (found.double() - x.double()).abs().max() <= 0.3 + 1e-7
        assert found.min() < 0 and found.max() > 1
    before = net(x).argmax(1)
    assert (net(x_pgd).argmax(1) != before).float().mean() > 0.9


@pytest.mark.parametrize("order", ["ball-box", "box-ball-box"])
def test_l2_clips_inside_the_step(order):
    net, (x, y) = cnn(), batch(16)
    expected = plain_pgd(net, x, y, 1.5, 0.5, 8, norm="l2", order=order)
    found = projected_gradient_descent(
        net, x, 1.5, 0.5, 8, 2, 0.0, 1.0, y, rand_init=False, fold=False
    )
    assert ((found - expected).abs().max() < 1e-5).item() == (order == "box-ball-box")


def test_linf_is_pgd_by_hand():
    net, (x, y) = cnn(), batch(16)
    for targeted in (False, True):
        found = projected_gradient_descent(
            net, x, 0.05, 0.02, 6, math.inf, 0.0, 1.0, y, targeted, False, fold=False
        )
        assert torch.equal(found, plain_pgd(net, x, y, 0.05, 0.02, 6, targeted=targeted))
    found = fast_gradient_method(net, x, 0.05, math.inf, 0.0, 1.0, y, fold=False)
    assert torch.equal(found, plain_pgd(net, x, y, 0.05, 0.05, 1))


def test_predictions_stand_for_missing_labels():
    net, (x, _) = cnn(), batch(16)
    y = net(x).argmax(1)
    for norm in (math.inf, 2, 1):
        a, b = (fast_gradient_method(net, x, 0.1, norm, y=labels) for labels in (None, y))
        assert torch.equal(a, b)
    for targeted in (False, True):
        a, b = (
            projected_gradient_descent(
                net, x, 0.1, 0.02, 5, 2, y=labels, targeted=targeted, rand_init=False
            )
            for labels in (None, y)
        )
        assert torch.equal(a, b)


def test_fgm_of_norm_1_moves_one_entry():
    net, (x, y) = cnn(), batch(8)
    found = fast_gradient_method(net, x, 0.4, 1, y=y)
    moved = (found != x).flatten(1)
    assert moved.sum(1).tolist() == [1] * 8
    assert torch.allclose((found - x).flatten(1).abs().sum(1), torch.full((8,), 0.4), atol=1e-6)
    assert (F.cross_entropy(net(found), y) > F.cross_entropy(net(x), y)).item()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(leaf), y, reduction="sum"), leaf)
    assert torch.equal(moved.long().argmax(1), gradient.flatten(1).abs().argmax(1))
    clipped = fast_gradient_method(net, x, 0.4, 1, 0.0, 1.0, y)
    assert torch.equal(clipped, found.clamp(0, 1)) and not torch.equal(clipped, found)
    lowered = fast_gradient_method(net, x, 0.4, 1, y=y, targeted=True)
    assert torch.allclose(lowered - x, x - found, atol=1e-6)


@pytest.mark.parametrize("norm", [math.inf, 2])
def test_start(norm):
    x = torch.full((200, 3, 8, 8), 0.5)
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))

    def start(seed, **keywords):
        torch.manual_seed(seed)
        return projected_gradient_descent(
            net, x, 0.1, 0.1, 0, norm, 0.0, 1.0, **keywords
        ) - x  # fmt: skip

    assert torch.equal(start(1), start(1)) and not torch.equal(start(1), start(2))
    assert torch.equal(start(1, rand_init=False), torch.zeros_like(x))
    for reach in (0.002, 5.0):
        delta = start(1, rand_minmax=reach)
        sizes = torch.linalg.vector_norm(delta.flatten(1), norm, dim=1)
        assert sizes.max() <= 0.1 + 1e-6
        if reach == 5.0 and norm == 2:  # far outside: every start is on the sphere
            assert sizes.min() > 0.0999
        elif reach == 5.0:
            assert (delta.abs() > 0.0999).float().mean() > 0.95
        else:
            assert delta.abs().max() <= 0.002 + 1e-7 and abs(delta.std() / 0.002 - 3**-0.5) < 0.01


@hypothesis.settings(hypothesis.settings.get_profile("quick"))
@hypothesis.given(
    norm=st.sampled_from([math.inf, 2]),
    eps=st.floats(1e-3, 3),
    share=st.floats(0.01, 1),
    reach=st.one_of(st.none(), st.floats(0, 9)),
    bounds=st.sampled_from([None, (0.0, 1.0), (-1.0, 2.5)]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    fold=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_inside_the_ball_and_the_bounds(norm, eps, share, reach, bounds, dtype, fold, seed):
    torch.manual_seed(seed)
    x = torch.rand(4, 20).to(dtype)
    clips = bounds or (None, None)
    found = projected_gradient_descent(
        mlp().to(dtype), x, eps, eps * share, 3, norm, *clips, rand_minmax=reach, sanity_checks=False,
        fold=fold,
    )  # fmt: skip
    assert found.dtype == dtype and found.isfinite().all()
    size = torch.linalg.vector_norm(found.double() - x.double(), norm, dim=1).max().item()
    assert size <= eps * (1 + 1e-6) + 1e-6
    if bounds is not None:
        assert found.min() >= bounds[0] and found.max() <= bounds[1]


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(training):
    net, (x, y) = cnn(), batch(6)
    net.train(training)
    net[1].train(not training)  # one part in the other mode
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes, given = [part.training for part in net.modules()], x.clone()
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        for labels in (y, None):
            with context():
                # Tensors made here: autograd cannot save those of inference mode.
                own = x.clone()
                classes = None if labels is None else labels.clone()
                made = [
                    projected_gradient_descent(net, own, 0.1, 0.05, 2, math.inf, y=classes),
                    fast_gradient_method(net, own, 0.1, 1, y=classes),
                ]
            assert not any(found.requires_grad for found in made)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [part.training for part in net.modules()] == modes
    assert all(weight.grad is None for weight in net.parameters())
    assert torch.equal(x, given)


@pytest.mark.parametrize("fold", [True, False])
def test_fold_reaches_the_engine(fold, monkeypatch):
    seen = []

    def recording(*args, **settings):
        seen.append(settings["fold"])
        return PGDAttack(*args, **settings)

    monkeypatch.setattr("advfast.compat.cleverhans.PGDAttack", recording)
    net, (x, y) = cnn(), batch(4)
    projected_gradient_descent(net, x, 0.1, 0.05, 1, math.inf, y=y, fold=fold)
    fast_gradient_method(net, x, 0.1, 2, y=y, fold=fold)
    assert seen == [fold, fold]


def test_any_callable():
    net, (x, y) = cnn(), batch(8)
    a, b = (
        projected_gradient_descent(f, x, 0.1, 0.05, 3, math.inf, y=y, rand_init=False, fold=False)
        for f in (net, lambda images: net(images))
    )
    assert torch.equal(a, b)


def test_small_functions():
    gradient = torch.tensor([[3.0, -4.0, 0.0], [0.0, 0.0, 0.0], [2.0, -2.0, 1.0]])
    assert optimize_linear(gradient, 0.5).tolist() == [[0.5, -0.5, 0], [0, 0, 0], [0.5, -0.5, 0.5]]
    assert torch.allclose(
        optimize_linear(gradient, 0.5, 2)[:2], torch.tensor([[0.3, -0.4, 0], [0.0, 0, 0]])
    )
    assert optimize_linear(gradient, 0.5, 1).tolist() == [[0, -0.5, 0], [0, 0, 0], [0.25, -0.25, 0]]
    assert optimize_linear(gradient.double(), 0.5, 1).dtype == torch.float64
    assert clip_eta(gradient, math.inf, 2.5).tolist() == [[2.5, -2.5, 0], [0, 0, 0], [2, -2, 1]]
    assert torch.allclose(clip_eta(gradient, 2, 1.0)[0], torch.tensor([0.6, -0.8, 0]))
    assert torch.equal(clip_eta(gradient, 2, 9.0), gradient)


def test_messages():
    net, (x, y) = cnn(), batch(4)

    def pgd(x=x, eps=0.1, eps_iter=0.05, norm=math.inf, **keywords):
        return projected_gradient_descent(net, x, eps, eps_iter, 1, norm, y=y, **keywords)

    with pytest.raises(NotImplementedError, match="norm='l1'"):
        pgd(norm=1)
    with pytest.raises(ValueError, match="norm must be inf or 2, got 3"):
        pgd(norm=3)
    with pytest.raises(ValueError, match=r"eps must be greater than or equal to 0, got -0\.1"):
        pgd(eps=-0.1)
    with pytest.raises(ValueError, match="eps_iter must be greater"):
        pgd(eps_iter=-0.1)
    with pytest.raises(AssertionError, match=r"at most eps, got 0\.2 and 0\.1"):
        pgd(eps_iter=0.2)
    with pytest.raises(ValueError, match="both be numbers or both be None"):
        pgd(clip_min=0.0)
    with pytest.raises(ValueError, match=r"at most clip_max, got 1\.0 and 0\.0"):
        pgd(clip_min=1.0, clip_max=0.0)
    with pytest.raises(AssertionError, match=r"x must lie in .* \[0\.0, 1\.0\], got .* to 1\.9"):
        pgd(x=x + 1, clip_min=0.0, clip_max=1.0)
    with pytest.raises(AssertionError, match="eps must be at most clip_max - clip_min"):
        pgd(eps=2.0, clip_min=0.0, clip_max=1.0)
    assert pgd(eps=2.0, norm=2, clip_min=0.0, clip_max=1.0).shape == x.shape
    assert pgd(eps=0) is x and pgd(eps_iter=0) is x
    assert fast_gradient_method(net, x, 0, 2) is x
    with pytest.raises(NotImplementedError, match="got 3"):
        optimize_linear(x, 0.1, 3)
    with pytest.raises(NotImplementedError, match="norm 1"):
        clip_eta(x, 1, 0.1)
    with pytest.raises(ValueError, match="got 3"):
        clip_eta(x, 3, 0.1)
