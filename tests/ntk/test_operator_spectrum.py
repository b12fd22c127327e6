"""Eigenvalues and quadrature, on matrices of known spectrum and on kernels."""

import math

import pytest
import torch

from advfast.ntk import eigen, estimators, quadrature
from advfast.ntk.eigen import NotConverged
from advfast.ntk.operator import NTKOperator

from .networks import images, mlp, resnet
from .rows import relative, theta

SPECTRA = {
    "decaying": [2.0**-i for i in range(60)],
    "outliers": [100, 90, 80, 70, 60, *torch.linspace(1, 0.01, 55).tolist()],
    "clustered": [5, 5, 5, 5 - 1e-6, 4, 4, 3, *[0.5] * 53],
    "low rank": [3, 2, 1, *[0.0] * 57],
    "flat": [1.0] * 60,
}


def matrix(spectrum):
    q = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), dtype=torch.float64))[0]
    return q @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ q.T


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("name", list(SPECTRA))
@pytest.mark.parametrize("method", ["lobpcg", "lanczos"])
def test_largest_eigenvalues(method, name, k):
    a = matrix(SPECTRA[name])
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(60, k + 2, dtype=torch.float64)
    first = start if method == "lobpcg" else start[:, 0]
    values, vectors, residuals = getattr(eigen, method)(a.mm, first, k, 1e-9, 200, draw)
    top = values[0]
    assert (values - torch.linalg.eigvalsh(a).flip(0)[:k]).abs().max() < 1e-8 * top
    assert (a @ vectors - vectors * values).norm(dim=0).max() < 2e-9 * top
    assert relative(vectors.T @ vectors, torch.eye(k).double()) < 1e-12
    assert (residuals <= 1e-9 * top).all()


@pytest.mark.parametrize("method", ["lobpcg", "lanczos"])
def test_a_start_among_the_wrong_eigenvectors(method):
    """A start that the matrix maps into itself: nothing but the guard vectors leads out of it."""
    a = torch.diag(torch.arange(60, 0, -1.0, dtype=torch.float64))
    draw = torch.Generator().manual_seed(0)
    wrong = torch.eye(60).double()[:, 30:33]
    start = eigen._independent(wrong, wrong[:, :0], 5, draw)
    first = start if method == "lobpcg" else wrong[:, 0]
    values, _, _ = getattr(eigen, method)(a.mm, first, 3, 1e-9, 300, draw)
    assert (values - torch.tensor([60.0, 59, 58])).abs().max() < 1e-8


def test_lanczos_looks_again_for_what_one_krylov_space_does_not_show():
    """Of two equal eigenvalues the second comes out of rounding, later than the first has converged."""
    a = matrix([1.3, 1.3, 1.2, *torch.linspace(1, 0, 297).tolist()])
    start = torch.randn(300, dtype=torch.float64)
    values, _, _ = eigen.lanczos(a.mm, start, 2, 1e-6, 300, torch.Generator().manual_seed(0))
    assert (values - 1.3).abs().max() < 1e-6


@pytest.mark.parametrize("method", ["lobpcg", "lanczos"])
def test_too_few_iterations_are_told(method):
    a = matrix([1 - 1e-4 * i for i in range(60)])
    start = torch.randn(60, 4, dtype=torch.float64)
    first = start if method == "lobpcg" else start[:, 0]
    with pytest.raises(NotConverged, match=r"3 of 3|[12] of 3") as e:
        getattr(eigen, method)(a.mm, first, 3, 1e-12, 1, torch.Generator())
    assert e.value.partial[0].shape == (3,)


@pytest.fixture(scope="module")
def many():
    """A kernel of 72 rows whose images fall into 3 classes, and its operator."""
    torch.manual_seed(0)
    network, (x, labels) = mlp().double(), in_classes()
    return theta(network, x), NTKOperator(network, (x, labels), batch_size=13)


def in_classes():
    x, labels = images(24), torch.arange(24) % 3
    x[:, 0] += labels[:, None, None] * 0.5
    return x, labels


@pytest.mark.parametrize("start", ["labels", "random", "tensor", None])
@pytest.mark.parametrize("method", ["lobpcg", "lanczos"])
def test_eigenvalues_of_a_kernel(many, method, start):
    kernel, operator = many
    if start == "tensor":
        start = torch.randn(72, 2, dtype=torch.float64)
    values, vectors, residuals = operator.eigsh(4, method=method, start=start)
    exact = torch.linalg.eigvalsh(kernel).flip(0)[:4]
    assert (values - exact).abs().max() < 1e-8 * exact[0]
    assert relative((kernel @ vectors).norm(dim=0), exact) < 1e-8
    assert (residuals < 1e-9 * exact[0]).all()


def test_the_kernel_of_a_last_layer_has_each_eigenvalue_once_a_class():
    """Theta = K x I: the case that a single Krylov space cannot see."""
    network = mlp(4).double()
    operator = NTKOperator(network, images(12), params=["5"])
    exact = torch.linalg.eigvalsh(operator.dense()).flip(0)[:6]
    assert exact[0] - exact[3] < 1e-12 * exact[0] < exact[0] - exact[4]
    for method in ("lobpcg", "lanczos"):
        values, _, _ = operator.eigsh(6, method=method)
        assert (values - exact).abs().max() < 1e-8 * exact[0]


def test_all_eigenvalues_of_a_small_kernel():
    network, x = resnet().double(), images(3)
    values, vectors, _ = NTKOperator(network, x).eigsh(9)
    kernel = theta(network, x)
    assert relative(vectors * values @ vectors.T, kernel) < 1e-12


def test_eigenvalues_in_float32():
    network, (x, _) = mlp(), in_classes()
    exact = torch.linalg.eigvalsh(theta(network.double(), x)).flip(0)[:3]
    values, _, residuals = NTKOperator(network.float(), x.float()).eigsh(3)
    assert (values - exact).abs().max() < 1e-5 * exact[0] and (residuals < 1e-5 * exact[0]).all()


def test_a_gauss_rule_is_exact_for_polynomials():
    a = matrix(SPECTRA["outliers"])
    z = torch.randn(3, 60, dtype=torch.float64)
    rule = quadrature.lanczos(a.mm, z, 4)
    assert rule.nodes.shape == (3, 4) and relative(rule.weights.sum(1), torch.ones(3)) < 1e-12
    for degree in range(8):
        power = torch.linalg.matrix_power(a, degree)
        expected = (z @ power * z).sum(1) / z.square().sum(1)
        assert relative((rule.weights * rule.nodes**degree).sum(1), expected) < 1e-10


def test_a_gauss_rule_of_a_space_that_ends_early():
    a = matrix(SPECTRA["low rank"])
    z = torch.randn(2, 60, dtype=torch.float64)
    rule = quadrature.lanczos(a.mm, z, 12)
    assert rule.nodes.isfinite().all() and relative(rule.weights.sum(1), torch.ones(2)) < 1e-12
    expected = (z @ torch.linalg.matrix_exp(a) * z).sum(1) / z.square().sum(1)
    assert relative((rule.weights * rule.nodes.exp()).sum(1), expected) < 1e-10


@pytest.fixture(scope="module")
def rules(many):
    """Of 16 draws of 12 probes of that kernel."""
    kernel, operator = many
    draws = [estimators.signs(operator, 12, seed).double() for seed in range(16)]
    return [quadrature.lanczos(kernel.mm, z, 30) for z in draws]


def effective_rank(values):
    p = values.clamp(min=0) / values.clamp(min=0).sum()
    return torch.special.entr(p).sum().exp()


@pytest.mark.parametrize(
    ("function", "of"),
    [
        ("trace", lambda v: v.sum()),
        ("frobenius", lambda v: v.norm()),
        ("logdet", lambda v: (v + 0.5).log().sum()),
        ("effective_rank", effective_rank),
        (lambda v: v.clamp(min=0).sqrt(), lambda v: v.clamp(min=0).sqrt().sum()),
    ],
    ids=["trace", "frobenius", "logdet", "effective_rank", "callable"],
)
def test_functionals_of_the_spectrum(many, rules, function, of):
    exact = float(of(torch.linalg.eigvalsh(many[0])))
    found = [rule.functional(function, 0.5) for rule in rules]
    values = torch.tensor([e.value for e in found], dtype=torch.float64)
    claimed = torch.tensor([e.stderr for e in found]).square().mean().sqrt()
    assert 0.5 < values.std() / claimed < 1.7
    assert abs(values.mean() - exact) < 4 * claimed / len(values) ** 0.5
    assert claimed < 0.5 * abs(exact)


def test_several_functionals_of_one_run(many, rules):
    _, operator = many
    names = ["trace", "effective_rank"]
    both = operator.slq(names, probes=12, steps=30, seed=3)
    assert list(both) == names
    for name in names:
        one = rules[3].functional(name, 0.0)
        assert both[name].value == pytest.approx(one.value, rel=1e-8)
        assert both[name].stderr == pytest.approx(one.stderr, rel=1e-6)


def test_a_logdet_of_a_singular_kernel_asks_for_a_ridge():
    x = images(3)
    twice = NTKOperator(mlp().double(), torch.cat([x, x]))
    with pytest.raises(ValueError, match="pass a ridge"):
        twice.slq("logdet", probes=2, steps=18)


def test_the_density_of_the_spectrum(many, rules):
    values = torch.linalg.eigvalsh(many[0])
    grid = torch.linspace(-20, 1.2 * float(values.max()), 400, dtype=torch.float64)
    width = 0.05 * float(values.max())
    nodes, weights = (torch.cat([getattr(r, n) for r in rules]) for n in ("nodes", "weights"))
    found = quadrature.Quadrature(nodes, weights, 72).density(grid, width)
    bumps = ((grid[:, None] - values) / width).square()
    exact = (-bumps / 2).exp().mean(1) / (width * math.sqrt(2 * math.pi))
    inside = (grid > -2 * width) & (exact > 1e-3 * exact.max())
    errors = (found.density - exact).abs()[inside] / found.stderr[inside]
    assert errors.mean() < 1.5 and errors.max() < 5
    plain = many[1].spectral_density(probes=2, steps=5)
    assert plain.grid.shape == plain.density.shape == (200,) and plain.width > 0


def test_bad_density_arguments(many):
    _, operator = many
    with pytest.raises(ValueError, match="width"):
        operator.spectral_density(width=0.0, probes=2, steps=2)
    with pytest.raises(ValueError, match="grid"):
        operator.spectral_density(torch.zeros(2, 2), probes=2, steps=2)
    with pytest.raises(ValueError, match="steps"):
        operator.slq(steps=0)
