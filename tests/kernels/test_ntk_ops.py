"""The ntk ops as torch sees them: schemas, shapes, tracing, autograd's versions."""

import pytest
import torch

from advfast import available_impls
from advfast.kernels.ntk import ntk_chain_, ntk_gram_, ntk_hadamard_, ntk_patch_gram, ntk_rows, ops

from .ntk_cases import Layer, sides

LAYERS = {
    "groups": Layer((4, 5), (5, 4), (2, 2), padding=1, groups=2, readouts=(2, 2), n=(2, 2)),
    "tokens": Layer((5,), (4,), None, readouts=(2, 2), n=(2, 2)),
}
CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)


def chosen(op, impl, device):
    return impl if impl in available_impls(op, device) else "auto"


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_opcheck(layer, impl, device):
    left, right = (side.to(device) for side in sides(layer))
    out = torch.zeros(4, 4, device=device)
    operands = left.x, left.g, right.x, right.g, left.taps, right.taps
    j = torch.randn(2, 2, 7, device=device)
    calls = {
        "ntk_rows": (ops.ntk_rows_op, (left.x, left.g, left.taps)),
        "ntk_patch_gram": (ops.ntk_patch_gram_op, (left.x, right.x, left.taps, right.taps, "fp32")),
        "ntk_gram_": (ops.ntk_gram_op, (out, j, j, "fp32", False)),
        "ntk_chain_": (ops.ntk_chain_op, (out, *operands, "fp32", False)),
        "ntk_hadamard_": (ops.ntk_hadamard_op, (out, *operands, "fp32", True)),
    }
    for op, (function, arguments) in calls.items():
        torch.library.opcheck(function, (*arguments, chosen(op, impl, device)), test_utils=CHECKS)


def kernel(left, right, impls):
    """Every op, as traced code would use them."""
    operands = left.x, left.g, right.x, right.g, left.taps, right.taps
    rows = [
        ntk_rows(side.x * 2, side.g, side.taps, impl=impls["ntk_rows"]).flatten(2)
        for side in (left, right)
    ]
    out = left.x.new_zeros(rows[0].shape[:2].numel(), rows[1].shape[:2].numel())
    ntk_gram_(out, *rows)
    ntk_chain_(out, *operands, impl=impls["ntk_chain_"])
    ntk_hadamard_(out, *operands, impl=impls["ntk_hadamard_"])
    tables = left.taps, right.taps
    return out + ntk_patch_gram(left.x, right.x, *tables, impl=impls["ntk_patch_gram"]).sum()


@pytest.mark.parametrize("dynamic", [False, True])
def test_fullgraph_equals_eager(dynamic, impl, device):
    torch.compiler.reset()
    compiled = torch.compile(kernel, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    names = ("ntk_rows", "ntk_chain_", "ntk_hadamard_", "ntk_patch_gram")
    impls = {name: chosen(name, impl, device) for name in names}
    for layer in LAYERS.values():
        left, right = (side.to(device) for side in sides(layer))
        assert torch.equal(compiled(left, right, impls), kernel(left, right, impls))


@pytest.mark.parametrize("name", ["ntk_chain_", "ntk_hadamard_"])
def test_in_place_change_is_noticed_by_autograd(name, impl, device):
    if impl not in available_impls(name, device):
        pytest.skip(f"{name} does not have it")
    function = {"ntk_chain_": ntk_chain_, "ntk_hadamard_": ntk_hadamard_}[name]
    left, right = (side.to(device) for side in sides(LAYERS["groups"]))
    operands = left.x, left.g, right.x, right.g, left.taps, right.taps
    out = torch.zeros(4, 4, device=device)
    product = out * torch.ones((), device=device, requires_grad=True)  # saves out
    function(out, *operands, impl=impl)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
    with torch.inference_mode():
        again = torch.zeros(4, 4, device=device)
        function(again, *operands, impl=impl)
    assert torch.equal(again, out)
