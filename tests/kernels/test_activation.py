"""The activation family against torch's own operations, and what it promises about bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advfast import _backend, available_impls
from advfast.kernels import (
    add_relu_bits_,
    affine_gate_,
    affine_relu_bits,
    gate_,
    positive_bits,
    relu_bits_,
)
from advfast.kernels.activation import ops

FORMATS = {
    "nchw": torch.contiguous_format,
    "nhwc": torch.channels_last,
    "ndhwc": torch.channels_last_3d,
}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
CPP_DTYPES = [torch.float32, torch.float16, torch.bfloat16]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Bytes that are not whole, whole groups and chunks of the loops and of the kernels, one value, none.
SIZES = [0, 1, 7, 8, 9, 15, 17, 31, 1023, 1024, 1025, 2100]
# One number a channel: positions that are a multiple of eight and not, channels likewise, one of either.
SHAPES = [
    ((5, 3), "nchw"),
    ((3, 16), "nchw"),
    ((4, 6, 9), "nchw"),
    ((2, 3, 5, 7), "nchw"),
    ((2, 3, 5, 7), "nhwc"),
    ((2, 64, 4, 4), "nchw"),
    ((2, 64, 4, 4), "nhwc"),
    ((3, 1, 3, 3), "nhwc"),
    ((2, 5, 3, 3, 2), "nchw"),
    ((1, 24, 3, 3, 2), "ndhwc"),
    ((0, 4, 2, 2), "nchw"),
]
needs_core = pytest.mark.skipif(_backend.native() is None, reason="no native core")


@pytest.fixture
def impl(variant):
    if variant[0] not in available_impls("gate_", variant[1]):
        pytest.skip("this family does not have it")
    return variant[0]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request, impl):
    if impl == "cpp" and request.param == torch.float64:
        pytest.skip("not float64")
    return request.param


def values(shape, dtype=torch.float32, device="cpu", layout="nchw", seed=0):
    """Random numbers, with special ones among them."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    flat, tiny = t.view(-1), torch.finfo(dtype).smallest_normal / 4
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, tiny, -tiny]).to(dtype)
    if flat.numel() > 20:
        flat[torch.randperm(flat.numel(), generator=generator)[: len(special)]] = special
    return t.contiguous(memory_format=FORMATS[layout]).to(device)


def in_memory(t):
    """The values in the order of memory."""
    order = sorted(range(t.dim()), key=lambda i: (-t.stride(i), i))
    return t.permute(order).reshape(-1)


def packed(condition):
    """ceil(N / 8) bytes, by arithmetic on a list."""
    each = in_memory(condition).tolist()
    return [
        sum(bit << i for i, bit in enumerate(each[start : start + 8]))
        for start in range(0, len(each), 8)
    ]


def agree(got, expected):
    """Equal to the bit, one NaN like another."""
    assert got.shape == expected.shape and got.dtype == expected.dtype
    nan = expected.isnan()
    view = INTEGERS[got.element_size()]
    a, b = (torch.where(nan, 0.0, t).contiguous().view(view) for t in (got, expected))
    return torch.equal(got.isnan(), nan) and torch.equal(a, b)


@pytest.mark.parametrize("size", SIZES)
def test_relu_and_its_backward_pass(impl, device, dtype, size):
    x = values(size, dtype, device)
    expected = torch.relu(x)
    y = x.clone()
    bits = relu_bits_(y, impl=impl)
    assert agree(y, expected)
    assert bits.dtype == torch.uint8 and bits.tolist() == packed(~(expected <= 0))
    assert torch.equal(positive_bits(y, impl=impl), bits)
    assert agree(y, expected)  # only read
    grad = values(size, dtype, device, seed=1)
    wanted = torch.ops.aten.threshold_backward(grad, expected, 0)
    got = gate_(grad, bits, impl=impl)
    assert got is grad and agree(grad, wanted)


@pytest.mark.parametrize("size", SIZES)
def test_sums_at_the_end_of_a_block(impl, device, dtype, size):
    x, other = values(size, dtype, device), values(size, dtype, device, seed=2)
    expected = torch.relu(x + other)
    y, kept = x.clone(), other.clone()
    bits = add_relu_bits_(y, other, impl=impl)
    assert agree(y, expected) and bits.tolist() == packed(~(expected <= 0))
    assert agree(other, kept)
    grad, more = values(size, dtype, device, seed=3), values(size, dtype, device, seed=4)
    wanted = torch.ops.aten.threshold_backward(grad + more, expected, 0)
    assert agree(gate_(grad, bits, more, impl=impl), wanted)


def numbers(channels, dtype, device, seed):
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return torch.randn(channels, generator=generator, dtype=wide).to(device)


@pytest.mark.parametrize(("shape", "layout"), SHAPES, ids=str)
def test_affine(impl, device, dtype, shape, layout):
    x = values(shape, dtype, device, layout)
    scale, shift = (numbers(shape[1], dtype, device, seed) for seed in (1, 2))
    per_channel = (1, -1, *[1] * (x.dim() - 2))
    before = x.clone()
    y, bits = affine_relu_bits(x, scale, shift, impl=impl)
    product = x.to(scale.dtype) * scale.view(per_channel)
    expected = torch.relu(product + shift.view(per_channel)).to(dtype)
    assert agree(y, expected) and y.stride() == x.stride() and agree(x, before)
    assert bits.tolist() == packed(~(y <= 0))
    other = values(shape, dtype, device, layout, seed=4)
    for more in (None, other):
        grad = values(shape, dtype, device, layout, seed=3)
        wanted = torch.where(y <= 0, 0, grad).to(scale.dtype) * scale.view(per_channel)
        wanted = wanted if more is None else wanted + more
        got = affine_gate_(grad, bits, scale, more, impl=impl)
        assert got is grad and agree(grad, wanted.to(dtype))


def test_is_batch_norm_and_relu(impl, device):
    """In eval mode, with a skip connection from before the BatchNorm: against autograd."""
    x = torch.randn(3, 6, 5, 4, device=device).requires_grad_()
    norm = torch.nn.BatchNorm2d(6).to(device).eval()
    with torch.no_grad():
        for t in (norm.weight, norm.bias, norm.running_mean):
            t.normal_()
        norm.running_var.uniform_(0.5, 2)
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
    out = torch.relu(norm(x))
    grad, skip = torch.randn_like(out), torch.randn_like(out)
    (expected,) = torch.autograd.grad([out, x * 1], x, [grad, skip])
    y, bits = affine_relu_bits(x.detach(), scale, shift, impl=impl)
    torch.testing.assert_close(y, out.detach())
    torch.testing.assert_close(affine_gate_(grad, bits, scale, skip, impl=impl), expected)


def test_nothing_gets_through_a_closed_gate(impl, device, dtype):
    bits = torch.zeros(3, dtype=torch.uint8, device=device)
    zero = torch.zeros(20, dtype=dtype, device=device)
    for value in (torch.nan, torch.inf, -1.0):
        grad, other = torch.full((2, 20), value, dtype=dtype, device=device).unbind()
        assert agree(gate_(grad, bits, impl=impl), zero)
        grad.fill_(value)
        assert agree(gate_(grad, bits, other, impl=impl), zero)


def test_what_rounds_to_zero_is_zero(impl, device, dtype):
    """The bits are those of the rounded y, and what is negative before it is rounded is not -0.0."""
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    x = torch.full((1, 40), smallest, dtype=dtype, device=device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for sign in (1, -1):
        scale = torch.full((40,), sign * 0.25, dtype=wide, device=device)
        y, bits = affine_relu_bits(x, scale, torch.zeros_like(scale), impl=impl)
        assert agree(y, torch.relu(x * scale + 0.0).to(dtype))
        assert bits.tolist() == packed(~(y <= 0))
    if wide != dtype:
        assert (y == 0).all() and not bits.any()


def test_one_tensor_may_be_both(impl, device, dtype):
    for size in (50, 1100):
        x, bits = values(size, dtype, device), torch.full(((size + 7) // 8,), 0xA5)
        bits = bits.to(device, torch.uint8)
        y, grad = x.clone(), x.clone()
        add_relu_bits_(y, y, impl=impl)
        assert agree(y, torch.relu(x + x))
        gate_(grad, bits, grad, impl=impl)
        assert agree(grad, gate_(x.clone(), bits, x, impl="reference"))
        grad, scale = x.clone().view(-1, 5), numbers(5, dtype, device, 1)
        expected = affine_gate_(grad.clone(), bits, scale, grad, impl="reference")
        assert agree(affine_gate_(grad, bits, scale, grad, impl=impl), expected)


@pytest.mark.parametrize("first", [1, 2, 4])
def test_views_and_their_surroundings(impl, device, dtype, first):
    """Memory that is not aligned; nothing beside it is written."""
    for size in (3, 8, 61, 1300):
        memory = torch.full((size + first + 5,), 77.0, dtype=dtype, device=device)
        memory[first : first + size] = values(size, dtype, device)
        y, other = memory[first : first + size], values(size + 1, dtype, device, seed=1)[1:]
        expected = torch.relu(y + other)
        bits = add_relu_bits_(y, other, impl=impl)
        assert agree(y, expected)
        expected = torch.where(~(expected <= 0), y, 0.0)
        gate_(y, bits, impl=impl)
        assert agree(y, expected)
        assert (memory[:first] == 77).all() and (memory[first + size :] == 77).all()


def test_any_dense_order(impl, device):
    """Values one by one do not care for the order of the dimensions, as long as the operands agree."""
    x, other = (torch.randn(3, 4, 5, 6, device=device).permute(3, 1, 0, 2) for _ in "xo")
    expected = torch.relu(x + other)
    bits = add_relu_bits_(x, other, impl=impl)
    assert torch.equal(x, expected) and bits.tolist() == packed(~(expected <= 0))
    grad = torch.randn(3, 4, 5, 6, device=device).permute(3, 1, 0, 2)
    wanted = torch.where(~(expected <= 0), grad, 0.0)
    assert torch.equal(gate_(grad, bits, impl=impl), wanted)


def test_strides_of_single_positions_do_not_matter(impl, device):
    """[B, C, 1, 1] is NCHW and NHWC at once, whatever its strides say."""
    y = torch.randn(3, 5, 1, 1, device=device)
    other = torch.randn(3, 5, 1, 1, device=device).to(memory_format=torch.channels_last)
    other = other.as_strided(other.shape, (5, 1, 5, 5))
    expected = torch.relu(y + other)
    add_relu_bits_(y, other, impl=impl)
    assert torch.equal(y, expected)


@needs_core
@settings(deadline=None, max_examples=100)
@given(
    batch=st.integers(0, 4),
    channels=st.integers(1, 40),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    layout=st.sampled_from(["nchw", "nhwc"]),
    dtype=st.sampled_from(CPP_DTYPES),
    seed=st.integers(0, 9),
)
def test_cpp_equals_the_definition(batch, channels, height, width, layout, dtype, seed):
    shape = (batch, channels, height, width)
    x, other = (values(shape, dtype, layout=layout, seed=seed + i) for i in (0, 1))
    scale, shift = (numbers(channels, x.dtype, "cpu", seed + i) for i in (2, 3))
    results = []
    for impl in ("reference", "cpp"):
        y = x.clone()
        bits = add_relu_bits_(y, other, impl=impl)
        gated = gate_(other.clone(), bits, x, impl=impl)
        z, z_bits = affine_relu_bits(x, scale, shift, impl=impl)
        back = affine_gate_(other.clone(), z_bits, scale, x, impl=impl)
        results.append((y, gated, z, back, bits, z_bits))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b) if a.dtype == torch.uint8 else agree(a, b)


EVERY_PATTERN = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)


@needs_core
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_16_bit_number(dtype, isa):
    """ReLU, gate and products of each one, with rounding both ways, on each instruction set."""
    core = _backend.native()
    x = EVERY_PATTERN.view(dtype)
    other = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    scale, shift = torch.tensor([1 / 3, -1.0, 1e-6, 257.0]), torch.tensor([0.0, 2e-8, 0.0, -1e-40])
    if not core.set_cpu_isa(isa):
        pytest.skip("this machine lacks it")
    results = []
    try:
        for impl in ("reference", "cpp"):
            y, total = x.clone(), x.clone()
            bits = relu_bits_(y, impl=impl)
            sum_bits = add_relu_bits_(total, other, impl=impl)
            gated = gate_(x.clone(), sum_bits, impl=impl)
            z, z_bits = affine_relu_bits(x.view(-1, 4, 8), scale, shift, impl=impl)
            back = affine_gate_(x.clone().view(-1, 4, 8), bits, scale, impl=impl)
            results.append((y, total, gated, z, back, bits, sum_bits, z_bits))
    finally:
        core.set_cpu_isa("")
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b) if a.dtype == torch.uint8 else agree(a, b)


@needs_core
@pytest.mark.parametrize("dtype", CPP_DTYPES, ids=str)
def test_same_bits_for_any_threads_and_instruction_set(dtype):
    core, threads = _backend.native(), torch.get_num_threads()
    shape = (5, 12, 40, 41)  # enough for several threads, and no multiple of anything
    x, other = values(shape, dtype), values(shape, dtype, seed=1)
    scale, shift = (numbers(12, x.dtype, "cpu", seed) for seed in (2, 3))

    def run():
        y = x.clone()
        bits = add_relu_bits_(y, other, impl="cpp")
        z, z_bits = affine_relu_bits(x, scale, shift, impl="cpp")
        gated = gate_(other.clone(), bits, x, impl="cpp")
        back = affine_gate_(other.clone(), z_bits, scale, x, impl="cpp")
        positive = positive_bits(z, impl="cpp")
        assert torch.equal(positive, z_bits)
        return y, z, gated, back, bits, z_bits

    expected = run()
    try:
        for isa in ("baseline", "avx2", "avx512", ""):
            if not core.set_cpu_isa(isa):
                continue
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                for a, b in zip(run(), expected, strict=True):
                    assert torch.equal(a, b) if a.dtype == torch.uint8 else agree(a, b), isa
    finally:
        core.set_cpu_isa("")
        torch.set_num_threads(threads)


# --- as torch sees them ----------------------------------------------------------------------------------------------


def calls(device):
    """Arguments but for impl."""
    x, other = torch.randn(2, 2, 3, 5, 4, device=device).unbind()
    bits = positive_bits(x, impl="reference")
    number = torch.rand(3, device=device)
    return {
        "relu_bits_": (x, ),
        "positive_bits": (x, ),
        "add_relu_bits_": (x, other),
        "gate_": (x, bits, other),
        "affine_relu_bits": (x, number, number),
        "affine_gate_": (x, bits, number, other),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(calls("cpu")))
def test_opcheck(impl, device, name):
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    op = getattr(torch.ops.advfast, name).default
    torch.library.opcheck(
        op, (*calls(device)[name], impl), test_utils=(*checks, "test_aot_dispatch_dynamic")
    )
    if name.endswith("gate_"):
        *rest, _other = calls(device)[name]
        torch.library.opcheck(op, (*rest, None, impl), test_utils=checks)


def all_of_them(x, other, scale, shift, impl):
    y = x * 1
    bits = add_relu_bits_(y, other, impl=impl)
    z, z_bits = affine_relu_bits(y, scale, shift, impl=impl)
    grad = affine_gate_(z * 2, z_bits, scale, y, impl=impl)
    return (
        gate_(grad + 1, bits, impl=impl),
        relu_bits_(grad, impl=impl),
        positive_bits(z, impl=impl),
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_fullgraph_equals_eager(impl, device, dynamic):
    torch.compiler.reset()
    compiled = torch.compile(all_of_them, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in ((3, 4, 5, 7), (2, 6, 3, 8)):
        x, other = values(shape, device=device), values(shape, device=device, seed=1)
        scale, shift = (numbers(shape[1], x.dtype, device, seed) for seed in (2, 3))
        eager = all_of_them(x, other, scale, shift, impl)
        for a, b in zip(compiled(x, other, scale, shift, impl), eager, strict=True):
            assert torch.equal(a, b) if a.dtype == torch.uint8 else agree(a, b)


def test_in_place_change_is_noticed_by_autograd(impl, device):
    for name, arguments in calls(device).items():
        before = arguments[0]._version
        getattr(ops, f"_{name}")(*arguments, impl)
        assert (arguments[0]._version > before) == name.endswith("_"), name
    with torch.inference_mode():
        x = torch.randn(9, device=device)
        gate_(x, relu_bits_(x, impl=impl), impl=impl)


def test_auto_finds_an_implementation_for_every_dtype():
    for dtype in DTYPES:
        y = values(20, dtype)
        expected = torch.relu(y)
        relu_bits_(y)
        assert agree(y, expected)
    with pytest.raises(RuntimeError, match=r"bfloat16 and float16 tensors|no native core"):
        relu_bits_(torch.ones(3, dtype=torch.float64), impl="cpp")
    with pytest.raises(RuntimeError, match="it is not made for this op"):
        gate_(torch.ones(3), torch.ones(1, dtype=torch.uint8), impl="cuda")


# --- bad input -------------------------------------------------------------------------------------------------------

X = torch.rand(2, 3, 4, 5)
NHWC = X.contiguous(memory_format=torch.channels_last)
BITS = torch.zeros(15, dtype=torch.uint8)
THREE = torch.ones(3)
WIDE = torch.rand(2, 3, 4, 10)[..., ::2]
REJECTED = {
    "integers": (lambda: relu_bits_(torch.ones(3, dtype=torch.int64)), TypeError, "float tensor"),
    "gaps": (lambda: positive_bits(WIDE), ValueError, "dense in memory"),
    "expanded": (lambda: relu_bits_(torch.ones(1).expand(4)), ValueError, "dense in memory"),
    "gradient": (lambda: relu_bits_(X.clone().requires_grad_()), ValueError, "requires grad"),
    "other shape": (lambda: add_relu_bits_(X, X[:1]), ValueError, "other must be torch.float32 of"),
    "other dtype": (lambda: add_relu_bits_(X, X.half()), ValueError, "got torch.float16"),
    "other order": (lambda: add_relu_bits_(X, NHWC), ValueError, r"strides \(60, 20, 5, 1\) of y"),
    "gate order": (lambda: gate_(NHWC, BITS, X), ValueError, "must have the strides"),
    "bits dtype": (lambda: gate_(X, BITS.bool()), ValueError, "got torch.bool"),
    "bits size": (lambda: gate_(X, BITS[:14]), ValueError, r"of shape \(15,\)"),
    "bits gaps": (lambda: gate_(X, torch.zeros(30, dtype=torch.uint8)[::2]), ValueError, "contig"),
    "channels": (
        lambda: affine_relu_bits(X, THREE, THREE[:2]),
        ValueError,
        r"shift must be .*\(3,",
    ),
    "scale dtype": (lambda: affine_relu_bits(X, THREE.double(), THREE), ValueError, "float64 of"),
    "scale 16-bit": (
        lambda: affine_relu_bits(X.half(), THREE.half(), THREE),
        ValueError,
        "scale must be torch.float32",
    ),
    "scale gradient": (
        lambda: affine_gate_(X, BITS, THREE.clone().requires_grad_()),
        ValueError,
        "scale requires grad",
    ),
    "one dimension": (lambda: affine_relu_bits(THREE, THREE, THREE), ValueError, "2 to 5"),
    "permuted": (
        lambda: affine_relu_bits(X.permute(0, 1, 3, 2), THREE, THREE),
        ValueError,
        "contiguous or channels_last",
    ),
    "impl": (lambda: relu_bits_(X, impl="fast"), ValueError, "impl must be one of"),
}


@pytest.mark.parametrize("name", list(REJECTED))
def test_bad_input_is_refused(name):
    call, kind, message = REJECTED[name]
    before = X.clone()
    with pytest.raises(kind, match=message):
        call()
    assert torch.equal(X, before)


def test_shifted_overlap_is_refused(impl, device):
    memory = torch.ones(40, device=device)
    with pytest.raises(ValueError, match="must not overlap"):
        add_relu_bits_(memory[:32], memory[4:36], impl=impl)
    bits = torch.zeros(4, dtype=torch.uint8, device=device)
    with pytest.raises(ValueError, match="must not overlap"):
        gate_(memory[4:36], bits, memory[:32], impl=impl)
    assert (memory == 1).all()
