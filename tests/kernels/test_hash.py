"""row_hash against its definition in Python's integers, and what a hash is for."""

import struct

import pytest
import torch

from advfast import _backend, available_impls
from advfast.kernels import row_hash
from advfast.kernels.hash.ops import row_hash_op

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
ALL = (1 << 64) - 1


@pytest.fixture
def impl(variant):
    if variant[0] not in available_impls("row_hash", variant[1]):
        pytest.skip("it is not made for this")
    return variant[0]


@pytest.fixture
def slow(impl, device):
    """Whether the implementation is interpreted."""
    return impl == "triton" and device == "cpu"


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & ALL
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & ALL
    return z ^ (z >> 31)


def by_hand(row):
    """row: one sample, flat."""
    width = 8 * row.element_size()
    values = [v % (1 << width) for v in row.view(INTEGERS[row.element_size()]).tolist()]
    values = [0 if v == 1 << (width - 1) else v for v in values]
    if width < 64:
        values += [0] * (len(values) % 2)
        values = [a | b << 32 for a, b in zip(values[::2], values[1::2], strict=True)]
    terms = [mix((v + (k + 1) * 0x9E3779B97F4A7C15) & ALL) for k, v in enumerate(values)]
    return struct.unpack("q", struct.pack("Q", mix((sum(terms) + row.numel()) & ALL)))[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [0, 1, 2, 3, 8, 31, 2500])
def test_is_what_it_is_said_to_be(impl, device, dtype, dim):
    x = torch.randn(3, dim).to(dtype)
    if dim > 2:
        x[0, :3] = torch.tensor([torch.nan, -torch.inf, -0.0])
        x[1, 1] = torch.finfo(dtype).smallest_normal / 4
    got = row_hash(x.to(device), impl=impl)
    assert got.dtype == torch.int64 and got.device.type == device
    assert got.tolist() == [by_hand(row) for row in x]


def test_equal_rows_have_equal_hashes(impl, device):
    row = torch.randn(3, 8, 8, device=device)
    x = torch.randn(6, 3, 8, 8, device=device)
    x[1] = x[4] = row
    hashes = row_hash(x, impl=impl)
    assert hashes[1] == hashes[4] and len(hashes.unique()) == 5
    assert row_hash(x[4:5], impl=impl) == hashes[1]  # whatever stands beside it
    assert row_hash(x[1:], impl=impl)[3] == hashes[1]


def test_zeros_are_equal(impl, device):
    for dtype in DTYPES:
        x = torch.zeros(2, 7, dtype=dtype, device=device)
        x[1] = -x[1]
        assert torch.signbit(x[1]).all()
        first, second = row_hash(x, impl=impl)
        assert first == second
        assert first != row_hash(torch.zeros(1, 8, dtype=dtype, device=device), impl=impl)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_smallest_changes_show(impl, device, dtype):
    """Every position, up and down by one unit in the last place."""
    row = torch.rand(48, dtype=torch.float64).to(dtype).to(device)
    integers = row.view(INTEGERS[row.element_size()])
    changed = [integers.clone() for _ in range(2 * len(row))]
    for i in range(len(row)):
        changed[2 * i][i] += 1
        changed[2 * i + 1][i] -= 1
    x = torch.stack([integers, *changed]).view(dtype)
    assert len(row_hash(x, impl=impl).unique()) == len(x)


def test_the_order_of_the_values_shows(impl, device, slow):
    dim = 12 if slow else 40
    row = torch.rand(dim, device=device)
    swapped = [row]
    for i in range(dim):
        for j in range(i):
            other = row.clone()
            other[i], other[j] = row[j], row[i]
            swapped.append(other)
    swapped += [row.roll(by) for by in range(2, dim - 1)]
    assert len(row_hash(torch.stack(swapped), impl=impl).unique()) == len(swapped)


def test_no_collisions_among_changes_of_one_pixel(impl, device, slow):
    """Multiples of 1/255, so that few bits differ."""
    count, dim = 300 if slow else 100_000, 75
    image = torch.randint(0, 256, (dim,), device=device)
    x = image.repeat(count, 1)
    rows = torch.arange(count, device=device)
    # Every (place, change) once.
    x[rows, rows % dim] = (image[rows % dim] + 1 + rows // dim) % 4096
    hashes = row_hash((x / 255).float(), impl=impl)
    assert len(hashes.unique()) == count


def test_every_bit_of_the_hash_depends_on_every_bit(impl, device, slow):
    rows = 3 if slow else 200
    x = torch.rand(rows, 10, device=device)
    before = row_hash(x, impl=impl)
    flips = torch.zeros(64, device=device)
    for bit in (0, 1, 12, 22, 30):
        for place in (0, 3, 9):
            changed = x.clone()
            changed.view(torch.int32)[:, place] ^= 1 << bit
            difference = row_hash(changed, impl=impl) ^ before
            flips += ((difference[:, None] >> torch.arange(64, device=device)) & 1).sum(0)
    share = flips / (15 * rows)
    # Half of the time, within five standard deviations.
    assert ((share - 0.5).abs() < 2.5 / (15 * rows) ** 0.5).all()


def test_layouts_and_views(impl, device):
    x = torch.rand(4, 3, 5, 6, device=device)
    nhwc = x.contiguous(memory_format=torch.channels_last)
    ordered = x.permute(0, 2, 3, 1).contiguous()
    assert torch.equal(row_hash(nhwc, impl=impl), row_hash(ordered, impl=impl))
    assert not torch.equal(row_hash(nhwc, impl=impl), row_hash(x, impl=impl))
    memory = torch.rand(4 * 9 + 1, device=device)
    part = memory[1:].view(4, 9)  # at an odd address
    assert torch.equal(row_hash(part, impl=impl), row_hash(part.clone(), impl=impl))
    assert row_hash(torch.rand(5, device=device), impl=impl).shape == (5,)
    assert row_hash(torch.rand(0, 5, device=device), impl=impl).shape == (0,)


@pytest.mark.skipif(_backend.native() is None, reason="no native core")
def test_same_for_any_threads_and_instruction_set():
    core, threads = _backend.native(), torch.get_num_threads()
    batches = [torch.rand(37, 3001).to(dtype) for dtype in DTYPES]
    expected = [row_hash(x, impl="reference") for x in batches]
    try:
        for isa in ("baseline", "avx2", "avx512", ""):
            if not core.set_cpu_isa(isa):
                continue
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                for x, hashes in zip(batches, expected, strict=True):
                    assert torch.equal(row_hash(x, impl="cpp"), hashes), isa
    finally:
        core.set_cpu_isa("")
        torch.set_num_threads(threads)


def test_opcheck(impl, device):
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for x in (torch.rand(3, 4, 5, device=device), torch.rand(2, 3, device=device).half()):
        torch.library.opcheck(
            row_hash_op, (x, impl), test_utils=(*checks, "test_aot_dispatch_dynamic")
        )


@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        (torch.ones(3, dtype=torch.int64), TypeError, "float tensor, got torch.int64"),
        (torch.tensor(1.0), ValueError, "batch dimension"),
        (torch.rand(3, 8)[:, ::2], ValueError, "dense in memory, sample by sample"),
        (torch.rand(3, 8)[:, :4], ValueError, "dense in memory"),
        (torch.rand(3, 8).t(), ValueError, "dense in memory"),
        (torch.rand(4).expand(3, 4), ValueError, "dense in memory"),
    ],
)
def test_bad_input_is_refused(x, kind, message):
    with pytest.raises(kind, match=message):
        row_hash(x)
