"""The ntk family on a GPU: waiting, graphs, streams, large tiles. What it computes is in test_ntk.py."""

from __future__ import annotations

import pytest
import torch

from advfast import available_impls
from advfast.kernels.ntk import ntk_chain_, ntk_hadamard_

from .ntk_cases import Layer, sides

pytestmark = pytest.mark.gpu
PAIRS = {"ntk_chain_": ntk_chain_, "ntk_hadamard_": ntk_hadamard_}
PRECISIONS = {"fp32": 2e-6, "tf32": 2e-3, "bf16": 2e-2, "bf16x3": 3e-5}
# A stage 4 and a stage 3 of ResNet-18, samples in more tiles than one.
LAYERS = {
    "stage-4": Layer((4, 4), (4, 4), padding=1, c=64, e=64, readouts=(10, 10), n=(37, 21)),
    "stage-3": Layer((8, 8), (8, 8), padding=1, c=32, e=32, readouts=(10, 10), n=(9, 7)),
    "stage-3-stride": Layer((16, 16), (16, 16), stride=2, padding=1, c=32, e=16, n=(5, 6)),
    "stage-2": Layer((16, 16), (16, 16), padding=1, c=16, e=16, readouts=(1, 1), n=(4, 3)),
}
impls = pytest.mark.parametrize("impl", ["cuda", "triton"])


def operands(layer):
    left, right = (side.to("cuda") for side in sides(layer))
    return left.x, left.g, right.x, right.g, left.taps, right.taps


def call(name, out, given, impl, precision="tf32"):
    if impl not in available_impls(name, "cuda"):
        pytest.skip("it is not built")
    return PAIRS[name](out, *given, precision=precision, impl=impl)


def new_out(given):
    return torch.zeros(
        given[1].shape[:2].numel(), given[3].shape[:2].numel(), device=given[0].device
    )


@impls
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_layers_of_a_network(name, impl, precision, layer):
    given = operands(layer)
    got = call(name, new_out(given), given, impl, precision)
    exact = new_out(given).double()
    PAIRS[name](exact, *(t.double() for t in given[:4]), *given[4:], precision="fp64")
    assert (got - exact).norm() <= PRECISIONS[precision] * exact.norm()
    again = call(name, new_out(given), given, impl, precision)
    assert torch.equal(got, again)  # sums have a fixed order


@impls
@pytest.mark.parametrize("name", PAIRS)
def test_graph_replays_read_new_values(name, impl):
    given = operands(LAYERS["stage-4"])
    out = new_out(given)
    expected = call(name, new_out(given), given, impl).clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(name, out, given, impl)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out.zero_()
        call(name, out, given, impl)
    graph.replay()
    assert torch.equal(out, expected)
    given[0].mul_(2)  # exact, and every rounding scales with it
    graph.replay()
    assert torch.equal(out, 2 * expected)


@impls
@pytest.mark.parametrize("name", PAIRS)
def test_nothing_synchronises_and_no_memory_is_taken(name, impl):
    given = operands(LAYERS["stage-3"])
    out = new_out(given)
    call(name, out, given, impl)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(name, out, given, impl)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() == before


@impls
@pytest.mark.parametrize("name", PAIRS)
def test_runs_on_the_current_stream(name, impl):
    given = operands(LAYERS["stage-4"])
    expected = call(name, new_out(given), given, impl)
    torch.cuda.synchronize()
    x = torch.empty_like(given[0])
    out = new_out(given)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)
        x.copy_(given[0])
        call(name, out, (x, *given[1:]), impl)
        torch.cuda.current_stream().synchronize()
    assert torch.equal(out, expected)
