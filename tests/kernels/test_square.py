"""square_window and square_accept_: bit-equal on every implementation, in both memory orders."""

import pytest
import torch

from advfast import _backend
from advfast.kernels import square_accept_, square_window
from advfast.kernels.square.ops import square_accept_op, square_window_op

SHAPES = [((3, 2, 5, 7), (2, 3)), ((1, 1, 1, 9), (1, 4)), ((4, 3, 6, 6), (6, 6)), ((2, 5, 4, 3), (1, 1))]  # fmt: skip


def case(shape, window, dtype, nhwc, device, eps=0.1):
    n, channels, height, width = shape
    x0 = torch.rand(shape, dtype=dtype)
    best = torch.clamp(x0 + eps * torch.randn(shape, dtype=dtype).sign(), 0.0, 1.0)
    places = torch.stack(
        [torch.randint(0, room + 1, (n,)) for room in (height - window[0], width - window[1])], 1
    )
    signs = torch.randint(0, 2, (n, channels)).to(dtype) * 2 - 1
    order = torch.channels_last if nhwc else torch.contiguous_format
    best, x0 = (t.to(device).contiguous(memory_format=order) for t in (best, x0))
    return best, x0, places.to(device), signs.to(device)


def by_hand(best, x0, places, signs, eps, window):
    """Sample by sample, in the published order of operations."""
    expected = best.clone()
    for i, (top, left) in enumerate(places.tolist()):
        part = (i, slice(None), slice(top, top + window[0]), slice(left, left + window[1]))
        moved = best[part] + 2.0 * eps * signs[i][:, None, None]
        moved = torch.min(torch.max(moved, x0[part] - eps), x0[part] + eps)
        expected[part] = torch.clamp(moved, 0.0, 1.0)
    return expected


def dtypes(impl):
    return (torch.float32,) if impl == "triton" else (torch.float32, torch.float64)


@pytest.mark.parametrize("nhwc", [False, True])
@pytest.mark.parametrize(("shape", "window"), SHAPES)
def test_the_window_moves_and_nothing_else(impl, device, shape, window, nhwc):
    for dtype in dtypes(impl):
        best, x0, places, signs = case(shape, window, dtype, nhwc, device)
        got = square_window(best, x0, places, signs, eps=0.1, window=window, impl=impl)
        assert torch.equal(got, by_hand(best, x0, places, signs, 0.1, window))
        assert got.stride() == best.stride() and got.data_ptr() != best.data_ptr()
        assert not torch.equal(got, best)


@pytest.mark.parametrize("nhwc", [False, True])
@pytest.mark.parametrize(("shape", "window"), SHAPES)
def test_rows_that_improved_are_taken_over(impl, device, shape, window, nhwc):
    for dtype in dtypes(impl):
        best, x0, places, signs = case(shape, window, dtype, nhwc, device)
        candidate = square_window(best, x0, places, signs, eps=0.1, window=window, impl=impl)
        improved = torch.arange(shape[0], device=device) % 2 == 0
        expected = torch.where(improved[:, None, None, None], candidate, best)
        # What is outside the window is not read.
        inside = by_hand(torch.zeros_like(best), torch.ones_like(x0), places, signs, 9.0, window)
        inside = inside + by_hand(torch.zeros_like(best), torch.ones_like(x0), places, -signs, 9.0, window)  # fmt: skip
        candidate = torch.where(inside > 0, candidate, torch.nan)
        square_accept_(best, candidate, improved, places, window=window, impl=impl)
        assert torch.equal(best, expected)


def test_windows_that_leave_the_image_are_cut_off(impl, device):
    best, x0, _, signs = case((2, 1, 4, 4), (3, 3), torch.float32, False, device)
    places = torch.tensor([[-1, 2], [3, -2]], device=device)
    keywords = {"eps": 0.1, "window": (3, 3)}
    expected = square_window(best.cpu(), x0.cpu(), places.cpu(), signs.cpu(), **keywords, impl="reference")  # fmt: skip
    got = square_window(best, x0, places, signs, **keywords, impl=impl)
    assert torch.equal(got.cpu(), expected)
    moved = (got != best)[:, 0]
    assert not moved[0, 2:].any() and not moved[0, :, :2].any() and not moved[1, :3].any()


@pytest.mark.skipif(_backend.native() is None, reason="no native core")
def test_same_for_any_threads_and_instruction_set():
    core, threads = _backend.native(), torch.get_num_threads()
    best, x0, places, signs = case((37, 3, 31, 29), (5, 7), torch.float32, False, "cpu")
    keywords = {"eps": 0.1, "window": (5, 7)}
    expected = square_window(best, x0, places, signs, **keywords, impl="reference")
    try:
        for isa in ("baseline", "avx2", "avx512", ""):
            if not core.set_cpu_isa(isa):
                continue
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                got = square_window(best, x0, places, signs, **keywords, impl="cpp")
                assert torch.equal(got, expected), isa
    finally:
        core.set_cpu_isa("")
        torch.set_num_threads(threads)


def test_opcheck(impl, device):
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    best, x0, places, signs = case((2, 2, 4, 5), (2, 3), torch.float32, False, device)
    torch.library.opcheck(
        square_window_op, (best, x0, places, signs, 0.1, 2, 3, impl), test_utils=checks
    )
    improved = torch.tensor([True, False], device=device)
    torch.library.opcheck(
        square_accept_op, (best, x0, improved, places, 2, 3, impl), test_utils=checks
    )


def test_bad_input_is_refused():
    best, x0, places, signs = case((2, 2, 4, 5), (2, 3), torch.float32, False, "cpu")
    good = {"best": best, "x0": x0, "places": places, "signs": signs, "eps": 0.1, "window": (2, 3)}
    for changed, kind, message in (
        ({"best": best.half()}, TypeError, "float32 or float64, got torch.float16"),
        ({"best": best[:, :, ::2]}, ValueError, "no hidden copy"),
        ({"best": best[0]}, ValueError, r"\[n, C, H, W\]"),
        ({"x0": x0[:1]}, ValueError, "x0 must be .* like best"),
        ({"x0": x0.contiguous(memory_format=torch.channels_last)}, ValueError, "memory format"),
        ({"places": places.int()}, ValueError, "places must be torch.int64"),
        ({"signs": signs[:, :1]}, ValueError, "signs must be"),
        ({"window": (5, 3)}, ValueError, r"1 to H = 4 rows .* got \(5, 3\)"),
        ({"window": (2, 0)}, ValueError, "window must be"),
        ({"eps": float("nan")}, ValueError, "finite"),
    ):
        with pytest.raises(kind, match=message):
            square_window(**good | changed)
    with pytest.raises(ValueError, match="improved must be"):
        square_accept_(best, x0, torch.ones(2), places, window=(2, 3))
    with pytest.raises(ValueError, match="must not share memory"):
        square_accept_(best, best, torch.ones(2) > 0, places, window=(2, 3))
