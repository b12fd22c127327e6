"""conv2d_input_grad against autograd in float64, and what it promises about bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advfast import _backend
from advfast.kernels import conv2d_input_grad

IMPLS = [
    "reference",
    pytest.param(
        "cpp", marks=pytest.mark.skipif(_backend.native() is None, reason="no native core")
    ),
]

# batch, channels, outputs, (H, W), kernel, stride, padding
SHAPES = [
    (5, 1, 16, (28, 28), (4, 4), (2, 2), (1, 1)),
    (3, 3, 64, (32, 32), (3, 3), (1, 1), (1, 1)),
    (2, 3, 8, (37, 41), (7, 7), (2, 2), (3, 3)),
    (2, 3, 12, (32, 32), (4, 4), (4, 4), (0, 0)),  # a ViT's patches
    (2, 1, 5, (9, 20), (3, 5), (1, 2), (0, 2)),
    (2, 4, 7, (10, 33), (5, 2), (3, 1), (4, 1)),
    (1, 2, 1, (6, 50), (1, 1), (3, 3), (0, 0)),  # pixels that no output reads
    (2, 1, 3, (3, 3), (3, 3), (1, 1), (0, 0)),  # one position
]


def problem(shape, seed=0, layout=torch.contiguous_format):
    batch, channels, outputs, size, kernel, stride, padding = shape
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(batch, channels, *size, generator=generator)
    weight = torch.randn(outputs, channels, *kernel, generator=generator)
    out = torch.conv2d(image, weight, stride=stride, padding=padding)
    grad = torch.randn(out.shape, generator=generator).contiguous(memory_format=layout)
    return grad, weight, size, {"stride": stride, "padding": padding}


def exact(grad, weight, size, *, stride, padding):
    image = torch.zeros(len(grad), weight.shape[1], *size, dtype=torch.float64, requires_grad=True)
    out = torch.conv2d(image, weight.double(), stride=stride, padding=padding)
    return torch.autograd.grad(out, image, grad.double())[0]


def bound(grad, weight, size, **arguments):
    """Of the rounding error: terms times unit roundoff times the sum of their sizes."""
    terms = weight.shape[0] * weight.shape[2:].numel()
    return terms * 2**-23 * exact(grad.abs(), weight.abs(), size, **arguments) + 1e-30


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_gradient(shape, layout, impl):
    grad, weight, size, arguments = problem(shape, layout=layout)
    got = conv2d_input_grad(grad, weight, size, **arguments, impl=impl)
    wanted = exact(grad, weight, size, **arguments)
    assert got.shape == wanted.shape
    if not grad.is_contiguous():
        assert got.is_contiguous(memory_format=torch.channels_last)
    else:
        assert got.is_contiguous()
    assert ((got - wanted).abs() <= bound(grad, weight, size, **arguments)).all()


@pytest.mark.skipif(_backend.native() is None, reason="no native core")
@settings(deadline=None, max_examples=200)
@given(
    data=st.data(),
    batch=st.integers(0, 3),
    channels=st.integers(1, 4),
    outputs=st.integers(1, 20),
    nhwc=st.booleans(),
)
def test_any_shape(data, batch, channels, outputs, nhwc):
    kernel = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = data.draw(st.tuples(st.integers(0, 6), st.integers(0, 6)))
    size = tuple(
        data.draw(st.integers(max(1, k - 2 * p), 40)) for k, p in zip(kernel, padding, strict=True)
    )
    layout = torch.channels_last if nhwc else torch.contiguous_format
    shape = batch, channels, outputs, size, kernel, stride, padding
    grad, weight, size, arguments = problem(shape, layout=layout)
    got = conv2d_input_grad(grad, weight, size, **arguments, impl="cpp")
    wanted = exact(grad, weight, size, **arguments)
    assert got.shape == wanted.shape
    assert ((got - wanted).abs() <= bound(grad, weight, size, **arguments)).all()


@pytest.mark.skipif(_backend.native() is None, reason="no native core")
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_same_bits_for_any_threads_instruction_set_layout_and_batch(shape):
    core, threads = _backend.native(), torch.get_num_threads()
    shape = (64, *shape[1:])  # enough work for several threads
    grad, weight, size, arguments = problem(shape)
    first = conv2d_input_grad(grad, weight, size, **arguments, impl="cpp")
    nhwc = grad.contiguous(memory_format=torch.channels_last)
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(
                conv2d_input_grad(grad, weight, size, **arguments, impl="cpp"), first
            )
        for isa in ("baseline", "avx2", "avx512"):
            if core.set_cpu_isa(isa):
                for part in (grad, nhwc):
                    got = conv2d_input_grad(part, weight, size, **arguments, impl="cpp")
                    assert torch.equal(got, first), isa
    finally:
        core.set_cpu_isa("")
        torch.set_num_threads(threads)
    alone = conv2d_input_grad(grad[7:8], weight, size, **arguments, impl="cpp")
    assert torch.equal(alone[0], first[7])


@pytest.mark.parametrize("impl", IMPLS)
def test_what_is_not_finite_stays_where_it_is(impl):
    grad, weight, size, arguments = problem(SHAPES[1])
    grad[1, 4, 10, 10] = torch.nan
    got = conv2d_input_grad(grad, weight, size, **arguments, impl=impl)
    assert got[1, :, 9:12, 9:12].isnan().all()
    assert got.isnan().sum() == 27


@pytest.mark.parametrize("impl", IMPLS)
def test_views(impl):
    grad, weight, size, arguments = problem(SHAPES[0])
    wide = torch.randn(5, 32, *grad.shape[2:])
    wide[:, ::2] = grad
    turned = weight.transpose(2, 3).contiguous().transpose(2, 3)
    got = conv2d_input_grad(wide[:, ::2], turned, size, **arguments, impl=impl)
    wanted = conv2d_input_grad(grad, weight, size, **arguments, impl=impl)
    torch.testing.assert_close(got, wanted)


def test_auto_takes_float64_to_the_reference():
    grad, weight, size, arguments = problem(SHAPES[0])
    got = conv2d_input_grad(grad.double(), weight.double(), size, **arguments)
    torch.testing.assert_close(got, exact(grad, weight, size, **arguments))
    with pytest.raises(RuntimeError, match=r"float32 tensors \(others: reference\)|no native core"):
        conv2d_input_grad(grad.double(), weight.double(), size, **arguments, impl="cpp")
    for impl in ("cuda", "triton"):
        with pytest.raises(RuntimeError, match="it is not made for this op"):
            conv2d_input_grad(grad, weight, size, **arguments, impl=impl)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grad": torch.rand(5, 15, 14, 14)}, r"grad must be \[B, O, H', W'\] and weight"),
        ({"grad": torch.rand(16, 14, 14)}, "grad must be"),
        ({"size": (28, 30)}, r"gives outputs of \(14, 15\), grad has \(14, 14\)"),
        ({"stride": (0, 2)}, "stride must be two integers >= 1"),
        ({"padding": (1, -1)}, "padding must be two integers >= 0"),
        ({"size": (28,)}, "size must be two integers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input(change, message):
    grad, weight, size, arguments = problem(SHAPES[0])
    given = {"grad": grad, "weight": weight, "size": size, **arguments} | change
    with pytest.raises(ValueError, match=message):
        conv2d_input_grad(given.pop("grad"), given.pop("weight"), given.pop("size"), **given)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_opcheck(layout):
    grad, weight, size, arguments = problem(SHAPES[0], layout=layout)
    stride, padding = list(arguments["stride"]), list(arguments["padding"])
    torch.library.opcheck(
        torch.ops.advfast.conv2d_input_grad.default,
        (grad, weight, list(size), stride, padding, "auto"),
        test_utils=("test_schema", "test_faketensor"),
    )
