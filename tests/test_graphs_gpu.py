"""CUDA graphs on a GPU: streams, random numbers, and what is left after a capture that failed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advfast import graphs
from advfast.graphs import Captured, CaptureError

pytestmark = pytest.mark.gpu


@pytest.fixture
def recorder():
    return graphs.recorder(torch.device("cuda", torch.cuda.current_device()))


def captured(recorder, fn, preserved=(), **inputs):
    return Captured(fn, inputs, number=inputs["x"], recorder=recorder, preserved=preserved)


def affine(inputs):
    return {"y": inputs["x"] * inputs["a"] + 1}


def test_replays_read_what_they_are_given(recorder):
    double = captured(recorder, affine, x=torch.ones(1000, device="cuda"), a=2.0)
    for a in (2.0, 0.1, 8 / 255):
        x = torch.rand(1000, device="cuda")
        assert torch.equal(double({"x": x, "a": a})["y"], x * torch.tensor(a, device="cuda") + 1)
    assert double.launches == 3


def test_nothing_synchronises_and_one_graph_is_launched(recorder):
    double = captured(recorder, affine, x=torch.ones(1000, device="cuda"), a=2.0)
    x = torch.rand(1000, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.profiler.profile() as profile:
            double({"x": x, "a": 3.0})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    launches = [event for event in profile.events() if event.name == "cudaGraphLaunch"]
    assert len(launches) == 1


def test_graphs_share_memory_and_keep_their_results_apart(recorder):
    def longer(inputs):
        y = inputs["x"]
        for _ in range(5):
            y = torch.relu(y @ y) + 1e-3
        return {"y": y / y.norm()}

    a = captured(recorder, longer, x=torch.rand(64, 64, device="cuda"))
    b = captured(recorder, longer, x=torch.rand(64, 64, device="cuda"))
    x = torch.rand(64, 64, device="cuda")
    expected = a({"x": x})["y"]
    for _ in range(20):
        other = torch.rand(64, 64, device="cuda")
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            b({"x": other})
        assert torch.equal(a({"x": x})["y"], expected)
    torch.cuda.synchronize()


def test_dropout_draws_as_an_eager_run_and_anew_each_time(recorder):
    drop = nn.Dropout(0.5)
    x = torch.ones(512, device="cuda")
    torch.cuda.manual_seed(5)
    dropped = captured(recorder, lambda inputs: {"y": drop(inputs["x"])}, x=x)
    first, second = dropped({"x": x})["y"], dropped({"x": x})["y"]
    torch.cuda.manual_seed(5)
    assert torch.equal(first, drop(x)) and torch.equal(second, drop(x))
    assert not torch.equal(first, second)


def test_running_statistics_move_once_a_replay(recorder):
    norm, plain = nn.BatchNorm1d(8).cuda(), nn.BatchNorm1d(8).cuda()
    x = torch.rand(32, 8, device="cuda")
    with torch.no_grad():
        normed = captured(
            recorder, lambda inputs: {"y": norm(inputs["x"])}, list(norm.buffers()), x=x
        )
        assert norm.num_batches_tracked == 0
        normed({"x": x})
        plain(x)
    assert torch.equal(norm.running_var, plain.running_var) and norm.num_batches_tracked == 1


def test_a_wait_is_found_before_the_capture(recorder):
    x = torch.ones(8, device="cuda")
    with pytest.raises(CaptureError, match=r"synchroniz.*test_graphs_gpu\.py"):
        captured(recorder, lambda inputs: {"y": inputs["x"] * inputs["x"].sum().item()}, x=x)
    assert torch.cuda.get_sync_debug_mode() == 0
    _all_is_well(recorder)


def test_after_a_capture_that_failed_all_goes_on(recorder):
    def waits(inputs):
        torch.cuda.synchronize()  # not among what torch reports beforehand
        return {"y": torch.rand_like(inputs["x"])}

    stream = torch.cuda.current_stream()
    with pytest.raises(CaptureError):
        captured(recorder, waits, x=torch.ones(8, device="cuda"))
    assert torch.cuda.current_stream() == stream
    _all_is_well(recorder)


def test_an_error_of_the_function_ends_the_capture(recorder):
    runs = []

    def fails(inputs):
        runs.append(1)
        if len(runs) == 4:
            raise KeyError("mine")
        return {"y": inputs["x"] + 1}

    with pytest.raises(KeyError, match="mine"):
        captured(recorder, fails, x=torch.ones(8, device="cuda"))
    _all_is_well(recorder)


def _all_is_well(recorder):
    x = torch.rand(256, 256, device="cuda")
    assert not torch.cuda.is_current_stream_capturing()
    torch.rand(4, device="cuda")
    assert torch.equal(captured(recorder, affine, x=x, a=2.0)({"x": x, "a": 2.0})["y"], x * 2 + 1)
    del x
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def test_autocast_casts_inside_the_graph(recorder):
    layer = nn.Linear(64, 64).cuda()
    x = torch.rand(16, 64, device="cuda")

    def forward(inputs):
        return {"y": layer(inputs["x"]).float()}

    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        apply = captured(recorder, forward, x=x)
    with torch.no_grad():
        layer.weight.neg_()
        layer.bias.zero_()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(apply({"x": x})["y"], layer(x).float())


def test_gradients_are_captured(recorder):
    layer = nn.Linear(8, 3).cuda()

    def gradient(inputs):
        x = inputs["x"].detach().requires_grad_()
        (found,) = torch.autograd.grad(layer(x).logsumexp(1).sum(), x)
        return {"y": found}

    with torch.enable_grad():
        captured_gradient = captured(recorder, gradient, x=torch.rand(4, 8, device="cuda"))
        for _ in range(3):
            x = torch.rand(4, 8, device="cuda")
            assert torch.equal(captured_gradient({"x": x})["y"], gradient({"x": x})["y"])


def test_a_released_graph_gives_its_memory_back(recorder):
    def large(inputs):
        return {"y": inputs["x"].expand(64, -1).contiguous().sum(0)}

    alone = graphs.cuda.CudaRecorder(torch.device("cuda", torch.cuda.current_device()))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    graph = captured(alone, large, x=torch.rand(1 << 20, device="cuda"))
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() > before + (100 << 20)
    graph.release()
    del graph
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + (32 << 20)
