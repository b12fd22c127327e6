import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from advfast import PGDAttack
from advfast.training import profiling
from advfast.training.profiling import Profiler


def state(folder, epochs, steps_per_epoch):
    return SimpleNamespace(
        folder=folder, epochs=epochs, steps_per_epoch=steps_per_epoch, epoch=1, step=0
    )


def drive(profiler, folder, epochs, steps_per_epoch, work, first_step=0):
    """Calls the hooks as a run does; `work(epoch, step)` is the step."""
    at = state(folder, epochs, steps_per_epoch)
    at.epoch, at.step = first_step // steps_per_epoch + 1, first_step % steps_per_epoch
    at.global_step = first_step
    profiler.on_train_begin(at)
    try:
        while at.epoch <= epochs:
            at.step += 1
            work(at.epoch, at.step)
            at.global_step += 1
            profiler.on_step_end(at)
            if at.step == steps_per_epoch:
                torch.rand(7).erfinv()  # stands for validation
                profiler.on_epoch_end(at)
                at.epoch, at.step = at.epoch + 1, 0
    finally:
        profiler.on_train_end(at)


def test_training_steps_with_an_attack(tmp_path, capsys):
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
    attack = PGDAttack(model, eps=0.1, steps=2)
    images, labels = torch.rand(16, 1, 8, 8), torch.arange(16) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def work(epoch, step):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(attack(images, labels)), labels).backward()
        optimizer.step()

    profiler = Profiler(warmup=2, active=3)
    drive(profiler, tmp_path, epochs=2, steps_per_epoch=6, work=work)

    calls = {row.name: row.calls for row in profiler.profile.rows}
    assert profiler.profile.steps == 3
    assert calls["advfast::pgd_step_"] == 3 * 2
    assert calls["advfast::random_start"] == 3
    assert sum(profiler.profile.shares.values()) == pytest.approx(1)
    assert all(share > 0 for share in profiler.profile.shares.values())
    assert 0 < profiler.profile.total <= profiler.profile.wall
    times = [row.microseconds for row in profiler.profile.rows]
    assert times == sorted(times, reverse=True)

    events = json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
    assert sum(event["name"] == "advfast::pgd_step_" for event in events) == 6
    # The ranges are on the time line; in the table they would be Python's time, counted as an op's.
    assert sum(event["name"] == "advfast.step" for event in events) >= 6
    assert not any(name.startswith("advfast.") for name in calls)
    top = (tmp_path / "profile" / "top.txt").read_text()
    assert top.startswith(str(profiler.profile))
    assert "Self CPU" in top
    shown = capsys.readouterr().err
    assert str(profiler.profile) in shown
    assert "profile of 3 steps" in shown
    assert "advfast's fused ops" in shown


@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch", "warmup", "active", "first_step", "expected"),
    [
        (2, 20, 3, 5, 0, [(1, 4), (1, 5), (1, 6), (1, 7), (1, 8)]),
        # Four of the first epoch would be left: the whole window is in the second.
        (2, 9, 5, 5, 0, [(2, step) for step in range(2, 7)]),
        (1, 5, 3, 5, 0, [(1, 4), (1, 5)]),
        (1, 3, 3, 5, 0, [(1, 3)]),
        (3, 4, 3, 9, 0, [(2, 2), (2, 3), (2, 4)]),
        (9, 1, 3, 5, 0, [(4, 1)]),
        (2, 20, 3, 5, 30, [(2, step) for step in range(14, 19)]),
        (2, 20, 3, 5, 38, [(2, 20)]),
    ],
)
def test_which_steps_are_recorded(
    tmp_path, epochs, steps_per_epoch, warmup, active, first_step, expected
):
    recorded = []

    def work(epoch, step):
        if torch.autograd._profiler_enabled():
            recorded.append((epoch, step))
        torch.rand(8).cosh()

    profiler = Profiler(warmup=warmup, active=active, shown=False)
    drive(profiler, tmp_path, epochs, steps_per_epoch, work, first_step)
    assert recorded == expected
    calls = {row.name: row.calls for row in profiler.profile.rows}
    assert calls["aten::cosh"] == len(expected) == profiler.profile.steps
    assert "aten::erfinv" not in calls
    assert not torch.autograd._profiler_enabled()


def test_ranges_for_nsight(tmp_path, tiny, monkeypatch):
    from contextlib import contextmanager

    from advfast.graphs import ranges
    from advfast.training import train

    seen = []

    @contextmanager
    def annotate(name, domain):
        seen.append(f"{domain}:{name}")
        yield

    monkeypatch.setattr(ranges, "nvtx", SimpleNamespace(annotate=annotate))
    settings = {"epochs": 1, "steps": 3, "batch_size": 64, "progress": False}
    result = train("small-cnn", tiny, out=tmp_path / "run", **settings)
    steps = -(-result.environment["samples"]["train"] // 64)
    for name in ("train_step", "craft", "update"):
        assert seen.count(f"advfast:advfast.{name}") == steps
    first = seen.index("advfast:advfast.train_step")
    craft, step = "advfast:advfast.craft", "advfast:advfast.step"
    assert seen[first : first + 6] == [
        "advfast:advfast.train_step",
        craft,
        step,
        step,
        step,
        "advfast:advfast.update",
    ]


def test_too_few_steps(tmp_path, capsys):
    profiler = Profiler()
    drive(profiler, tmp_path, 1, 1, lambda epoch, step: None)
    assert profiler.profile is None
    assert "no profile was written: training ended after 1 steps" in capsys.readouterr().err


def test_a_run_that_fails_leaves_no_profiler_running(tmp_path):
    def work(epoch, step):
        torch.rand(8).cosh()
        if step == 6:
            raise ArithmeticError

    profiler = Profiler(shown=False)
    with pytest.raises(ArithmeticError):
        drive(profiler, tmp_path, 1, 20, work)
    assert not torch.autograd._profiler_enabled()
    assert profiler.profile.steps == 2  # what had been recorded until then


def test_in_a_loop_of_ones_own(tmp_path):
    with Profiler(tmp_path / "here", warmup=1, active=2, shown=False) as profiler:
        for _ in range(5):
            torch.rand(8).cosh()
            profiler.step()
    assert {row.name: row.calls for row in profiler.profile.rows}["aten::cosh"] == 2
    assert sorted(file.name for file in (tmp_path / "here").iterdir()) == ["top.txt", "trace.json"]
    with pytest.raises(ArithmeticError), Profiler(tmp_path, warmup=1) as failed:
        failed.step()
        raise ArithmeticError
    assert not torch.autograd._profiler_enabled()
    assert failed.profile is None


def test_shapes_are_recorded_only_on_request(tmp_path):
    for shapes in (False, True):
        with Profiler(tmp_path, 1, 1, shapes=shapes, shown=False) as profiler:
            for _ in range(2):
                torch.rand(5, 7).cosh()
                profiler.step()
        assert ("Input Dims" in (tmp_path / "trace.json").read_text()) == shapes


def test_another_profiler_is_in_the_way(tmp_path):
    with (
        torch.profiler.profile(),
        pytest.raises(RuntimeError, match="another torch profiler"),
        Profiler(tmp_path),
    ):
        pass


@pytest.mark.parametrize("change", [{"warmup": 0}, {"active": 0}, {"active": 1.5}])
def test_bad_arguments(change):
    with pytest.raises(ValueError, match="must be an integer >= 1"):
        Profiler(**change)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::convolution_backward", "convolutions and matmuls"),
        ("aten::mkldnn_convolution", "convolutions and matmuls"),
        ("aten::addmm", "convolutions and matmuls"),
        ("aten::mm", "convolutions and matmuls"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32", "convolutions and matmuls"),
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NNN", "convolutions and matmuls"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_s1688>(Params)", "convolutions and matmuls"),
        ("advfast::pgd_step_", "advfast's fused ops"),
        (
            "void advfast::(anonymous namespace)::linf_kernel<4, 2, true>(StepTask)",
            "advfast's fused ops",
        ),
        ("_step_linf", "advfast's fused ops"),
        ("_start", "advfast's fused ops"),
        ("aten::clamp_min", "the rest"),
        ("aten::native_batch_norm", "the rest"),
        ("void at::native::vectorized_elementwise_kernel<4>", "the rest"),
        ("Optimizer.step#SGD.step", "the rest"),
    ],
)
def test_kinds(name, kind):
    assert profiling._kind(name) == kind


def test_a_gpu_counts_each_kernel_once():
    def event(key, device_type, spent, annotation=False):
        return SimpleNamespace(
            key=key,
            count=1,
            device_type=device_type,
            is_user_annotation=annotation,
            self_device_time_total=spent,
            self_cpu_time_total=50.0,
        )

    cpu, cuda = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA
    events = [
        event("aten::mm", cpu, 7.0),
        event("sgemm_kernel", cuda, 7.0),
        event("Optimizer.step#SGD.step", cuda, 9.0, annotation=True),
        event("linf_kernel", cuda, 8.0),
    ]
    assert [(row.name, row.microseconds) for row in profiling._rows(events, "cuda")] == [
        ("linf_kernel", 8.0),
        ("sgemm_kernel", 7.0),
    ]


@pytest.mark.gpu
def test_on_a_gpu(tmp_path):
    layer = nn.Linear(64, 64, device="cuda")
    attack = PGDAttack(layer, eps=0.1, steps=2)
    x, y = torch.rand(32, 64, device="cuda"), torch.zeros(32, dtype=torch.long, device="cuda")
    with Profiler(tmp_path, warmup=1, active=2, shown=False) as profiler:
        for _ in range(3):
            attack(x, y)
            profiler.step()
    assert profiler.profile.device == "cuda"
    assert all(share > 0 for share in profiler.profile.shares.values())
