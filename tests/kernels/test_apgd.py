"""The steps of Auto-PGD: every implementation against the definition, float64, the ball and the box."""

import pytest
import torch

from advfast import _backend, available_impls
from advfast.kernels import apgd_l1_step, apgd_step_, l1_box_correction
from advfast.kernels.apgd.ops import apgd_l1_step_op, apgd_step_op, l1_box_correction_op

SHAPES = [(5, 3, 4, 7), (3, 1200), (1, 1), (2, 1, 3, 2, 5), (0, 6), (4, 0)]
EPS = {"linf": 0.1, "l2": 0.5}


@pytest.fixture
def impl(variant):
    return variant[0]


def images(shape, dtype=torch.float32, device="cpu"):
    """x, x_prev, x0, gradient and step; x0 has pixels on both ends of the box."""
    x0 = (torch.rand(shape, dtype=torch.float64) * 1.4 - 0.2).clamp(0, 1)
    near = [(x0 + 0.2 * torch.rand(shape, dtype=torch.float64) - 0.1).clamp(0, 1) for _ in "xp"]
    gradient = torch.randn(shape, dtype=torch.float64) * 1e-3
    gradient.view(-1)[::3] = 0
    step = torch.rand(shape[0], dtype=torch.float64) * 0.3
    return [t.to(device, dtype) for t in (*near, x0, gradient, step)]


def step(tensors, impl, norm, momentum=0.75, **more):
    x, x_prev, x0, gradient, size = tensors
    return apgd_step_(
        x, x_prev.clone(), x0, gradient, size, momentum=momentum, eps=EPS[norm], norm=norm,
        impl=impl, **more,
    )  # fmt: skip


def needs(op, variant, dtype=torch.float32):
    impl, device = variant
    if impl not in available_impls(op, device) or (impl == "triton" and dtype != torch.float32):
        pytest.skip("it is not made for this")


@pytest.mark.parametrize("momentum", [1.0, 0.75, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_is_the_definition(impl, device, variant, norm, shape, dtype, momentum):
    needs("apgd_step_", variant, dtype)
    tensors = images(shape, dtype, device)
    got = step(tensors, impl, norm, momentum)
    expected = step(tensors, "reference", norm, momentum)
    if norm == "linf":
        assert torch.equal(got, expected)
    else:
        exact = step([t.double() for t in tensors], "reference", norm, momentum)
        assert torch.allclose(got.double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_by_hand(impl, device, variant, norm):
    needs("apgd_step_", variant)
    x = torch.tensor([[0.5, 0.5]], device=device)
    x_prev = torch.tensor([[0.5, 0.46]], device=device)
    gradient = torch.tensor([[3.0, -4.0]], device=device)
    size = torch.tensor([0.05], device=device)
    got = step((x, x_prev, x, gradient, size), impl, norm)
    # z - x is the step, the last one was (0, 0.04), of which a quarter is added; all of it is inside.
    moved = (0.05, -0.05) if norm == "linf" else (0.03, -0.04)
    wanted = [[0.5 + 0.75 * moved[0], 0.5 + 0.75 * moved[1] + 0.25 * 0.04]]
    assert got.tolist()[0] == pytest.approx(wanted[0], abs=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_ball_and_box(impl, device, variant, norm):
    needs("apgd_step_", variant)
    tensors = images((6, 3, 8, 8), device=device)
    tensors[4] += 1.0
    got, x0 = step(tensors, impl, norm), tensors[2]
    assert got.min() >= 0 and got.max() <= 1
    delta = (got.double() - x0.double()).flatten(1)
    if norm == "linf":
        assert (got <= x0 + EPS[norm]).all() and (got >= x0 - EPS[norm]).all()
    else:
        assert delta.norm(dim=1).max() <= EPS[norm] * (1 + 1e-6)
        assert delta.norm(dim=1).max() > 0.8 * EPS[norm]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_best_are_kept_on_the_way(impl, device, variant, norm):
    needs("apgd_step_", variant)
    tensors = images((5, 3, 7, 9), device=device)
    x, gradient = tensors[0], tensors[3]
    improved = torch.tensor([True, False, False, True, True], device=device)
    best, best_gradient = torch.full_like(x, 7.0), torch.full_like(x, 8.0)
    got = step(tensors, impl, norm, improved=improved, best=best, best_gradient=best_gradient)
    assert torch.equal(got, step(tensors, impl, norm))
    assert torch.equal(best[improved], x[improved]) and (best[~improved] == 7).all()
    assert torch.equal(best_gradient[improved], gradient[improved])
    assert (best_gradient[~improved] == 8).all()


def test_without_momentum_the_last_iterate_is_not_read(impl, device, variant):
    needs("apgd_step_", variant)
    for norm in EPS:
        tensors = images((2, 3, 4, 5), device=device)
        tensors[1].fill_(torch.nan)
        assert step(tensors, impl, norm, momentum=1.0).isfinite().all()


def test_memory_formats(impl, device, variant):
    needs("apgd_step_", variant)
    tensors = images((4, 3, 5, 6), device=device)
    nhwc = [t.contiguous(memory_format=torch.channels_last) for t in tensors[:4]] + tensors[4:]
    for norm in EPS:
        got = apgd_step_(
            nhwc[0], nhwc[1].clone(), *nhwc[2:], momentum=0.75, eps=EPS[norm], norm=norm, impl=impl
        )
        assert got.is_contiguous(memory_format=torch.channels_last)
        assert (got - step(tensors, impl, norm)).abs().max() <= 1e-6


# --- l1 --------------------------------------------------------------------------------------------------------------


def projected(delta, x0, eps):
    """In float64, by bisection on how much the entries shrink."""
    delta, x0 = delta.double().flatten(1), x0.double().flatten(1)
    size = delta.abs()
    room = torch.where(delta > 0, 1 - x0, x0).clamp(min=0)
    low, high = torch.zeros(len(delta), 1).double(), size.amax(1, keepdim=True) + 1
    for _ in range(100):
        middle = (low + high) / 2
        over = torch.minimum((size - middle).clamp(min=0), room).sum(1, keepdim=True) > eps
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    inside = torch.minimum(size, room).sum(1, keepdim=True) <= eps
    left = torch.minimum((size - torch.where(inside, 0.0, high)).clamp(min=0), room)
    return delta.sign() * left


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [0.01, 0.3, 3.0])
def test_l1_correction_is_the_projection(impl, device, variant, scale, dtype):
    needs("l1_box_correction", variant, dtype)
    x0 = images((7, 3, 8, 8), dtype, device)[2]
    delta = torch.randn(x0.shape, dtype=torch.float64).to(device, dtype) * scale
    delta.view(-1)[::4] = 0
    for eps in (0.0, 0.7, 12.0):
        got = delta + l1_box_correction(delta, x0, eps=eps, impl=impl)
        expected = projected(delta.cpu(), x0.cpu(), eps).reshape(x0.shape)
        error = (got.double().cpu() - expected).abs().max()
        assert error <= 400 * torch.finfo(dtype).eps * max(scale, 0.1), (eps, error)
        total = got.double().flatten(1).abs().sum(1)
        assert (total <= eps + 400 * torch.finfo(dtype).eps * max(eps, scale, 0.1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_l1_step_is_the_definition(impl, device, variant, dtype):
    needs("apgd_l1_step", variant, dtype)
    x, _, x0, gradient, _ = images((9, 3, 8, 8), dtype, device)
    x = x0 + (x - x0) * 0.01
    rank = torch.tensor([0, 1, 63, 64, 65, 150, 190, 191, 191], device=device)
    size = torch.linspace(0.1, 3.0, 9, dtype=dtype, device=device)
    gradient[8] = 1.0  # all equal: all move
    got = apgd_l1_step(x, x0, gradient, size, rank, eps=2.0, impl=impl)
    expected = apgd_l1_step(x, x0, gradient, size, rank, eps=2.0, impl="reference")
    assert (got - expected).abs().max() <= 20 * torch.finfo(dtype).eps
    # The two largest moved, and none but those: the ball is not reached.
    apart = (apgd_l1_step(x, x0, gradient, size, rank, eps=99.0, impl=impl) - x).flatten(1)
    largest = gradient.flatten(1).abs().topk(2, dim=1).indices
    moved = apart[6].abs() > 1e-4
    assert set(moved.nonzero()[:, 0].tolist()) <= set(largest[6].tolist())


@pytest.mark.skipif(_backend.native() is None, reason="no native core")
def test_same_for_any_threads_and_instruction_set():
    core, threads = _backend.native(), torch.get_num_threads()
    tensors = images((37, 3, 20, 20))
    x, _, x0, gradient, size = tensors
    rank = torch.arange(37) * 30
    results = []
    try:
        for isa in ("baseline", "avx2", "avx512", ""):
            if not core.set_cpu_isa(isa):
                continue
            for count in (1, 3):
                torch.set_num_threads(count)
                steps = [step(tensors, "cpp", norm) for norm in EPS]
                results.append(
                    [*steps, apgd_l1_step(x, x0, gradient, size, rank, eps=2.0, impl="cpp")]
                )
    finally:
        core.set_cpu_isa("")
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def test_opcheck(impl, device, variant):
    needs("apgd_step_", variant)
    tensors = images((3, 2, 4), device=device)
    x = tensors[0]
    kept = (torch.ones(3, dtype=torch.bool, device=device), x.clone(), x.clone())
    for norm in EPS:
        for more in ((None, None, None), kept):
            given = (*tensors, 0.75, 0.1, norm, *more, impl)
            torch.library.opcheck(apgd_step_op, given, test_utils=CHECKS)


def test_opcheck_l1(impl, device, variant):
    needs("apgd_l1_step", variant)
    x, _, x0, gradient, size = images((3, 2, 4), device=device)
    rank = torch.tensor([0, 3, 7], device=device)
    given = (x, x0, gradient, size, rank, 0.5, impl)
    torch.library.opcheck(apgd_l1_step_op, given, test_utils=CHECKS)
    torch.library.opcheck(l1_box_correction_op, (x - x0, x0, 0.5, impl), test_utils=CHECKS)


X, X_PREV, X0, G, SIZE = images((3, 2, 4))


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"x": X.half()}, TypeError, "float32 or float64, got torch.float16"),
        ({"x": X[:, :, ::2]}, ValueError, "contiguous or channels_last"),
        ({"x0": X0[:2]}, ValueError, r"x0 must be torch.float32 of shape \(3, 2, 4\)"),
        ({"gradient": G.double()}, ValueError, "gradient must be torch.float32"),
        ({"x_prev": X.permute(0, 2, 1).contiguous().permute(0, 2, 1)}, ValueError, "memory format"),
        ({"x_prev": X}, ValueError, "x_prev and x must not share memory"),
        ({"step": SIZE[:2]}, ValueError, r"step must be torch.float32 of shape \(3,\)"),
        ({"norm": "l1"}, ValueError, "norm must be one of linf, l2, got 'l1'"),
        ({"momentum": 1.5}, ValueError, "momentum must be between 0 and 1, got 1.5"),
        ({"eps": -1.0}, ValueError, "eps must be a finite number >= 0, got -1"),
        ({"improved": SIZE > 0}, ValueError, "must be given together"),
        (
            {"improved": SIZE, "best": X.clone(), "best_gradient": X.clone()},
            ValueError,
            "improved must be torch.bool",
        ),
    ],
)
def test_bad_input_is_refused(changes, kind, message):
    given = {"x": X, "x_prev": X_PREV, "x0": X0, "gradient": G, "step": SIZE} | changes
    settings = {"momentum": 0.75, "eps": 0.1}
    before = X_PREV.clone()
    with pytest.raises(kind, match=message):
        apgd_step_(**(settings | given))
    assert torch.equal(X_PREV, before)
