"""Traces, estimates, solves and predictions of NTKOperator against the dense kernel."""

import pytest
import torch

from advfast.ntk import blocks
from advfast.ntk.eigen import NotConverged
from advfast.ntk.operator import NTKOperator

from .networks import Attention, images, mlp, resnet
from .rows import jacobian, relative, theta

N, CLASSES = 6, 3
LABELS = torch.tensor([0, 2, 1, 1, 0, 2])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return resnet().double()


@pytest.fixture(scope="module")
def kernel(network):
    return theta(network, images(N))


@pytest.fixture
def operator(network):
    return NTKOperator(network, (images(N), LABELS))


def centring():
    mean = torch.full((N, N), 1 / N, dtype=torch.float64)
    return torch.eye(N * CLASSES).double() - torch.kron(mean, torch.eye(CLASSES).double())


@pytest.mark.parametrize("centred", [False, True], ids=["plain", "centred"])
def test_what_is_exact(operator, kernel, centred, monkeypatch):
    monkeypatch.setitem(blocks._ROWS, "cpu", 6)  # several blocks of the engine
    if centred:
        operator, kernel = operator.centred(), centring() @ kernel @ centring()
    v = torch.randn(N * CLASSES, 2, dtype=torch.float64)
    assert relative(operator @ v, kernel @ v) < 1e-12
    assert relative(operator.dense(), kernel) < 1e-12
    assert operator.trace() == pytest.approx(float(kernel.trace()), rel=1e-12)
    assert operator.fro() == pytest.approx(float(kernel.norm()), rel=1e-12)
    own = kernel.view(N, CLASSES, N, CLASSES).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    assert relative(operator.diagonal_blocks(), own) < 1e-12
    y = torch.nn.functional.one_hot(LABELS, CLASSES).double().flatten()
    expected = pytest.approx(float(y @ kernel @ y), rel=1e-11)
    assert operator.label_alignment() == expected
    assert operator.label_alignment(LABELS) == operator.label_alignment(y.view(N, CLASSES))
    assert operator.uncentred().centre is False


def variance(a):
    """Of z^T a z for independent signs z."""
    return 2 * float(a.square().sum() - a.diagonal().square().sum())


def own_blocks(a):
    """a without what is between samples."""
    same = torch.kron(torch.eye(N), torch.ones(CLASSES, CLASSES))
    return a * same.double()


@pytest.mark.parametrize("centred", [False, True], ids=["plain", "centred"])
@pytest.mark.parametrize("per_sample", [False, True], ids=["global", "per sample"])
def test_trace_estimates_are_within_their_error(operator, kernel, per_sample, centred):
    if centred:
        operator, kernel = operator.centred(), centring() @ kernel @ centring()
    found = operator.hutchinson_trace(64, per_sample=per_sample)
    assert abs(found.value - float(kernel.trace())) < 3.5 * found.stderr
    seen = own_blocks(kernel) if per_sample else kernel
    assert found.stderr == pytest.approx((variance(seen) / 64) ** 0.5, rel=0.35)
    assert float(found) == found.value and found.samples == 64
    assert found != operator.hutchinson_trace(64, per_sample=per_sample, seed=1)


def test_the_estimate_of_the_frobenius_norm(operator, kernel):
    found = operator.frobenius(200)
    assert abs(found.value - float(kernel.norm())) < 3.5 * found.stderr
    expected = (variance(kernel @ kernel) / 200) ** 0.5 / (2 * float(kernel.norm()))
    assert found.stderr == pytest.approx(expected, rel=0.3)


@pytest.mark.parametrize("method", ["cholesky", "cg", "auto"])
@pytest.mark.parametrize("shape", [(N, CLASSES), (N * CLASSES,), (N * CLASSES, 2)])
def test_solves(operator, kernel, method, shape):
    b = torch.randn(shape, dtype=torch.float64)
    right = b.reshape(N * CLASSES, -1)
    expected = torch.linalg.solve(kernel + 0.05 * torch.eye(N * CLASSES).double(), right).reshape(
        shape
    )
    found = operator.solve(b, ridge=0.05, method=method, rank=5)
    assert found.x.shape == b.shape and relative(found.x, expected) < 1e-8
    assert found.residual < 1e-9
    assert (found.method, found.iterations > 0) == (
        ("cg", True) if method == "cg" else ("cholesky", False)
    )


def test_columns_of_a_right_hand_side_are_told_from_samples(kernel):
    network = mlp(1).double()
    operator = NTKOperator(network, images(4))
    b = torch.randn(4, 3, dtype=torch.float64)
    expected = torch.linalg.solve(theta(network, images(4)) + torch.eye(4).double(), b)
    assert relative(operator.solve(b, ridge=1.0).x, expected) < 1e-10


def test_the_preconditioner_saves_products(operator):
    b = torch.randn(N, CLASSES, dtype=torch.float64)
    plain = operator.solve(b, ridge=1e-3, method="cg", rank=0)
    helped = operator.solve(b, ridge=1e-3, method="cg", rank=12)
    assert helped.iterations < plain.iterations / 2
    assert helped.residual < 1e-10 and plain.residual < 1e-10


def test_solves_in_float32():
    network, x = resnet(), images(N, dtype=torch.float32)
    operator = NTKOperator(network, x)
    b = torch.randn(N, CLASSES)
    exact = NTKOperator(network.double(), x).solve(b.double(), ridge=1.0).x
    operator = NTKOperator(network.float(), x)
    for method in ("cholesky", "cg"):
        found = operator.solve(b, ridge=1.0, method=method)
        assert found.residual < 1e-5 and relative(found.x, exact) < 1e-4


def test_a_solve_that_does_not_converge_says_so(operator):
    b = torch.randn(N, CLASSES, dtype=torch.float64)
    with pytest.raises(NotConverged, match=r"is [\d.e-]+ after 2 iterations.*raise the ridge") as e:
        operator.solve(b, ridge=1e-6, method="cg", rank=0, maxiter=2)
    assert e.value.partial.shape == (N * CLASSES, 1)
    with pytest.raises(NotConverged, match="after"):  # rounding is in the way
        NTKOperator(resnet(), images(N, dtype=torch.float32)).solve(
            b, ridge=1e-9, method="cg", tol=1e-12
        )


def test_a_singular_kernel_is_not_factored():
    x = images(3)
    twice = NTKOperator(mlp().double(), torch.cat([x, x]))
    b = torch.randn(6, CLASSES, dtype=torch.float64)
    with pytest.raises(NotConverged, match="not positive definite: Cholesky stopped at row"):
        twice.solve(b, ridge=0.0)
    assert twice.solve(b, ridge=0.1).residual < 1e-10


@pytest.mark.parametrize(
    "readout",
    ["full", "sum", 1, torch.tensor([[1.0, -1, 0], [0.5, 0, 2]])],
    ids=["full", "sum", "class", "matrix"],
)
@pytest.mark.parametrize("batch_size", [None, 4])
def test_prediction_is_kernel_regression(readout, batch_size):
    network, x, new = Attention().double(), images(N), images(9, seed=5)
    eye = torch.eye(CLASSES).double()
    c = {"full": eye, "sum": torch.ones(1, CLASSES).double(), 1: eye[1:2]}.get(
        readout if not isinstance(readout, torch.Tensor) else None
    )
    c = readout.double() if c is None else c
    r = len(c)
    j = jacobian(network, x, c.expand(N, r, CLASSES))
    across = jacobian(network, new, c.expand(9, r, CLASSES)) @ j.T
    with torch.no_grad():
        f0, f0_new = network(x) @ c.T, network(new) @ c.T
    targets = torch.randn(N, r, dtype=torch.float64)
    alpha = torch.linalg.solve(j @ j.T + 0.1 * torch.eye(N * r).double(), (targets - f0).flatten())
    expected = f0_new + (across @ alpha).view(9, r)
    operator = NTKOperator(network, x, readout=readout, batch_size=batch_size)
    assert relative(operator.predict(new, targets=targets, ridge=0.1), expected) < 1e-11
    assert relative(operator.predict(new, alpha=alpha), expected) < 1e-11


def test_prediction_interpolates_without_a_ridge(operator):
    got = operator.predict(images(N), targets=LABELS, ridge=0.0)
    assert relative(got, torch.nn.functional.one_hot(LABELS, CLASSES).double()) < 1e-6


@pytest.mark.parametrize("readout", ["margin", lambda f: f.square()], ids=["margin", "callable"])
def test_prediction_needs_a_fixed_readout(network, readout):
    operator = NTKOperator(network, (images(N), LABELS), readout=readout)
    with pytest.raises(ValueError, match="same combination of logits"):
        operator.predict(images(2), alpha=torch.ones(operator.n, operator.readouts))
