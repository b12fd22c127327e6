"""What only the Triton implementation has: its own Philox and divisions, and its table of specialisations.

Runs with TRITON_INTERPRET=1 in the environment, or on a GPU.
"""

import itertools

import numpy as np
import pytest
import torch

from advfast import _backend
from advfast.kernels import pgd_step_, project_, random_start

if _backend.triton_version() is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if not (_backend.triton_interprets() or torch.cuda.is_available()):
    pytest.skip("needs TRITON_INTERPRET=1 or a GPU", allow_module_level=True)

import triton
import triton.language as tl

from advfast.kernels.pgd import triton as implementation

from .cases import Case, make, norm_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NORMS = ("linf", "l2", "l1")
LAYOUTS = ("nchw", "nhwc")
ONES = 0xFFFFFFFF


def both(case: Case) -> list[dict]:
    """The arguments after a step by the definition and by Triton."""
    results = []
    for impl in ("reference", "triton"):
        arguments = make(case, DEVICE)
        pgd_step_(**arguments, impl=impl)
        results.append(arguments)
    return results


def check(case: Case) -> None:
    expected, got = both(case)
    assert torch.equal(got["nonfinite"], expected["nonfinite"]), case
    if case.norm == "linf":
        assert torch.equal(got["x"], expected["x"]), case
        assert case.out_dtype is None or torch.equal(got["out"], expected["out"]), case
        return
    scale = max(1.0, expected["x"].abs().max().item())
    assert (got["x"] - expected["x"]).abs().max() <= 1e-6 * scale, case
    if case.out_dtype is not None:
        step = torch.finfo(case.out_dtype).eps
        difference = (got["out"].double() - expected["out"].double()).abs().max()
        assert difference <= (2 * step + 2e-6) * max(1.0, expected["out"].abs().max().item()), case


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("grad_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_dtype_and_layout(norm, grad_dtype, layout):
    eps, alpha = (8 / 255, 2 / 255) if norm == "linf" else (0.5, 0.3)
    for seed, (out_dtype, out_layout) in enumerate(itertools.product((None, *FLOATS), LAYOUTS)):
        for affine in (False, True) if out_dtype else (False,):
            check(
                Case(
                    shape=(2, 3, 4, 5), norm=norm, eps=eps, alpha=alpha, layout=layout, seed=seed,
                    grad_dtype=grad_dtype, out_dtype=out_dtype, out_layout=out_layout,
                    affine=affine, specials=3 if norm == "linf" else 0,
                )
            )  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("operands", ["number", "sample", "channel", "full"])
@pytest.mark.parametrize("mask", [False, True])
def test_every_kind_of_operand(norm, operands, mask):
    for seed, layout in enumerate(LAYOUTS * 2):
        check(
            Case(
                shape=(3, 4, 3, 7), norm=norm, eps=0.2, alpha=0.1, operands=operands, mask=mask,
                layout=layout, seed=seed, l2_order=("ball-box", "box-ball-box")[seed // 2],
            )
        )  # fmt: skip


@pytest.mark.parametrize(
    "shape", [(1, 1), (1,), (7,), (1, 1025), (3, 5, 1), (2, 3, 19, 37), (9, 1, 2, 2, 3)]
)
def test_sizes_around_the_blocks(shape):
    for norm in NORMS:
        check(Case(shape=shape, norm=norm, eps=0.1, alpha=0.05, mask=True, out_dtype=torch.float16))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_random_start_is_the_definition(norm, layout):
    x0 = make(Case(shape=(3, 3, 5, 7), layout=layout), DEVICE)["x0"]
    ids = torch.tensor([5, 2**40 + 1, 0], device=DEVICE)
    for eps, sample_ids in ((0.3, None), (torch.rand(3, 1, 1, 1, device=DEVICE), ids)):
        keywords = {"eps": eps, "norm": norm, "seed": -(2**62), "offset": ONES}
        keywords |= {"sample_ids": sample_ids, "bounds": (None, 0.9)}
        expected = random_start(x0, **keywords, impl="reference")
        got = random_start(x0, **keywords, impl="triton")
        assert got.stride() == x0.stride()
        if norm == "linf":
            assert torch.equal(got, expected)
        else:
            assert norm_of(got.double() - expected.double(), norm).max() <= 1e-5 * 0.3


def test_random_start_per_channel_eps():
    x0 = make(Case(shape=(2, 3, 4, 4)), DEVICE)["x0"]
    eps = torch.tensor([0.1, 0.0, 0.3], device=DEVICE).reshape(1, 3, 1, 1)
    a, b = (random_start(x0, eps=eps, seed=3, impl=impl) for impl in ("reference", "triton"))
    assert torch.equal(a, b) and torch.equal(b[:, 1], x0[:, 1])


@triton.jit
def _philox(words, counter):
    """words [4] of counter [6]: four words of the counter and two of the key."""
    c0, c1 = tl.load(counter).to(tl.uint32), tl.load(counter + 1).to(tl.uint32)
    c2, c3 = tl.load(counter + 2).to(tl.uint32), tl.load(counter + 3).to(tl.uint32)
    k0, k1 = tl.load(counter + 4).to(tl.uint32), tl.load(counter + 5).to(tl.uint32)
    w0, w1, w2, w3 = implementation.philox(c0, c1, c2, c3, k0, k1)
    tl.store(words, w0.to(tl.int64))
    tl.store(words + 1, w1.to(tl.int64))
    tl.store(words + 2, w2.to(tl.int64))
    tl.store(words + 3, w3.to(tl.int64))


PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)


@pytest.mark.parametrize(
    ("counter", "expected"),
    [
        ((0,) * 6, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 6, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_known_answers(counter, expected):
    """Random123's kat_vectors for philox4x32-10."""
    words = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    _philox[(1,)](words, torch.tensor(counter, device=DEVICE))
    assert words.tolist() == list(expected)


@pytest.mark.parametrize(
    "divisor", [1, 2, 3, 5, 7, 1000, 3072, 2**16 - 1, 2**29 + 1, 2**30 - 1, 2**31]
)
def test_division_by_multiplication(divisor):
    magic, shift = implementation._divisor(divisor)
    assert magic < 2**32
    divisor = min(divisor, 2**30)
    edges = [0, 1, 2**31 - 1, *(k * divisor + d for k in (1, 2, 3) for d in (-1, 0, 1))]
    for t in [
        *(t for t in edges if 0 <= t < 2**31),
        *np.random.default_rng(0).integers(0, 2**31, 999),
    ]:
        assert (int(t) * magic) >> shift == int(t) // divisor


@triton.jit
def _places(
    place, flags: tl.int32, base: tl.int64, inner: tl.int64, outer: tl.int64,
    magic_i: tl.uint32, shift_i: tl.int32, magic_o: tl.uint32, shift_o: tl.int32,
):  # fmt: skip
    j = tl.arange(0, 64)
    sizes = (inner, outer, magic_i, shift_i, magic_o, shift_o)
    sample, channel, other = implementation._places(base.to(tl.int64), j, sizes, flags)
    tl.store(place + j, sample)
    tl.store(place + 64 + j, channel)
    tl.store(place + 128 + j, other)


@pytest.mark.parametrize(
    ("inner", "outer"),
    [(1, 1), (5, 3), (1, 70), (2**33 + 7, 3), (3, 2**33), (2**30 + 5, 2**30 - 1)],
)
def test_places_of_any_size(inner, outer):
    """Sample, channel and transposed place, where a sample has more than 2^31 elements too."""
    ends = (inner, 2 * inner, inner * outer, 7 * inner * outer)
    for base in (0, *(end - 30 for end in ends if end > 30)):
        place = torch.zeros(192, dtype=torch.int64, device=DEVICE)
        divisors = (*implementation._divisor(inner), *implementation._divisor(outer))
        _places[(1,)](place, 0, base, inner, outer, *divisors)
        for j, (sample, channel, other) in enumerate(place.reshape(3, 64).T.tolist()):
            row, within = divmod(base + j, inner)
            assert (sample, channel) == divmod(row, outer)
            assert other == (sample * inner + within) * outer + channel


def test_extreme_norms_neither_overflow_nor_vanish():
    for norm, scale in itertools.product(("l2", "l1"), (1e-300, 1e-44, 1e-20, 1e25, 1e38, 1e300)):
        dtype = torch.float64 if not 1e-45 < scale < 3e38 else torch.float32
        grad = (torch.tensor([[3.0, -4.0, 0.0]], dtype=torch.float64) * scale / 4).to(dtype)
        expected = grad.double() / (grad.double().abs().max())
        expected = 0.5 * expected / (expected.norm() if norm == "l2" else expected.abs().sum())
        x0 = torch.zeros(1, 3, device=DEVICE)
        x = pgd_step_(
            x0.clone(),
            grad.to(DEVICE),
            x0,
            alpha=0.5,
            eps=9.0,
            norm=norm,
            bounds=None,
            impl="triton",
        )
        assert (x.double().cpu() - expected).abs().max() < 1e-7, (norm, scale)
        far = torch.tensor([[3.0, -4.0, 1e-3]], device=DEVICE) * min(scale, 1e36)
        if scale > 1e-30:
            eps = 1e-3 * min(scale, 1e36)
            x = project_(far.clone(), x0, eps=eps, norm=norm, bounds=None, impl="triton")
            assert abs(norm_of(x, norm).item() / eps - 1) < 1e-6, (norm, scale)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_ball_far_smaller_than_the_digits_of_x0(norm):
    """Rounding to nearest would leave the ball by up to half a digit of x0 an entry."""
    x0 = torch.rand(4, 300, device=DEVICE) + 0.5
    for eps in (1e-6, 1e-4):
        x = project_(x0 + 0.1, x0, eps=eps, norm=norm, bounds=None, impl="triton")
        start = random_start(x0, eps=eps, norm=norm, bounds=None, seed=1, impl="triton")
        for moved in (x, start):
            assert (norm_of(moved.double() - x0.double(), norm) <= eps * (1 + 1e-6)).all()


def test_launches_are_in_the_table(monkeypatch):
    """What a launcher asks for is compiled ahead of time, and nothing is compiled that none asks for."""
    asked = set()
    launch = implementation._launch

    def recorded(spec, grid, x, args):
        asked.add(spec)
        launch(spec, grid, x, args)

    monkeypatch.setattr(implementation, "_launch", recorded)
    shapes = [(2, 2, 4, 4), (1, 3, 2, 3), (5,)]
    for shape, grad_dtype, norm, mask in itertools.product(shapes, FLOATS, NORMS, (False, True)):
        check(Case(shape=shape, grad_dtype=grad_dtype, norm=norm, mask=mask))
    for shape, norm, operands in itertools.product(
        shapes[:2], NORMS, ("sample", "channel", "full")
    ):
        check(
            Case(shape=shape, norm=norm, operands=operands, out_dtype=torch.bfloat16, affine=True)
        )
    for norm in NORMS:
        x0 = torch.rand(2, 3, device=DEVICE)
        random_start(x0, eps=0.1, norm=norm, seed=1, impl="triton")
        project_(x0.clone(), x0, eps=0.1, norm=norm, impl="triton")
    assert asked == set(implementation.specialisations())


def test_misaligned_memory_takes_the_general_kernel(monkeypatch):
    asked = []
    launch = implementation._launch

    def recorded(spec, grid, x, args):
        asked.append(spec.kernel)
        launch(spec, grid, x, args)

    monkeypatch.setattr(implementation, "_launch", recorded)
    given = torch.rand(3, 2, 16, device=DEVICE)
    for first, kernel in ((0, "linf-aligned"), (1, "linf"), (2, "linf"), (4, "linf-aligned")):
        memory = torch.zeros(40, device=DEVICE)
        x = memory[first : first + 32].reshape(2, 16).copy_(given[0])
        pgd_step_(x, given[1].clone(), given[2].clone(), alpha=0.1, eps=0.2, impl="triton")
        assert asked.pop() == kernel
        expected = given[0].clone()
        pgd_step_(
            expected, given[1].clone(), given[2].clone(), alpha=0.1, eps=0.2, impl="reference"
        )
        assert torch.equal(x, expected)
        assert memory.count_nonzero() == expected.count_nonzero()
