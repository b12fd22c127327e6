"""The benchmarks of the kernels: what is compared, counted and drawn."""

import csv
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import networks
import ntk_planner
import ntk_providers
import ntk_scaling
import suite_ntk
import timing
from ntk_providers import NT_PYTHON, Scene


@pytest.fixture(autouse=True, scope="module")
def own_rates():
    """The benchmarks measure the planner's rates in the process; the tests after this one keep their cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ntk_providers, "measure_rates_anew", lambda: None)
        yield


def test_capture_is_counted_without_weights_and_images():
    model, images = networks.make("strided-cnn", 1, side=28), torch.rand(3, 1, 28, 28)
    layers = [14 * 14 * 16 * 16, 7 * 7 * 32 * 16 * 16, 1568 * 100, 100 * 10]  # multiply-adds
    expected = 2 * 3 * (sum(layers) + 10 * sum(layers[1:]))
    assert suite_ntk.capture_flop(model, images, 10) == expected
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_capture_of_attention_counts_its_products():
    model, images = networks.make("vit-tiny", 3, side=8), torch.rand(2, 3, 8, 8)
    tokens, dim, depth = 5, 192, 12
    block = tokens * dim * dim * (3 + 1 + 8) + 2 * tokens * tokens * dim
    # Each product of attention has two gradients, one of a linear layer.
    back = depth * (block + 2 * tokens * tokens * dim) + dim * 10
    forward = depth * block + dim * 10 + 4 * dim * 48
    assert suite_ntk.capture_flop(model, images, 3) == 2 * 2 * (forward + 3 * back)


def small_case(**changes):
    return replace(suite_ntk.Case("strided-cnn", (2, 1, 28, 28), against=suite_ntk.ALL), **changes)


def test_rows_hold_what_the_targets_are_about(monkeypatch):
    monkeypatch.delenv(NT_PYTHON, raising=False)
    rows = suite_ntk.measure(small_case(), "cpu", quick=True, clock=timing.HostClock("cpu"))
    found = {row.provider: row for row in rows}
    assert set(found) == {*suite_ntk.ALL, "advfast", "matmul"}
    assert found["neural_tangents"].status.startswith("skipped: ADVFAST_NT_PYTHON is not set")
    reference, ours = found["torch_func"], found["advfast"]
    for name in ("torch_func", "hooks", "advfast"):
        row = found[name]
        assert row.status == "ok" and row.rel_error < 1e-5 and row.peak_bytes is not None
        assert row.ratio_to_torch_func == pytest.approx(reference.ms_p50 / row.ms_p50)
        assert row.ratio_to_floor == pytest.approx(row.ms_p50 / row.floor_ms)
        assert row.percent_of_matmul == pytest.approx(100 * row.floor_ms / row.ms_p50)
    rate = found["matmul"].gflop_per_s
    assert ours.floor_ms == pytest.approx(
        1e3 * (ours.capture_gflop + ours.contraction_gflop) / rate
    )
    assert ours.readouts == 10 and ours.contraction_gflop > 0
    assert suite_ntk.skipped(small_case(), "no time").status == "skipped: no time"


def test_a_case_of_memory_alone_is_checked_and_not_timed():
    case = small_case(against=(), timed=False)
    (row,) = suite_ntk.measure(case, "cpu", quick=True, clock=timing.HostClock("cpu"))
    assert row.ms_p50 is None and row.status == "untimed: memory alone"
    assert row.rel_error < 1e-5 and row.first_ms > 0


def test_a_wrong_kernel_is_not_timed():
    kernel = torch.rand(2, 2, 3, 3)
    tried = {
        "same": suite_ntk.Tried(call=len, kernel=kernel + 1e-6),
        "other": suite_ntk.Tried(call=len, kernel=kernel * 1.01),
        "traced": suite_ntk.Tried(call=len, kernel=kernel[:, :, 0, 0]),
    }
    suite_ntk.compare(tried, kernel)
    assert tried["same"].status == "ok" and tried["same"].call is not None
    assert tried["other"].status == "wrong: 0.01 from torch_func, 0.001 is allowed"
    assert tried["traced"].status == "wrong: its shape is (2, 2)"
    assert tried["other"].call is None and tried["traced"].call is None


def test_hand_written_kernels_agree():
    model = nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(0, 1), dilation=(2, 1)), nn.BatchNorm2d(3),
        nn.ReLU(), nn.Flatten(2), nn.Linear(15, 4, bias=False), nn.LayerNorm(4), nn.Flatten(),
        nn.Linear(12, 3),
    ).double().eval()  # fmt: skip
    images = torch.rand(4, 2, 7, 8, dtype=torch.float64)
    for readout in ("full", "sum", torch.rand(2, 3, dtype=torch.float64)):
        scene = Scene("made up", model, images, readout)
        expected = ntk_providers.with_torch_func(scene)()
        got = ntk_providers.with_hooks(scene)()
        assert got.shape == expected.shape
        assert (got - expected).norm() < 1e-12 * expected.norm()


def test_hooks_refuse_what_they_would_leave_out():
    scene = Scene("vit-tiny", networks.make("vit-tiny", 3, side=8), torch.rand(1, 3, 8, 8), "full")
    with pytest.raises(NotImplementedError, match="VisionTransformer"):
        ntk_providers.with_hooks(scene)


@pytest.mark.skipif(importlib.util.find_spec("jax") is not None, reason="jax is installed here")
def test_an_interpreter_without_jax_is_a_failure_of_the_peer(monkeypatch):
    monkeypatch.setenv(NT_PYTHON, sys.executable)
    scene = Scene(
        "strided-cnn", networks.make("strided-cnn", 1, side=28), torch.rand(1, 1, 28, 28), "full"
    )
    with pytest.raises(RuntimeError, match="No module named 'jax'"):
        ntk_providers.NeuralTangents(scene, 3)
    with pytest.raises(ImportError, match="not written in JAX"):
        ntk_providers.NeuralTangents(replace(scene, readout="sum"), 3)


def test_known_times_replace_warm_ups_and_bound_the_rounds():
    calls = {"fast": 0, "slow": 0}

    def called(name):
        calls[name] += 1

    items = {name: timing.Timed(lambda name=name: called(name)) for name in calls}

    def clock(item):
        item.call()
        return 1.0

    times = timing.take_turns(
        items, clock, seconds=0.0, min_rounds=4, warmups=1, known={"slow": 9e3},
        rounds_of=lambda ms: 2 if ms > 1e3 else 10,
    )  # fmt: skip
    assert {name: len(t.ms) for name, t in times.items()} == {"fast": 4, "slow": 2}
    assert calls == {"fast": 5, "slow": 2}


def test_planner_rows_are_sums_of_measured_times(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ntk_planner, "QUICK", (("strided-cnn", (1, 28, 28)),))
    out = tmp_path / "planner.csv"
    assert ntk_planner.main(["--quick", "--out", str(out)]) == 0
    assert "worst total" in capsys.readouterr().out
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (4 + 1) and all(all(row.values()) for row in rows)
    for row in rows:
        if row["layer"] != "all":
            times = {o: row[f"measured_{o.lower()}"] for o in "MCG"}
            known = {o: float(ms) for o, ms in times.items() if ms != "-"}
            assert row["best"] == min(known, key=known.get)
            if row["chosen"] in known:
                share = known[row["chosen"]] / known[row["best"]]
                assert float(row["ratio"]) == pytest.approx(share, rel=1e-3)


def test_scaling_is_measured_and_drawn_again_from_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(
        ntk_scaling, "QUICK_AXES", {"samples": (2, 3), "readouts": (2,), "width": (4,)}
    )
    out, first, second = (tmp_path / name for name in ("s.csv", "1.png", "2.png"))
    assert ntk_scaling.main(["--quick", "--out", str(out), "--picture", str(first)]) == 0
    rows = ntk_scaling.read(out)
    assert {row.provider for row in rows} == {"advfast", "advfast_M", "hooks"}
    assert len(rows) == 12 and all(row.ms > 0 for row in rows)
    assert ntk_scaling.held_at(rows) == {"samples": 2, "readouts": 2, "width": 4}
    assert ntk_scaling.main(["--from", str(out), "--picture", str(second)]) == 0
    assert second.read_bytes() == first.read_bytes()
