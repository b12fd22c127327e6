"""What only the Triton implementation of the ntk family has: its own rounding, its tiles, its table of specialisations.

Runs with TRITON_INTERPRET=1 in the environment, or on a GPU.
"""

import itertools

import pytest
import torch

from advfast import _backend
from advfast.kernels.ntk import ntk_chain_, ntk_hadamard_, ntk_patch_gram, ntk_rows, reference

if _backend.triton_version() is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if not (_backend.triton_interprets() or torch.cuda.is_available()):
    pytest.skip("needs TRITON_INTERPRET=1 or a GPU", allow_module_level=True)

import triton
import triton.language as tl

from advfast.kernels.ntk import triton as implementation

from .ntk_cases import Layer, sides

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PAIRS = {"chain": ntk_chain_, "hadamard": ntk_hadamard_}
pairs = pytest.mark.parametrize("name", PAIRS)


@triton.jit
def _rounded(out, x, TF32: tl.constexpr):
    v = tl.load(x + tl.program_id(0) * 1024 + tl.arange(0, 1024))
    v = implementation.round_tf32(v) if TF32 else implementation.round_bf16(v)
    tl.store(out + tl.program_id(0) * 1024 + tl.arange(0, 1024), v)


@pytest.mark.parametrize("tf32", [True, False], ids=["tf32", "bf16"])
def test_rounding_has_the_bits_of_the_definition(tf32):
    bits = torch.randint(-(2**31), 2**31, (16 * 1024,))
    bits[:4096] = bits[:4096] & ~0x1FFF | 0x1000  # ties of tf32
    bits[4096:8192] = bits[4096:8192] & ~0xFFFF | 0x8000  # ties of bf16
    edges = [0, 1, 0x1000, 0x3000, 0x8000, 0x18000, 0x7F7FEFFF, 0x7F7FF000, 0x7F7FFFFF, 0x7F800000]
    bits[-20:] = torch.tensor(edges + [bit - (1 << 31) for bit in edges])
    x = bits.to(torch.int32).view(torch.float32).to(DEVICE)
    out = torch.empty_like(x)
    _rounded[(16,)](out, x, tf32)
    expected = (reference.round_tf32 if tf32 else reference.round_bf16)(x)
    nan = x.isnan()
    assert torch.equal(out.isnan(), nan) and 0 < nan.sum() < 1000
    assert torch.equal(out[~nan].view(torch.int32), expected[~nan].view(torch.int32))


# Around the sizes of tiles: 16 and 64 positions, 16 readouts, 4 samples, chunks of channels.
TILES = {
    "16-positions": Layer((4, 4), (4, 4), padding=1, readouts=(1, 16), n=(5, 1)),
    "17-positions": Layer((17,), (16,), (3,), padding=1, readouts=(2, 1), n=(1, 2)),
    "64-positions": Layer((8, 8), (8, 8), padding=1, readouts=(1, 1), n=(1, 2)),
    "1024-positions": Layer((1024,), (70,), None, c=1, e=1, readouts=(1, 1), n=(1, 1)),
    "17-readouts": Layer((2, 2), (2, 2), padding=1, c=3, readouts=(17, 33), n=(2, 1)),
    "pixels-past-the-tile": Layer((8, 8), (8, 8), stride=2, padding=1, readouts=(2, 1), n=(5, 2)),
}


@pairs
@pytest.mark.parametrize("layer", TILES.values(), ids=TILES)
@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_tiles(name, layer, precision):
    if name == "hadamard" and layer.readouts == (17, 33):
        pytest.skip("its tiles are of rows, and the interpreter takes long")
    left, right = (side.to(DEVICE) for side in sides(layer))
    rows, columns = (side.g.shape[:2].numel() for side in (left, right))
    out = torch.randn(rows, columns, device=DEVICE)
    exact, before = out.double(), out.double()
    operands = left.x, left.g, right.x, right.g, left.taps, right.taps
    PAIRS[name](out, *operands, precision=precision, impl="triton")
    doubled = [t.double() for t in operands[:4]]
    PAIRS[name](exact, *doubled, *operands[4:], precision="fp64")
    error = ((out - exact).norm() / (exact - before).norm()).item()
    assert error <= 1e-6 if precision == "fp32" else 1e-5 <= error <= 2e-3


def test_launches_are_in_the_table(monkeypatch):
    """What a launcher asks for is compiled ahead of time, and nothing is compiled that none asks for."""
    asked = set()
    monkeypatch.setattr(implementation, "_launch", lambda spec, *rest: asked.add(spec))
    layers = [
        Layer((4,), (4,), (3,), padding=1),
        Layer((20,), (20,), (3,), padding=1),
        Layer((4,), (4,), (1,)),
        Layer((20,), (20,), None),
        Layer((70,), (70,), (3,), padding=1),
    ]
    for layer, precision in itertools.product(layers, implementation._PRECISIONS):
        left, right = (side.to(DEVICE) for side in sides(layer))
        out = torch.zeros(6, 6, device=DEVICE)
        operands = left.x, left.g, right.x, right.g, left.taps, right.taps
        for op in PAIRS.values():
            op(out, *operands, precision=precision, impl="triton")
        ntk_patch_gram(left.x, right.x, *operands[4:], precision=precision, impl="triton")
        ntk_rows(left.x, left.g, left.taps, impl="triton")
    assert asked == set(implementation.specialisations())


def test_too_much_for_the_offsets_is_refused():
    """Offsets within a tile have 32 bits: what does not fit is refused before a launch."""
    with pytest.raises(ValueError, match=r"ntk_chain_: .* at most 2\^31 - 1"):
        implementation._check_span("ntk_chain_", 5, 2**31)
    big = torch.empty(1, device="meta").expand(1, 1, 1, 2**15, 2**16)
    side = torch.empty(1, device="meta").expand(1, 1, 2**15, 2)
    with pytest.raises(ValueError, match=r"ntk_hadamard_: the samples of a tile have"):
        implementation.ntk_hadamard_(
            torch.empty(1, 1, device="meta"), side, big, side, big, None, None, "tf32", False
        )
