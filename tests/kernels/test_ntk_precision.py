"""What the precisions of the ntk family do to numbers and to kernels: rounding bit by bit, errors by their size."""

import math
from fractions import Fraction

import pytest
import torch

from advfast import available_impls
from advfast.kernels.ntk import ntk_chain_, ntk_gram_, ntk_hadamard_, ntk_rows
from advfast.kernels.ntk.reference import round_bf16, round_tf32, rounded

from .ntk_cases import Layer, sides

INF_BITS = 0x7F800000


def float_of(bits: int) -> float:
    return torch.tensor(bits - (bits >> 31 << 32), dtype=torch.int32).view(torch.float32).item()


def nearest(value: float, mantissa: int) -> float:
    """With that many bits of mantissa and a float's exponents, ties to even, in exact arithmetic."""
    if value == 0 or math.isinf(value):
        return value
    exponent = max(math.frexp(value)[1] - 1, -126)
    step = Fraction(2) ** (exponent - mantissa)
    near = round(Fraction(value) / step) * step  # Python's round takes ties to even
    return math.copysign(math.inf if abs(near) >= 2**128 else float(near), value)


def patterns() -> torch.Tensor:
    """Bits of floats: any, and around the ties of both formats, the smallest, the largest and infinity."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(0, 1 << 32, (1500,), generator=generator)
    edges = [0, 1, 0xFFF, 0x1000, 0x1001, 0x3000, 0x7FFF, 0x8000, 0x18000, 0x7FFFFF, 0x800000]
    edges += [0x800000 + tie for tie in (0xFFF, 0x1000, 0x1001, 0x3000, 0x8000, 0x18000)]
    edges += [0x7F7FEFFF, 0x7F7FF000, 0x7F7FFFFF, 0x7F7F7FFF, 0x7F7F8000, INF_BITS]
    ties = whole[:300] & ~0x1FFF | 0x1000
    half_ties = whole[300:500] & ~0xFFFF | 0x8000
    signed = torch.cat([torch.tensor(edges), torch.tensor(edges) | 1 << 31])
    return torch.cat([signed, ties, half_ties, whole])


@pytest.mark.parametrize(
    ("function", "mantissa"), [(round_tf32, 10), (round_bf16, 7)], ids=["tf32", "bf16"]
)
def test_rounding_is_to_nearest_with_ties_to_even(function, mantissa):
    bits = patterns()
    bits = bits[(bits & 0x7FFFFFFF) <= INF_BITS]  # not NaN
    values = (bits - (bits >> 31 << 32)).to(torch.int32).view(torch.float32)
    assert values[1] == float_of(1) != 0  # subnormal numbers are not flushed
    expected = torch.tensor([nearest(v, mantissa) for v in values.tolist()])
    got = function(values)
    wrong = got.view(torch.int32) != expected.view(torch.int32)
    assert not wrong.any(), (values[wrong][:3], got[wrong][:3], expected[wrong][:3])


def test_nan_and_infinity_stay():
    bits = torch.tensor([0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0x7F801000])
    nans = torch.cat([bits.to(torch.int32), (bits - (1 << 31)).to(torch.int32)]).view(torch.float32)
    for function in (round_tf32, round_bf16):
        assert function(nans).isnan().all()
        assert function(torch.tensor([torch.inf, -torch.inf])).tolist() == [torch.inf, -torch.inf]


def truncated(t: torch.Tensor) -> torch.Tensor:
    return (t.view(torch.int32) & ~0x1FFF).view(torch.float32)


def test_rounding_does_not_shrink():
    """Truncation takes 2^-11 off a number on average, and the double off a product; rounding takes nothing."""
    a, b = torch.randn(2, 200_000).double().float()
    exact = (a.double() * b.double()).abs()

    def bias(x, y):
        return (((x.double() * y.double()).abs() - exact).sum() / exact.sum()).item()

    assert -8e-4 < bias(truncated(a), truncated(b)) < -4e-4
    for precision in ("tf32", "bf16"):
        error = 2.0**-10 if precision == "tf32" else 2.0**-7
        assert abs(bias(rounded(a, precision), rounded(b, precision))) < 0.02 * error


# A layer whose kernel has a large common part, as a network's has: activations are not negative.
LAYER = Layer((6, 6), (6, 6), padding=1, c=24, e=20, readouts=(4, 4), n=(6, 6))


def kernels(side, precision, impl="reference", device="cpu"):
    """The kernel of a layer in the three orders, as matrices."""
    if precision == "fp64":
        side = side.to(dtype=torch.float64)
    side = side.to(device, side.x.dtype)
    rows = ntk_rows(side.x, side.g, side.taps).flatten(2)
    operands = side.x, side.g, side.x, side.g, side.taps, side.taps
    size = side.g.shape[:2].numel()
    out = [torch.zeros(size, size, dtype=side.x.dtype, device=device) for _ in range(3)]
    ntk_gram_(out[0], rows, rows, precision=precision)
    if precision != "fp64":
        for op, function in (("ntk_chain_", ntk_chain_), ("ntk_hadamard_", ntk_hadamard_)):
            available = impl in available_impls(op, device)
            function(out[1 + (op == "ntk_hadamard_")], *operands, precision=precision,
                     impl=impl if available else "reference")  # fmt: skip
    return [t.double().cpu() for t in out]


# Of the Frobenius norm: the least and the most error of each order. Both matter: less than the least would mean that
# operands were not rounded.
ERRORS = {
    "fp32": ((0, 1e-6), (0, 1e-6), (0, 1e-6)),
    "bf16x3": ((2e-7, 2e-5), (2e-7, 2e-5), (2e-7, 2e-5)),
    "tf32": ((1e-6, 2e-4), (1e-6, 4e-4), (1e-6, 4e-4)),
    "bf16": ((1e-5, 2e-3), (1e-5, 4e-3), (1e-5, 4e-3)),
}


@pytest.mark.parametrize("precision", ERRORS)
def test_errors_have_the_stated_size(precision, impl, device):
    if impl == "cpp" and precision != "fp32":
        pytest.skip("it multiplies in float32 alone")
    side = sides(LAYER)[0]
    if impl == "triton" and device == "cpu":
        side = side.sample(0)  # the interpreter takes a second for ten rows and columns
    side.x = side.x.relu()
    exact = kernels(side, "fp64")[0]
    for got, (least, most) in zip(
        kernels(side, precision, impl, device), ERRORS[precision], strict=True
    ):
        error = ((got - exact).norm() / exact.norm()).item()
        assert least <= error <= most, (precision, error)
        bias = ((got - exact).trace() / exact.trace()).item()
        if precision in (
            "tf32",
            "bf16",
        ):  # bf16x3 leaves out a product that is never negative on the diagonal
            assert abs(bias) <= most / (4 if len(side.x) > 1 else 2)  # of few entries it is noise
    gram = kernels(side, precision)[0]
    if (
        precision != "bf16x3"
    ):  # the Gram matrix of rounded rows: symmetric, no eigenvalue below rounding
        assert torch.equal(gram, gram.mT)
        assert torch.linalg.eigvalsh(gram)[0] > -1e-6 * gram.trace()
