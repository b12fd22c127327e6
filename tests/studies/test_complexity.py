"""Measures of complexity on networks small enough for a hand, and rank correlations."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from advfast.models.normalise import Normalised
from advfast.studies.complexity import (
    MEASURES,
    boundary_thickness,
    complexity,
    input_gradient,
    log_path_norm,
    margin,
    sharpness,
    spectral_norm,
    thickness_radius,
    weight_layers,
)
from advfast.studies.networks import conv_net
from advfast.studies.objective import Objective
from advfast.studies.rank_correlation import p_value, ranks, spearman


class Line(nn.Module):
    """Logits (s, -s) of s = w . x: p_0 - p_1 = tanh(s)."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x):
        s = x.flatten(1) @ self.w
        return torch.stack((s, -s), 1)


def test_norms_of_layers():
    torch.manual_seed(0)
    net = conv_net((2, 5, 5), 3, (3, 4), (2, 1), batch_norm=False).double()
    x = torch.rand(2, 2, 5, 5, dtype=torch.float64)
    layers = weight_layers(net, x)
    assert [shape for _, shape in layers] == [(1, 2, 5, 5), (1, 3, 3, 3), (1, 36)]
    for layer, shape in layers:
        size = math.prod(shape)
        basis = torch.eye(size, dtype=torch.float64).reshape(size, *shape[1:])
        zero = torch.zeros(1, *shape[1:], dtype=torch.float64)
        matrix = (layer(basis) - layer(zero)).detach().flatten(1)  # column by column
        assert spectral_norm(layer, shape) == pytest.approx(
            float(torch.linalg.svdvals(matrix)[0]), rel=1e-6
        )


def test_path_norm_against_a_walk_over_all_paths():
    torch.manual_seed(1)
    net = Normalised(
        nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)),
        [0.3], [0.5],
    ).double().requires_grad_(False)  # fmt: skip
    first, norm, last = net.net[1], net.net[2], net.net[4]
    with torch.no_grad():
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    total = 0.0
    for k, h in itertools.product(range(2), range(3)):
        scale = float(norm.weight[h] / (norm.running_var[h] + norm.eps).sqrt())
        out = float(last.weight[k, h])
        for i in range(4):
            total += (out * scale * float(first.weight[h, i]) / 0.5) ** 2
            total += (out * scale * float(first.weight[h, i]) * 0.3 / 0.5) ** 2
        total += (out * scale * float(first.bias[h])) ** 2
        total += (out * float(norm.bias[h] - norm.running_mean[h] * scale)) ** 2
    total += float(last.bias.square().sum())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    # float32 holds mean and std of the normalisation layer.
    assert log_path_norm(net, torch.rand(1, 1, 2, 2)) == pytest.approx(
        0.5 * math.log(total), rel=1e-6
    )
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert (
        log_path_norm(nn.Sequential(nn.Flatten(), nn.LayerNorm(4)), torch.ones(1, 1, 2, 2)) is None
    )


def test_margin_is_a_percentile_of_the_distance_to_the_next_class():
    logits = torch.zeros(11, 3)
    logits[:, 1] = torch.arange(11) - 5.0  # against two zeros
    labels = torch.ones(11, dtype=torch.int64)
    assert margin(nn.Identity(), logits, labels) == pytest.approx(-4)
    assert margin(nn.Identity(), torch.tensor([[3.0, 1.0, -1.0]]), torch.tensor([0])) == 2


def test_input_gradient_in_the_dual_norm():
    net = Line([3.0, -4.0])
    x = torch.tensor([[[[0.1, 0.2]]], [[[0.5, 0.5]]]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    # CE = softplus(-+2s), whose slope in s is 2 sigmoid(-+2s).
    slopes = [2 / (1 + math.exp(2 * s)) for s in (-0.5, 0.5)]
    for norm, size in (("linf", 7), ("l2", 5), ("l1", 4)):
        expected = sum(slopes) / 2 * size
        assert input_gradient(net, x, labels, norm) == pytest.approx(expected)


def test_boundary_thickness_of_a_line():
    net = Line([3.0, 4.0])
    start = torch.tensor([[[[0.3, 0.4]]]] * 2, dtype=torch.float64)  # s = 2.5
    end = torch.stack((-start[0], start[1]))  # s = -2.5, and the same class
    # tanh(s) is in (0, 0.75) for s in (0, atanh(0.75)), and s grows by 5 per unit of length.
    exact = math.atanh(0.75) / 5
    found = boundary_thickness(net, start, end)
    assert found == pytest.approx(exact, abs=1 / 100)
    assert boundary_thickness(net, start, end, (0.0, 1.0)) == pytest.approx(0.5, abs=1 / 100)
    assert boundary_thickness(net, start, start) is None
    assert thickness_radius(0.1, "linf", 16) == pytest.approx(0.8)
    assert thickness_radius(0.1, "l2", 16) == pytest.approx(0.2)


def test_sharpness_is_the_rise_of_the_adversarial_loss_by_a_step_of_the_length_of_the_weights():
    net = Line([0.05, -2.0])  # the first weight changes its sign in the step
    x = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    objective = Objective(net, "pgd-at", x, torch.tensor([0]), eps=0.1, alpha=0.2, steps=2)
    # x' = x - eps sign(w): CE = softplus(-2 (w . x - eps |w|_1)). The gradient in w is along -x'.
    w, rho = np.array([0.05, -2.0]), 0.1

    def loss(w):
        return math.log1p(math.exp(-2 * (w.sum() / 2 - 0.1 * np.abs(w).sum())))

    attacked = 0.5 - 0.1 * np.sign(w)
    step = -rho * np.linalg.norm(w) * attacked / np.linalg.norm(attacked)
    assert np.sign(w + step)[0] == -1
    assert sharpness(objective, rho) == pytest.approx(loss(w + step) - loss(w))


def test_all_measures_of_a_network():
    torch.manual_seed(0)
    net = conv_net((1, 4, 4), 3, (4,), (2,), batch_norm=False).train()
    x, y = torch.rand(20, 1, 4, 4), torch.arange(20) % 3
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = complexity(net, x, y, eps=0.1)
    assert found.keys() == MEASURES.keys()
    layers = weight_layers(net, x)
    assert found["log_frobenius"] == pytest.approx(
        sum(math.log(float(layer.weight.detach().norm())) for layer, _ in layers), rel=1e-5
    )
    assert found["log_spectral"] == pytest.approx(
        sum(math.log(spectral_norm(layer, shape)) for layer, shape in layers)
    )
    assert found["log_spectral"] < found["log_frobenius"] + math.log(4 * 4)
    assert found["robust_margin"] < found["margin"] and found["sharpness"] > 0
    assert found["input_gradient"] == pytest.approx(input_gradient(net, x, y))
    assert found == complexity(net, x, y, eps=0.1)
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("size", [3, 5, 8, 30])
def test_rank_correlation_with_ties_against_scipy(size):
    generator = np.random.default_rng(size)
    a, b = generator.integers(4, size=size), generator.random(size)
    assert list(ranks(a)) == list(stats.rankdata(a))
    expected = stats.spearmanr(a, b).statistic
    if np.isnan(expected):
        assert spearman(a, b) is None
        return
    assert spearman(a, b) == pytest.approx(expected)
    if size <= 8:
        values = [
            abs(stats.spearmanr(a, order).statistic) for order in itertools.permutations(b)
        ] if size <= 5 else None  # fmt: skip
        if values:
            exact = np.mean(np.array(values) >= abs(expected) - 1e-9)
            assert p_value(a, b) == pytest.approx(exact)
    else:
        assert p_value(a, b) == pytest.approx(stats.spearmanr(a, b).pvalue, abs=0.03)


def test_correlations_that_cannot_be_told():
    assert spearman([1, 2], [1, 2]) is None and spearman([1, 1, 1], [1, 2, 3]) is None
    assert p_value([1, 1, 1], [1, 2, 3]) is None
    assert spearman([1, 2, 3], [9, 8, 7]) == pytest.approx(-1)
    assert p_value([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(2 / 24)
    with pytest.raises(ValueError, match="as many finite values"):
        spearman([1, 2, math.nan], [1, 2, 3])
