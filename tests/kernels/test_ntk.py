"""The ntk family: every implementation against autograd in float64, and what it promises about bits and memory."""

import pytest
import torch

from advfast import _backend, available_impls
from advfast.kernels.ntk import (
    ntk_chain_,
    ntk_gram_,
    ntk_hadamard_,
    ntk_patch_gram,
    ntk_rows,
    reference,
)
from advfast.kernels.ntk.reference import patches

from .ntk_cases import LAYERS, Layer, sides

PAIRS = {"ntk_chain_": ntk_chain_, "ntk_hadamard_": ntk_hadamard_}
needs_core = pytest.mark.skipif(_backend.native() is None, reason="no native core")
layers = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
pairs = pytest.mark.parametrize("name", PAIRS)


def need(op, impl, device):
    if impl not in available_impls(op, device):
        pytest.skip(f"{op} does not have it")


def add_pairs(name, out, left, right, **options):
    operands = left.x, left.g, right.x, right.g, left.taps, right.taps
    return PAIRS[name](out, *operands, **options)


def new_out(left, right, fill=0.0):
    """[n1*R1, n2*R2]"""
    rows, columns = (side.g.shape[:2].numel() for side in (left, right))
    return torch.full((rows, columns), fill, dtype=left.x.dtype, device=left.x.device)


def theta(layer, left, right):
    """[n1*R1, n2*R2] in float64, by autograd."""
    rows = [layer.rows(side).flatten(2).flatten(0, 1) for side in (left, right)]
    return rows[0] @ rows[1].T


def assert_near(got, exact, of_sizes):
    """Within rounding errors: of_sizes is the same result of the operands' absolute values."""
    assert got.shape == exact.shape
    error = (got.double().cpu() - exact).abs()
    assert (error <= 1e-6 * (1 + of_sizes)).all(), error.max()


@layers
def test_the_definition_is_the_gradient(layer):
    left, right = (side.to(dtype=torch.float64) for side in sides(layer))
    for side in (left, right):
        got = ntk_rows(side.x, side.g, side.taps)
        torch.testing.assert_close(got, layer.rows(side), rtol=1e-12, atol=1e-12)
    expected = theta(layer, left, right)
    rows = [ntk_rows(side.x, side.g, side.taps).flatten(2) for side in (left, right)]
    found = [ntk_gram_(new_out(left, right), *rows, precision="fp64")]
    found += [
        add_pairs(name, new_out(left, right), left, right, precision="fp64") for name in PAIRS
    ]
    for got in found:
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-11)


@layers
@pairs
def test_pairs(layer, name, impl, device, nan_scratch):
    need(name, impl, device)
    left, right = sides(layer)
    on_device = [side.to(device) for side in (left, right)]
    rows, columns = new_out(left, right).shape
    # Into the middle of a larger matrix: what stands around it stays.
    whole = torch.full((rows + 2, columns + 5), 7.0, device=device)
    out = whole[1 : rows + 1, 2 : columns + 2]
    out.copy_(torch.randn(rows, columns))
    before = out.double().cpu()
    assert add_pairs(name, out, *on_device, impl=impl) is out
    exact, of_sizes = theta(layer, left, right), theta(layer, left.abs(), right.abs())
    assert_near(out, before + exact, before.abs() + of_sizes)
    out.fill_(7.0)
    assert (whole == 7.0).all()


@layers
def test_rows(layer, impl, device, nan_scratch):
    need("ntk_rows", impl, device)
    side = sides(layer)[0]
    moved = side.to(device)
    got = ntk_rows(moved.x, moved.g, moved.taps, impl=impl)
    assert got.dtype == torch.float32 and got.is_contiguous()
    assert_near(got, layer.rows(side), layer.rows(side.abs()))


def gram_of_patches(left, right):
    a1, a2 = (patches(side.x.double(), side.taps).flatten(3) for side in (left, right))
    return torch.einsum("igpk,jgqk->ijgpq", a1, a2)


@layers
def test_patch_gram(layer, impl, device, nan_scratch):
    need("ntk_patch_gram", impl, device)
    left, right = sides(layer)
    a, b = (side.to(device) for side in (left, right))
    got = ntk_patch_gram(a.x, b.x, a.taps, b.taps, impl=impl)
    assert got.is_contiguous()
    assert_near(got, gram_of_patches(left, right), gram_of_patches(left.abs(), right.abs()))


# Several blocks of whatever the kernels work in: depth, rows, positions, readouts, samples.
LARGE = {
    "wide": Layer((4, 4), (3, 5), (2, 2), padding=1, c=270, e=260, readouts=(11, 3), n=(2, 2)),
    "many-positions": Layer((17, 17), (16, 18), padding=1, c=20, e=33, readouts=(2, 12), n=(2, 2)),
    "many-taps": Layer((14, 14), (12, 10), (4, 4), stride=2, padding=1, c=32, e=16, n=(2, 2)),
    "many-readouts": Layer((3, 3), (2, 3), padding=1, c=33, e=7, readouts=(40, 23), n=(2, 1)),
    "many-groups": Layer((6, 6), (6, 6), padding=1, groups=40, c=1, e=1, readouts=(10, 10)),
    "many-samples": Layer((2, 2), (2, 2), padding=1, readouts=(1, 3), n=(70, 90)),
    "one-position": Layer((1,), (1,), None, c=100, e=300, readouts=(10, 10), n=(4, 3)),
}


@needs_core
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("layer", LARGE.values(), ids=LARGE.keys())
def test_large_layers_on_every_instruction_set(layer, isa, nan_scratch):
    core = _backend.native()
    if not core.set_cpu_isa(isa):
        pytest.skip("this machine lacks it")
    left, right = sides(layer)
    try:
        threads = torch.get_num_threads()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found = [
                *(add_pairs(name, new_out(left, right), left, right, impl="cpp") for name in PAIRS),
                ntk_rows(left.x, left.g, left.taps, impl="cpp"),
                ntk_patch_gram(left.x, right.x, left.taps, right.taps, impl="cpp"),
            ]
            if count == 1:
                first = found
            # The same bits whatever the number of threads.
            assert all(torch.equal(a, b) for a, b in zip(first, found, strict=True))
    finally:
        core.set_cpu_isa("")
        torch.set_num_threads(threads)
    exact, of_sizes = theta(layer, left, right), theta(layer, left.abs(), right.abs())
    assert_near(first[0], exact, of_sizes)
    assert_near(first[1], exact, of_sizes)
    assert_near(first[2], layer.rows(left), layer.rows(left.abs()))
    assert_near(first[3], gram_of_patches(left, right), gram_of_patches(left.abs(), right.abs()))


@pytest.mark.parametrize("readouts", [1, 3])
@pairs
def test_a_pair_has_the_same_bits_wherever_it_stands(name, readouts, impl, device):
    need(name, impl, device)
    if impl == "reference":
        pytest.skip("the library's products do not promise it")
    layer = Layer((4, 5), (5, 4), padding=1, c=9, e=20, readouts=(readouts, readouts), n=(4, 3))
    left, right = (side.to(device) for side in sides(layer))
    whole = torch.zeros(4 * readouts + 3, 3 * readouts + 5, device=device)
    out = whole[2:-1, 3:-2]
    add_pairs(name, out, left, right, impl=impl)
    for i in range(4):
        for j in range(3):
            a, b = left.sample(i), right.sample(j)
            alone = add_pairs(name, new_out(a, b), a, b, impl=impl)
            rows, columns = (slice(k * readouts, (k + 1) * readouts) for k in (i, j))
            assert torch.equal(out[rows, columns], alone), (i, j)


@pairs
def test_upper_half(name, impl, device):
    need(name, impl, device)
    layer = Layer((4, 5), (4, 5), padding=1, readouts=(2, 2), n=(5, 5))
    left, right = (side.to(device) for side in sides(layer))
    whole = torch.full((12, 13), 7.0, device=device)
    got = add_pairs(name, whole[1:11, 1:11], left, right, upper=True, impl=impl)
    exact = theta(layer, *sides(layer))
    of_sizes = theta(layer, *(side.abs() for side in sides(layer)))
    blocks = torch.ones(5, 5).triu().repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert_near(got.cpu() * blocks, (7 + exact) * blocks, 7 + of_sizes)
    got.fill_(7.0)
    assert (whole == 7.0).all()
    if impl == "cpp":  # the other pairs are left out, not thrown away
        assert torch.equal(
            add_pairs(name, new_out(left, right), left, right, upper=True, impl=impl) * blocks,
            add_pairs(name, new_out(left, right), left, right, upper=True, impl=impl),
        )


def test_a_gram_is_added_and_its_upper_half_complete():
    """As many rows as are multiplied in parts."""
    j = torch.randn(45, 4, 7, dtype=torch.float64)
    rows = j.flatten(0, 1)
    blocks = torch.ones(45, 45).triu().repeat_interleave(4, 0).repeat_interleave(4, 1)
    for upper in (False, True):
        out = torch.ones(180, 180, dtype=torch.float64)
        assert ntk_gram_(out, j, j, precision="fp64", upper=upper) is out
        wanted = blocks if upper else torch.ones_like(blocks)
        torch.testing.assert_close(out * wanted, (1 + rows @ rows.T) * wanted)


@pytest.mark.parametrize("n", [(0, 2), (2, 0), (0, 0)], ids=str)
def test_no_samples(n, impl, device):
    left, right = (side.to(device) for side in sides(Layer(n=n)))
    for name in PAIRS:
        if impl in available_impls(name, device):
            assert add_pairs(name, new_out(left, right), left, right, impl=impl).numel() == 0
    if impl in available_impls("ntk_patch_gram", device):
        got = ntk_patch_gram(left.x, right.x, left.taps, right.taps, impl=impl)
        assert got.shape[:2] == n and got.numel() == 0
    if impl in available_impls("ntk_rows", device):
        assert ntk_rows(left.x, left.g, left.taps, impl=impl).shape == (n[0], 3, 1, 5, 9, 3)


@pairs
def test_what_is_not_finite_stays_with_its_sample(name, impl, device):
    need(name, impl, device)
    layer = Layer((4, 4), (4, 4), padding=1, readouts=(2, 2), n=(3, 3))
    left, right = (side.to(device) for side in sides(layer))
    left.x[1, 0, 5] = torch.nan
    right.g[2, 1] = torch.inf
    got = add_pairs(name, new_out(left, right), left, right, impl=impl).isfinite()
    expected = torch.ones(6, 6, dtype=torch.bool, device=device)
    expected[2:4] = False
    expected[:, 5] = False
    assert torch.equal(got, expected)


def misuse():
    left, right = sides(Layer())
    table = left.taps
    assert table is not None
    out = new_out(left, right)
    good = {
        "out": out, "x1": left.x, "g1": left.g, "x2": right.x, "g2": right.g,
        "taps1": left.taps, "taps2": right.taps,
    }  # fmt: skip
    return good, [
        ({"x1": left.x[0]}, ValueError, r"x1 must be \[n, groups, L, e\], got shape \(1, 30, 3\)"),
        ({"g1": left.g[:1].clone()}, ValueError, r"g1 must be \[n=2, R, groups=1, S, c\]"),
        ({"g2": right.g.double()}, ValueError, "g2 must be torch.float32 on cpu like x1"),
        ({"x1": left.x.half()}, TypeError, "x1 must be float32 or float64, got torch.float16"),
        ({"x1": left.x.mT.contiguous().mT}, ValueError, "x1 must be contiguous, got strides"),
        ({"taps1": table.long()}, ValueError, r"taps1 must be int32 \[S=12, T\], got torch.int64"),
        ({"taps1": table[:-1]}, ValueError, r"taps1 must be int32 \[S=12, T\]"),
        ({"taps1": None}, ValueError, "without taps1 there is a position a pixel: g1 must have S=30"),
        ({"taps1": table[:, :4].clone()}, ValueError, "taps1 and taps2 must have one T, got 4 and 9"),
        ({"g2": right.g[..., :4].clone()}, ValueError, "both sides must be of one layer"),
        ({"out": out[:-1]}, ValueError, r"out must be \[6, 6\] with rows dense in memory"),
        ({"out": out.T.contiguous().T}, ValueError, "out must be"),
        ({"out": out.double()}, ValueError, "out must be torch.float32 on cpu, got torch.float64"),
        ({"precision": "fp16"}, ValueError, "precision must be one of fp64, fp32, tf32"),
        ({"precision": "fp64"}, ValueError, "'fp64' does not go with torch.float32 operands"),
        ({"impl": "fast"}, ValueError, "impl must be one of auto, reference"),
        ({"impl": "cpp", "precision": "tf32"}, RuntimeError, "impl='cpp' is not available"),
    ]  # fmt: skip


@pairs
def test_bad_input_says_what_is_wrong_and_changes_nothing(name):
    good, cases = misuse()
    for change, error, message in cases:
        given = {**good, **change}
        before = given["out"].clone()
        with pytest.raises(error, match=f"{name}: .*{message}"):
            PAIRS[name](**given)
        assert torch.equal(given["out"], before)
    square = {
        **good,
        "out": good["out"].new_zeros(6, 3),
        "x2": good["x2"][:1],
        "g2": good["g2"][:1],
    }
    square["g2"] = square["g2"].repeat(1, 3, 1, 1, 1)[:, :3].clone()
    with pytest.raises(ValueError, match=r"upper needs a square block, got \[6, 3\]"):
        PAIRS[name](**square, upper=True)


def test_float64_goes_to_the_reference():
    left, right = (side.to(dtype=torch.float64) for side in sides(Layer()))
    assert ntk_rows(left.x, left.g, left.taps).dtype == torch.float64
    with pytest.raises(RuntimeError, match=r"takes float32 tensors|no native core"):
        ntk_rows(left.x, left.g, left.taps, impl="cpp")
    rows = [ntk_rows(side.x, side.g, side.taps).flatten(2) for side in (left, right)]
    with pytest.raises(RuntimeError, match="it is not made for this op"):
        ntk_gram_(new_out(left, right), *rows, precision="fp64", impl="cpp")


@pairs
def test_the_definition_may_take_few_samples_at_a_time(name, monkeypatch):
    left, right = (side.to(dtype=torch.float64) for side in sides(Layer(n=(5, 3))))
    whole = add_pairs(name, new_out(left, right, 2.0), left, right, precision="fp64")
    monkeypatch.setattr(reference, "_HELD", 1)
    slabs = list(reference._slabs(whole, left.x, left.g, 1))
    assert len(slabs) == 5 and slabs[0][0].shape == (left.g.shape[1], whole.shape[1])
    cut = add_pairs(name, new_out(left, right, 2.0), left, right, precision="fp64")
    torch.testing.assert_close(cut, whole, rtol=1e-13, atol=1e-13)


@needs_core
@pairs
def test_the_core_says_which_precision_it_has(name):
    left, right = sides(Layer())
    with pytest.raises(RuntimeError, match=r"'cpp' is not available: .* precision is 'tf32'"):
        add_pairs(name, new_out(left, right), left, right, precision="tf32", impl="cpp")
