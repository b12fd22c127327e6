"""hyperplane_project against linear programmes, a bisection in float64, and the published projections."""

import numpy
import pytest
import torch
from scipy.optimize import linprog

from advfast import _backend, available_impls
from advfast.kernels import hyperplane_project
from advfast.kernels.hyperplane.ops import hyperplane_project_op

NORMS = ("linf", "l2", "l1")
ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}


@pytest.fixture
def impl(variant):
    if variant[0] not in available_impls("hyperplane_project", variant[1]):
        pytest.skip("it is not made for this")
    return variant[0]


def problem(rows=24, dim=12, spread=1.0, device="cpu"):
    """Points of which some entries are at a wall, normals of which some are 0, on both sides of the hyperplane."""
    points = torch.rand(rows, dim, dtype=torch.float64, device=device)
    points[:, ::4] = points[:, ::4].round()
    w = torch.randn(rows, dim, dtype=torch.float64, device=device)
    w[:, 2::5] = 0
    b = (w * points).sum(1) + spread * torch.randn(rows, dtype=torch.float64, device=device)
    return points, w, b


def reachable(points, w, b):
    """Whether the hyperplane meets the box."""
    return (w.clamp(max=0).sum(1) <= b) & (b <= w.clamp(min=0).sum(1))


def smallest_length(point, w, b, norm):
    """By a linear programme; l2: by bisection of the multiplier."""
    point, w, n = point.numpy(), w.numpy(), len(point)
    if norm == "l2":
        low, high = -1e9, 1e9
        for _ in range(400):
            middle = (low + high) / 2
            delta = numpy.clip(middle * w, -point, 1 - point)
            low, high = (middle, high) if w @ (point + delta) < b else (low, middle)
        return float(numpy.linalg.norm(delta))
    # Unknowns: delta = up - down, and for linf the largest of them.
    plane = numpy.concatenate([w, -w, [0.0]])[None]
    cost = numpy.r_[numpy.zeros(2 * n), 1.0] if norm == "linf" else numpy.r_[numpy.ones(2 * n), 0.0]
    below = numpy.c_[numpy.eye(n), numpy.eye(n), -numpy.ones(n)] if norm == "linf" else None
    bounds = [(0, 1 - p) for p in point] + [(0, p) for p in point] + [(0, None)]
    found = linprog(
        cost, A_ub=below, b_ub=None if below is None else numpy.zeros(n),
        A_eq=plane, b_eq=[b - w @ point], bounds=bounds,
    )  # fmt: skip
    assert found.status == 0
    return found.fun


@pytest.mark.parametrize("norm", NORMS)
def test_no_displacement_is_smaller(impl, device, norm):
    points, w, b = problem(spread=1.5, device=device)
    delta = hyperplane_project(points, w, b, norm, impl=impl)
    inside = reachable(points, w, b)
    assert 0 < inside.sum() < len(inside)
    moved = points + delta
    assert moved.min() >= 0 and moved.max() <= 1
    torch.testing.assert_close((w * moved).sum(1)[inside], b[inside], atol=1e-12, rtol=0)
    lengths = torch.linalg.vector_norm(delta, ORDER[norm], dim=1)
    for i in inside.nonzero()[:, 0].tolist():
        least = smallest_length(points[i].cpu(), w[i].cpu(), b[i].item(), norm)
        assert lengths[i].item() == pytest.approx(least, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_a_corner_where_the_hyperplane_is_out_of_reach(impl, device, norm):
    points, w, b = problem(spread=1.5, device=device)
    out = ~reachable(points, w, b)
    delta = hyperplane_project(points, w, b, norm, impl=impl)[out]
    rise = (b > (w * points).sum(1))[out, None]
    corner = torch.where((w[out] > 0) == rise, 1.0, 0.0).double()
    expected = torch.where(w[out] == 0, 0.0, corner - points[out])
    torch.testing.assert_close(delta, expected, atol=1e-15, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 7, 8, 100, 785])
@pytest.mark.parametrize("norm", NORMS)
def test_same_as_published(impl, device, norm, dim, dtype):
    published = pytest.importorskip("pyautoattack.fab_projections")
    for spread in (1e-3, 0.1, 3.0, 100.0):
        points, w, b = problem(17, dim, spread)
        expected = getattr(published, f"projection_{norm}")(points, w, b)
        given = (t.to(device, dtype) for t in (points, w))
        got = hyperplane_project(*given, b.to(device), norm, impl=impl).cpu()
        assert got.dtype == dtype
        torch.testing.assert_close(
            got.double(), expected, rtol=0, atol=1e-11 if dtype == torch.float64 else 2e-5
        )


@pytest.mark.parametrize("norm", NORMS)
def test_b_is_read_in_float64(impl, device, norm):
    """A boundary so near that <w, points> rounded to float32 would not show it."""
    points, w, _ = problem(9, 784, device=device)
    points, w = points.float() * 0.5 + 0.25, 10 * w.float()
    near = 1e-6 * torch.arange(1, 10, device=device, dtype=torch.float64)
    b = (w.double() * points.double()).sum(1) + near
    delta = hyperplane_project(points, w, b, norm, impl=impl).double()
    torch.testing.assert_close((w.double() * delta).sum(1), near, rtol=1e-4, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_to_do(impl, device, norm):
    points, w, _ = problem(6, 30, device=device)
    w[1] = 0
    b = (w * points).sum(1)
    b[1] = 3.0
    w32 = w.float()
    for given in ((points, w, b), (points.float(), w32, (w32.double() * points.float()).sum(1))):
        assert hyperplane_project(*given, norm, impl=impl).abs().max() < 1e-9
    assert hyperplane_project(points[:0], w[:0], b[:0], norm, impl=impl).shape == (0, 30)
    assert hyperplane_project(points[:, :0], w[:, :0], b, norm, impl=impl).shape == (6, 0)


@pytest.mark.parametrize("norm", NORMS)
def test_does_not_depend_on_the_scale_of_w(impl, device, norm):
    points, w, b = problem(12, 50, spread=0.5, device=device)
    points, w = points.float(), w.float()
    expected = hyperplane_project(points, w, b, norm, impl=impl)
    for exponent in (-100, -40, 60):
        factor = 2.0**exponent
        got = hyperplane_project(points, w * factor, b * factor, norm, impl=impl)
        assert torch.equal(got, expected)


def test_tiny_entries_stay_in_l2_and_l1(impl, device):
    points = torch.full((1, 3), 0.5, device=device)
    w = torch.tensor([[1.0, 1e-9, 1e-7]], device=device)
    b = torch.tensor([9.0], device=device)
    for norm, expected in (("linf", [0.5] * 3), ("l2", [0.5, 0.0, 0.5]), ("l1", [0.5, 0.0, 0.5])):
        assert hyperplane_project(points, w, b, norm, impl=impl).tolist() == [expected]


def test_l1_moves_the_first_of_equals(impl, device):
    points = torch.full((2, 64), 0.5, device=device)
    w = torch.ones(2, 64, device=device)
    w[1, 5] = -1
    delta = hyperplane_project(points, w, (w * points).sum(1) + 2.75, "l1", impl=impl)
    expected = torch.zeros(2, 64)
    expected[:, :5], expected[:, 5] = 0.5, 0.25
    expected[1, 5] = -0.25
    torch.testing.assert_close(delta.cpu(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_hyperplanes_that_nearly_miss_the_box(impl, device, norm):
    """All but a few entries come to their walls, which are at very different distances."""
    points, w, _ = problem(8, 400, device=device)
    w = w * 10 ** torch.linspace(-6, 0, 400, device=device).double()
    furthest = w.clamp(min=0).sum(1)
    b = furthest - 1e-7 * (furthest - (w * points).sum(1))
    delta = hyperplane_project(points, w, b, norm, impl=impl)
    torch.testing.assert_close((w * (points + delta)).sum(1), b, rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_layouts(impl, device, norm):
    for shape, layout in (
        ((5, 3, 4, 7), torch.channels_last),
        ((5, 3, 2, 4, 3), torch.channels_last_3d),
    ):
        points, w = torch.rand(shape, device=device), torch.randn(shape, device=device)
        b = (w * points).flatten(1).sum(1) + 0.5
        expected = hyperplane_project(points, w, b, norm, impl=impl)
        given = (t.contiguous(memory_format=layout) for t in (points, w))
        got = hyperplane_project(*given, b, norm, impl=impl)
        assert got.is_contiguous(memory_format=layout) and expected.is_contiguous()
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.skipif(_backend.native() is None, reason="no native core")
@pytest.mark.parametrize("norm", NORMS)
def test_same_for_any_threads_and_instruction_set(norm):
    core, threads = _backend.native(), torch.get_num_threads()
    points, w, b = problem(37, 1003)
    expected = [hyperplane_project(p, n, b, norm, impl="cpp")
                for p, n in ((points, w), (points.float(), w.float()))]  # fmt: skip
    try:
        for isa in ("baseline", "avx2", "avx512", ""):
            if not core.set_cpu_isa(isa):
                continue
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                wide = hyperplane_project(points, w, b, norm, impl="cpp")
                narrow = hyperplane_project(points.float(), w.float(), b, norm, impl="cpp")
                assert torch.equal(wide, expected[0]) and torch.equal(narrow, expected[1]), isa
    finally:
        core.set_cpu_isa("")
        torch.set_num_threads(threads)


def test_opcheck(impl, device):
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    points, w, b = problem(3, 8, device=device)
    for norm in NORMS:
        torch.library.opcheck(
            hyperplane_project_op,
            (points.float(), w.float(), b, norm, impl),
            test_utils=(*checks, "test_aot_dispatch_dynamic"),
        )


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"norm": "l3"}, ValueError, "norm must be one of linf, l2, l1, got 'l3'"),
        ({"points": torch.rand(2, 3).half()}, TypeError, "float32 or float64, got torch.float16"),
        ({"w": torch.rand(2, 3).double()}, TypeError, "must both be"),
        ({"w": torch.rand(2, 4)}, ValueError, r"w must have shape \(2, 3\)"),
        ({"w": torch.rand(3, 2).t()}, ValueError, "w must be contiguous"),
        ({"b": torch.rand(3)}, ValueError, r"b must have shape \(2,\)"),
        ({"b": 0.5}, TypeError, "b must be a float32 or float64 tensor"),
        ({"impl": "triton"}, RuntimeError, "not made for this op"),
    ],
)
def test_bad_input_is_refused(change, kind, message):
    given = {"points": torch.rand(2, 3), "w": torch.rand(2, 3), "b": torch.rand(2), **change}
    with pytest.raises(kind, match=message):
        hyperplane_project(**given)
