"""Static buffers and the cache of graphs, on a stand-in for CUDA graphs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advfast import graphs
from advfast.graphs import Captured, CaptureError, GraphCache

from .tape import Recorder


def affine(inputs):
    return {"y": inputs["x"] * inputs["a"] + 1}


def captured(fn=affine, recorder=None, **inputs):
    x = inputs.setdefault("x", torch.ones(3))
    return Captured(fn, inputs, number=x, recorder=recorder or Recorder())


def test_each_launch_reads_what_it_is_given():
    double = captured(a=2.0)
    for launch in range(1, 4):
        x = torch.rand(3)
        assert torch.equal(double({"x": x, "a": 2.0})["y"], x * 2 + 1)
        assert double.launches == launch


def test_numbers_may_change_and_have_the_precision_of_the_tensors():
    for dtype in (torch.float32, torch.float64):
        scale = captured(x=torch.ones(3, dtype=dtype), a=0.1)
        x = torch.rand(3, dtype=dtype)
        for a in (0.1, 0.3, 0.1, 8 / 255):
            result = scale({"x": x, "a": a})["y"]
            assert result.dtype == dtype
            assert torch.equal(result, x * torch.tensor(a, dtype=dtype) + 1)


def test_an_input_changed_in_place_is_seen():
    double = captured(a=2.0)
    x = torch.rand(3)
    double({"x": x, "a": 2.0})
    x.numpy()[:] = 5  # no version counter knows of it
    assert torch.equal(double({"x": x, "a": 2.0})["y"], torch.full((3,), 11.0))


def test_results_are_the_callers():
    double = captured(a=2.0)
    first = double({"x": torch.ones(3), "a": 2.0})["y"]
    second = double({"x": torch.zeros(3), "a": 2.0})["y"]
    assert first.tolist() == [3, 3, 3] and second.tolist() == [1, 1, 1]
    second.fill_(7)
    assert double({"x": torch.zeros(3), "a": 2.0})["y"].tolist() == [1, 1, 1]


def test_the_example_is_not_kept_and_the_function_runs_no_more():
    runs = []

    def counted(inputs):
        runs.append(1)
        return affine(inputs)

    example = torch.ones(3)
    recorder = Recorder()
    double = captured(counted, recorder, x=example, a=2.0)
    example.fill_(torch.nan)
    before = len(runs)
    assert torch.equal(double({"x": torch.ones(3), "a": 2.0})["y"], torch.full((3,), 3.0))
    assert len(runs) == before
    (recording,) = recorder.recordings
    assert all(t.data_ptr() != example.data_ptr() for t in recording.reads.values())


def test_weights_changed_in_place_are_seen():
    layer = nn.Linear(3, 2)
    apply = captured(lambda inputs: {"y": layer(inputs["x"])}, x=torch.ones(1, 3))
    x = torch.rand(1, 3)
    with torch.no_grad():
        apply({"x": x})
        layer.weight.mul_(2)
        assert torch.equal(apply({"x": x})["y"], layer(x))


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.ones(4), "a": 2.0},
        {"x": torch.ones(1), "a": 2.0},  # would broadcast
        {"x": torch.ones(3, dtype=torch.float64), "a": 2.0},
        {"x": torch.ones(6)[::2], "a": 2.0},
        {"x": torch.ones(3), "a": torch.tensor(2.0)},
        {"x": torch.ones(3)},
        {"x": torch.ones(3), "a": 2.0, "b": 1.0},
    ],
)
def test_inputs_of_another_kind_are_an_error(other):
    with pytest.raises(ValueError, match="captured for the inputs"):
        captured(a=2.0)(other)


def test_expanded_inputs_come_in():
    row = captured(a=torch.rand(1).expand(3))
    a, x = torch.rand(1).expand(3), torch.rand(3)
    assert torch.equal(row({"x": x, "a": a})["y"], x * a + 1)


def test_what_rehearsing_changes_is_put_back():
    counter = torch.zeros(2)

    def count(inputs):
        counter.add_(1)
        return {"y": inputs["x"] + counter[0]}

    x = torch.ones(3)
    counting = Captured(count, {"x": x}, number=x, recorder=Recorder(), preserved=[counter])
    assert counter.tolist() == [0, 0]
    assert counting({"x": x})["y"].tolist() == [2, 2, 2]
    assert counter.tolist() == [1, 1]


def test_a_failed_capture_says_why():
    with pytest.raises(CaptureError, match="waits"):
        captured(lambda inputs: {"y": inputs["x"] * inputs["x"].sum().item()})


class _Graph:
    def __init__(self):
        self.released = 0

    def release(self):
        self.released += 1


def test_cache_keeps_what_was_used_last():
    cache = GraphCache(2)
    a, b, c = made = [_Graph() for _ in range(3)]
    cache.put("a", a)
    cache.put("b", b)
    assert cache.get("a") is a and cache.get("z") is None
    cache.put("c", c)
    assert [graph.released for graph in made] == [0, 1, 0]
    assert cache.get("b") is None and cache.get("a") is a and len(cache) == 2
    cache.clear()
    assert [graph.released for graph in made] == [1, 1, 1] and len(cache) == 0


def test_no_recorder_on_a_cpu():
    assert graphs.recorder(torch.device("cpu")) is None
