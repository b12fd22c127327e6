"""The benchmarks of the attack engine: what is compared, counted and measured."""

import sys
from pathlib import Path

import pytest
import torch

import advfast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import attack_providers
import cycles
import floors
import folding
import memory
import networks
import precision
import suite_attack
import timeline
import timing


def test_attack_rows_hold_what_the_targets_are_about():
    case = suite_attack.Case("small-cnn", (8, 1, 28, 28), steps=2)
    rows = suite_attack.measure(case, "cpu", quick=True, clock=timing.HostClock("cpu"))
    found = {row.provider: row for row in rows}
    assert {"network", "convolutions", "convolutions_nhwc", "torch", "advfast"} <= set(found)
    ours = found["advfast"]
    assert ours.status == "ok" and ours.equal_share is not None and ours.equal_share > 0.9
    assert ours.first_ms > 0 and ours.percent_of_matmul > 0
    floor = min(found[name].ms_p50 for name in ("convolutions", "convolutions_nhwc"))
    assert ours.floor_ms == floor
    assert ours.ratio_to_floor == pytest.approx(ours.ms_p50 / floor)
    # The program keeps bits where autograd keeps activations.
    assert ours.memory_bytes < found["torch"].memory_bytes / 4
    assert ours.us_over_network is None
    peers = found["torchattacks"]
    if peers.status == "ok":
        assert ours.ratio_to_torchattacks == pytest.approx(peers.ms_p50 / ours.ms_p50)
    else:
        assert peers.status.startswith("skipped") and ours.ratio_to_torchattacks is None


def test_the_tiny_network_tells_the_time_around_it():
    case = suite_attack.Case("tiny", (2, 3, 4, 4), steps=4)
    rows = suite_attack.measure(case, "cpu", quick=True, clock=timing.HostClock("cpu"))
    found = {row.provider: row for row in rows}
    alone, hand = found["network"].ms_p50, found["torch"].ms_p50
    assert found["torch"].us_over_network == pytest.approx((hand - alone) / 4 * 1e3)
    assert found["convolutions"].us_over_network is None and "convolutions_nhwc" not in found


def test_a_case_of_memory_alone_is_not_timed():
    case = suite_attack.Case("resnet18-w8", (8, 3, 16, 16), steps=1, timed=False)
    rows = suite_attack.measure(case, "cpu", quick=True, clock=timing.HostClock("cpu"))
    assert all(row.ms_p50 is None for row in rows)
    ours = next(row for row in rows if row.provider == "advfast")
    assert ours.status == "untimed: memory alone" and ours.memory_bytes is not None


def test_cycles_and_precisions_are_rows_of_their_own():
    case = attack_providers.Case("tiny", (2, 3, 4, 4), steps=40, everyone=True)
    found = attack_providers.providers(case, "cpu", compile=True)
    assert {"torch_compile", "advfast_compile", "advfast_cycles", "advfast_bf16"} <= set(found)
    model = networks.make("tiny", 3, side=4)
    assert found["advfast"](model, 40).cycles == "off"
    assert found["advfast_cycles"](model, 40).cycles == "auto"
    assert not found["advfast_exact"](model, 40).fold
    on_gpu = attack_providers.providers(case, "cuda", compile=False)
    assert on_gpu["advfast"](model, 40).capture == "required"
    assert on_gpu["advfast_eager"](model, 40).capture == "off"


def test_floor_counts_each_convolution_and_linear_layer():
    model = networks.make("small-cnn", 1)
    found = floors.products(model, torch.rand(2, 1, 28, 28))
    assert [type(p.module).__name__ for p in found] == ["Conv2d", "Conv2d", "Linear"]
    by_hand = 2 * (14 * 14 * 32 * 9 + 7 * 7 * 64 * 32 * 9 + 1024 * 10)  # products, forward
    assert floors.flops(found, steps=3) == 3 * 2 * 2 * by_hand
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_floor_does_the_work_of_the_layers(layout, monkeypatch):
    conv = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)
    x = torch.rand(2, 3, 8, 8)
    (product,) = floors.products(torch.nn.Sequential(conv), x)
    made = [x, torch.rand(2, 4, 4, 4)]
    monkeypatch.setattr(torch, "rand", lambda *_, **__: made.pop(0))
    inputs = x.requires_grad_()
    wanted = conv(inputs)
    (back,) = torch.autograd.grad(wanted, inputs, made[1])
    linear = torch.nn.Linear(5, 4)
    (flat,) = floors.products(torch.nn.Sequential(linear), torch.ones(2, 5))
    made += [torch.ones(2, 5), torch.ones(2, 4)]
    forward, backward = floors._alone(product, layout, torch.float32, "cpu")
    flat_forward, flat_backward = floors._alone(flat, layout, torch.float32, "cpu")
    with torch.no_grad():
        torch.testing.assert_close(forward(), wanted)
        torch.testing.assert_close(backward(), back)
        torch.testing.assert_close(flat_forward(), linear(torch.ones(2, 5)))
        torch.testing.assert_close(flat_backward(), linear.weight.sum(0).expand(2, 5))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_is_that_of_the_call():
    size = 48 * 2**20

    def call():
        return torch.ones(size // 4).sum()

    peak = memory.host_peak(lambda: call)
    assert peak is not None and abs(peak - size) < 8 * 2**20
    kept = []
    grown = memory.host_peak(lambda: lambda: kept.append(torch.ones(size // 8)), rounds=1)
    assert abs(grown - size / 2) < 8 * 2**20


def test_timeline_tells_convolutions_from_the_rest():
    events = [
        ("cudaGraphLaunch", False, 5.0),
        ("cudaLaunchKernel", False, 4.0),
        ("cuLaunchKernelEx", False, 4.0),
        ("aten::conv2d", False, 90.0),
        ("sm90_xmma_fprop_implicit_gemm_bf16", True, 700.0),
        ("cudnn::cnn::conv2d_grouped_direct_kernel", True, 300.0),
        ("convertTensor_kernel", True, 30.0),
        ("triton_poi_fused_convolution_relu_3", True, 20.0),
        ("pgd_step_linf", True, 50.0),
    ]
    found = timeline.count(timeline.Event(*event) for event in events)
    assert (found.graph_launches, found.kernel_launches) == (1, 2)
    assert found.product_ms == pytest.approx(1.0) and found.other_ms == pytest.approx(0.1)


def test_folding_says_what_becomes_of_a_network():
    every = {entry.name: entry for entry in folding.entries()}
    published = [entry for entry in folding.entries() if entry.source == "published"]
    named = [name for entry in published for name in entry.published.split("; ")]
    assert sorted(named) == sorted(advfast.models.PUBLISHED)
    found = folding.examine(every["resnet18-w64"])
    assert (found["folded"], found["bn_layers"], found["stretches"]) == (20, 20, 0)
    assert found["tried"] == "yes" and found["as_it_is"] == "no"
    read = folding.examine(every["wrn-70-16"])
    assert read["tried"] == "read" and 0 < read["folded"] < read["bn_layers"]

    class Branches(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(3)
            self.linear = torch.nn.Linear(48, 10)

        def forward(self, x):
            return self.linear(self.norm(x).flatten(1)) if x.sum() > 0 else x.flatten(1)

    found = folding.examine(folding.Entry("branches", "test", Branches, (3, 4, 4)))
    assert (found["folded"], found["bn_layers"]) == (0, 1) and found["as_it_is"] != "no"


def test_cycle_benchmark_counts_the_steps_that_were_made():
    # A linear network: every sample soon stands still in a corner of its ball.
    model = networks.make("tiny", 1, side=4)
    images, labels = torch.rand(4, 1, 4, 4), torch.arange(4)
    found = cycles.compare(model, images, labels, 0.05, 60, fold=True, rounds=1)
    assert found["cycled_share"] == 1 and 0.5 < found["saved_share"] < 1
    assert sum(int(part.split(":")[1]) for part in found["periods"].split()) == 4
    assert found["equal_share"] == found["equal_samples"] == 1
    assert found["robust_off"] == found["robust_auto"]
    short = cycles.compare(model, images, labels, 1e-5, 40, fold=True, rounds=1)
    assert short["saved_share"] == 0 and short["periods"] == "none"


def test_arithmetics_are_compared_with_the_plain_loop():
    model = precision.Scaled(networks.make("small-cnn", 1), 1).eval()
    images, labels = torch.rand(8, 1, 28, 28), torch.arange(8)
    rows = precision.measure(model, images, labels, ["fp32", "bf16", "bf16 by hand"], 2)
    found = {row["arithmetic"]: row for row in rows}
    plain, narrow = found["plain"], found["bf16"]
    assert plain["sign_flips"] == plain["largest_difference"] == plain["over_plain"] == 0
    assert narrow["sign_flips"] > found["fp32"]["sign_flips"]
    assert 0 < narrow["largest_difference"] <= 2 * precision.EPS
    assert all(row["not_finite"] == 0 for row in rows)
    folds = {name: precision.attack_of(name, model, 1).fold for name in ("plain", "fp32", "fp16")}
    assert folds == {"plain": False, "fp32": True, "fp16": True}


def test_lost_gradients_are_told_from_flipped_ones():
    # The losses of these samples are 0 in float16: without rescaling no gradient comes through.
    linear = torch.nn.Linear(16, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.stack((torch.ones(16), -torch.ones(16))))
    model = precision.Scaled(torch.nn.Sequential(torch.nn.Flatten(), linear), 1).eval()
    images, labels = torch.full((4, 1, 4, 4), 0.6), torch.zeros(4, dtype=torch.int64)
    rows = precision.measure(model, images, labels, ["fp16", "fp16 by hand"], 1)
    found = {row["arithmetic"]: row for row in rows}
    assert found["fp16"]["zero_signs"] == 0 and found["fp16 by hand"]["zero_signs"] == 1
    assert found["fp16"]["sign_flips"] == found["fp16 by hand"]["sign_flips"] == 0
