"""What the planner counts against what the definition of the kernels multiplies."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from advfast.kernels.ntk import reference
from advfast.ntk import costs
from advfast.ntk.terms import Layer

from ..kernels import ntk_cases

CASES = {
    "conv": ntk_cases.Layer((4, 4), (4, 4), padding=1, readouts=(3, 3), n=(2, 2)),
    "groups": ntk_cases.Layer((4, 4), (4, 4), padding=1, groups=2, readouts=(2, 2), n=(3, 3)),
    "tokens": ntk_cases.Layer((6,), (6,), None, c=4, e=5, readouts=(3, 3), n=(2, 2)),
}


def multiplied(function, *args) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_macs_are_those_of_the_definition(case):
    left, right = ntk_cases.sides(case)
    n, readouts, groups, positions, channels = left.g.shape
    window = 1 if left.taps is None else left.taps.shape[1]
    layer = Layer(
        "0.weight",
        "product",
        columns=groups * channels * window * case.e,
        groups=groups,
        positions=positions,
        channels=channels,
        pixels=left.x.shape[2],
        features=case.e,
        taps=left.taps,
    )
    work = {order: costs.work(layer, order, costs.Size(n, n * n, readouts)) for order in "MCG"}
    operands = left.x, left.g, right.x, right.g, left.taps, right.taps
    out = torch.zeros(n * readouts, n * readouts)
    rows = reference.ntk_rows(left.x, left.g, left.taps).flatten(2)
    assert work["M"].rows == multiplied(reference.ntk_rows, left.x, left.g, left.taps)
    assert work["M"].gram == multiplied(reference.ntk_gram_, out, rows, rows, "fp32", False)
    patch = multiplied(reference.ntk_patch_gram, left.x, right.x, left.taps, right.taps, "fp32")
    chain = multiplied(reference.ntk_chain_, out, *operands, "fp32", False)
    assert work["C"].pair == chain - patch
    # The definition's product entry by entry is no matrix product.
    entries = n * n * groups * (readouts * positions) ** 2
    assert (
        work["G"].pair
        == multiplied(reference.ntk_hadamard_, out, *operands, "fp32", False) - patch + entries
    )
    assert work["C"].patch == work["G"].patch <= patch
