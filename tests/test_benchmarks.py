"""The benchmarks themselves: what they count, what they write, when they refuse."""

import csv
import os
import re
import stat
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import advfast

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import conv  # noqa: E402
import plot  # noqa: E402
import records  # noqa: E402
import sequences  # noqa: E402
import suite_attack  # noqa: E402
import suite_kernels  # noqa: E402
import timing  # noqa: E402
from suite_kernels import Case  # noqa: E402

PIXELS = 2 * 3 * 4 * 5
SHAPE = (2, 3, 4, 5)


def run_script(*arguments, **environment):
    return subprocess.run(
        list(map(str, arguments)), cwd=ROOT, capture_output=True, text=True, check=False,
        env=dict(os.environ, **environment), timeout=250,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("case", "a_pixel"),
    [
        (Case("pgd_step_", "linf", SHAPE), 16),
        (Case("pgd_step_", "l2", SHAPE, "bf16"), 14),
        (Case("pgd_step_", "l1", SHAPE, "bf16", "NHWC", "bf16"), 16),
        (Case("pgd_step_", "linf", SHAPE, "fp32", "NHWC", "fp32"), 20),
        (Case("project_", "linf", SHAPE), 12),
        (Case("project_", "l2", SHAPE, "fp32", "NCHW", "bf16"), 14),
        (Case("random_start", "linf", SHAPE), 8),
    ],
    ids=str,
)
def test_bytes_are_those_counted_by_hand(case, a_pixel):
    assert suite_kernels.bytes_moved(case) == PIXELS * a_pixel


@pytest.mark.parametrize("case", list(suite_kernels.cases("cuda", quick=False)), ids=str)
def test_bytes_are_those_of_the_tensors(case):
    """The count against the sizes of the tensors that the case hands over."""
    small = replace(case, shape=(2, case.shape[1], 6, 6))
    inputs = suite_kernels.make_inputs(small, "cpu")
    work = suite_kernels.work_of(small, inputs)
    sizes = {name: t.nbytes for name, t in vars(work).items() if isinstance(t, torch.Tensor)}
    wanted = sizes["x0"] + sizes["x"]  # random_start returns a tensor like x
    if case.op != "random_start":
        wanted += sizes["x"] + sizes.get("out", 0)
    if case.op == "pgd_step_":
        wanted += sizes["grad"]
    assert suite_kernels.bytes_moved(small) == wanted


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("op", ["pgd_step_", "project_"])
@pytest.mark.parametrize("form", [("fp32", "NCHW", ""), ("bf16", "NHWC", "bf16")], ids=str)
def test_hand_written_steps_do_the_same_work(op, norm, form):
    case = Case(op, norm, (3, 3, 8, 8), *form)
    inputs = suite_kernels.make_inputs(case, "cpu")
    wanted = suite_kernels.fused(case, "reference", suite_kernels.work_of(case, inputs))
    assert not torch.equal(wanted[0], inputs.x)
    for name, run in suite_kernels.providers(case, "cpu", compile=False).items():
        got = run(suite_kernels.work_of(case, inputs))
        assert suite_kernels.fault(case, name, got, wanted) == ""


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("table", [sequences.EAGER, sequences.INPLACE], ids=["eager", "inplace"])
def test_hand_written_starts_lie_in_the_ball(norm, table):
    case = Case("random_start", norm, (3, 3, 8, 8))
    work = suite_kernels.work_of(case, suite_kernels.make_inputs(case, "cpu"))
    start = table["random_start", norm](work)[0]
    moved = (start - work.x0).flatten(1).double()
    size = moved.norm(p={"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1)
    assert (size <= case.eps * (1 + 1e-5)).all()
    assert (size > 0.3 * case.eps).any()
    assert start.min() >= 0 and start.max() <= 1


def test_a_wrong_result_is_found():
    case = Case("pgd_step_", "linf", (2, 3, 8, 8))
    inputs = suite_kernels.make_inputs(case, "cpu")
    x, out = suite_kernels.fused(case, "reference", suite_kernels.work_of(case, inputs))
    wrong = x.clone()
    wrong[0, 0, 0, 0] = torch.nextafter(wrong[0, 0, 0, 0], torch.tensor(2.0))
    assert "bits" in suite_kernels.fault(case, "cpp", (wrong, out), (x, out))
    ball = Case("pgd_step_", "l2", (2, 3, 8, 8))
    assert "allowed" in suite_kernels.fault(ball, "cpp", (x + 1e-3, out), (x, out))


def test_a_wrong_attack_is_found():
    case = suite_attack.Case("small-cnn", (2, 1, 4, 4))
    images = torch.full(case.shape, 0.5)
    made = images + 8 / 255

    def fault(got, provider="advfast"):
        return suite_attack.fault(
            case, "cpu", provider, got, made, images, lambda x: float((x - images).sum())
        )

    assert fault(made) == ""
    assert fault(made - 1e-4) == ""  # other arithmetic, as strong
    assert "bits" in fault(made - 1e-4, "advfast_exact")
    assert "ball" in fault(images + 9 / 255)
    assert "loss" in fault(images)
    assert "bits" in fault(images + 7.99 / 255, "torchattacks")


def test_percentiles_and_ratios():
    times = {
        "torch": timing.Times((8.0, 6.0, 4.0, 2.0, 10.0)),
        "cpp": timing.Times((2.0, 3.0, 4.0)),
    }
    assert times["torch"].median == 6.0
    assert times["torch"].percentile(20) == pytest.approx(3.6)
    assert times["torch"].percentile(80) == pytest.approx(8.4)
    assert timing.ratio(times, "torch", "cpp") == 2.0
    assert timing.ratio(times, "torch_inplace", "cpp") is None


def test_providers_take_turns_in_rotating_order():
    order = []

    def clock(item):
        if item.prepare is not None:
            item.prepare()
        item.call()
        return 1.0

    items = {
        name: timing.Timed(lambda name=name: order.append(name), lambda: order.append("prepare"))
        for name in "abc"
    }
    times = timing.take_turns(items, clock, seconds=0.0, min_rounds=3, warmups=1)
    assert [n for n in order if n != "prepare"][3:] == list("abcbcacab")
    assert order.count("prepare") == 12
    assert {name: len(t.ms) for name, t in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_csv_replaces_the_row_of_the_same_key(tmp_path):
    path = tmp_path / "results.csv"
    shared = records.environment("cpu")
    row = records.Row(suite="kernels", op="pgd_step_", norm="linf", provider="cpp", ms_p50=2.0)
    records.Results(path, shared).add([row, replace(row, provider="torch")])
    records.Results(path, shared).add([replace(row, ms_p50=1.0)])
    found = records.read(path)
    assert [(r["provider"], r["ms_p50"]) for r in found] == [("cpp", "1"), ("torch", "2")]
    for name in ("date", "commit", "machine", "threads", "gpu", "torch", "python"):
        assert found[0][name], name
    assert tuple(found[0]) == tuple(field.name for field in fields(records.Row))


def test_a_file_with_other_columns_is_not_overwritten(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("op,ms\npgd_step_,1\n")
    with pytest.raises(ValueError, match="other columns"):
        records.Results(path, records.environment("cpu"))
    assert path.read_text() == "op,ms\npgd_step_,1\n"


def test_a_file_from_before_a_column_is_read_and_written_with_it(tmp_path):
    path = tmp_path / "results.csv"
    shared = records.environment("cpu")
    row = records.Row(suite="attack", op="pgd-3", norm="linf", provider="art", ms_p50=2.0)
    records.Results(path, shared).add([row])
    with path.open(newline="") as file:
        old = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        columns = [name for name in records.FIELDS if name != "peak_bytes"]
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(old)
    assert records.read(path)[0]["peak_bytes"] == ""
    records.Results(path, shared).add([replace(row, provider="advfast", peak_bytes=5)])
    found = {r["provider"]: r["peak_bytes"] for r in records.read(path)}
    assert found == {"art": "", "advfast": "5"}


@pytest.mark.parametrize(
    ("script", "said"), [("cycles", "equal bits"), ("precision", "signs flipped")]
)
def test_trials_of_robust_networks_write_rows_without_holes(script, said, tmp_path):
    out = tmp_path / "out.csv"
    done = run_script(
        sys.executable, f"benchmarks/{script}.py", "--quick", "--threads", "1", "--out", out
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows and all(all(row.values()) for row in rows)
    if script == "precision":
        plain = [row for row in rows if row["arithmetic"] == "plain"]
        assert len(plain) == 4 and all(float(row["pixels_differ"]) == 0 for row in plain)
        assert any(float(row["sign_flips"]) > 0 for row in rows if row["arithmetic"] == "bf16")
    else:
        assert any(float(row["cycled_share"]) > 0 for row in rows)


def test_first_convolutions_are_checked_and_timed():
    theirs, ours, work = conv.measure((4, 1, 4, 8, 3, 1, 1), torch.contiguous_format)
    assert theirs > 0 and ours > 0
    assert work == pytest.approx(2e-9 * 4 * 4 * 64 * 9)


def test_folding_prints_a_table():
    done = run_script(sys.executable, "benchmarks/folding.py", "--only", "^small-cnn$")
    assert done.returncode == 0, done.stderr
    assert "| small-cnn | 2 of 2 | 4 | 1 | yes | no |" in done.stdout
    assert run_script(sys.executable, "benchmarks/folding.py", "--only", "none").returncode == 2


def test_run_refuses_when_a_test_fails(tmp_path):
    red, out = tmp_path / "test_red.py", tmp_path / "out.csv"
    red.write_text("def test_red():\n    assert False, 'injected'\n")
    done = run_script(
        sys.executable, "benchmarks/run.py", "kernels", "--quick", "--tests", red, "--out", out
    )
    assert done.returncode == 1
    assert "injected" in done.stdout and "refused" in done.stderr
    assert not out.exists() and "x torch" not in done.stdout


def test_run_refuses_without_tests(tmp_path):
    done = run_script(
        sys.executable,
        "benchmarks/run.py",
        "kernels",
        "--quick",
        "--tests",
        tmp_path / "nothing.py",
    )
    assert done.returncode == 1 and "no tests at" in done.stderr


def test_run_writes_a_row_a_provider(tmp_path):
    green, out = tmp_path / "test_green.py", tmp_path / "out.csv"
    green.write_text("def test_green():\n    pass\n")
    done = run_script(
        sys.executable, "benchmarks/run.py", "kernels", "--quick", "--threads", "1", "--tests", green,
        "--only", "project_ linf fp32 NCHW 32x3x32x32", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = records.read(out)
    assert {row["provider"] for row in rows} == {"torch", "torch_inplace", "reference", "cpp"}
    assert all(row["bytes"] == str(32 * 3 * 32 * 32 * 12) for row in rows)
    for row in rows:
        if row["status"].startswith("skipped"):
            continue
        assert row["status"] == "ok" and int(row["rounds"]) >= 3 and row["threads"] == "1"
        low, middle, high = (float(row[name]) for name in ("ms_p20", "ms_p50", "ms_p80"))
        assert 0 < low <= middle <= high
        rate = float(row["bytes"]) / middle / 1e6
        assert float(row["gb_per_s"]) == pytest.approx(rate, rel=1e-4)
        share = 100 * rate / float(row["copy_gb_per_s"])
        assert float(row["percent_of_copy"]) == pytest.approx(share, rel=1e-4)
    eager = next(row for row in rows if row["provider"] == "torch")
    assert float(eager["ratio_to_torch"]) == 1


def _rows(path, **columns):
    base = dict.fromkeys(records.FIELDS, "")
    base.update(
        suite="kernels", op="pgd_step_", provider="cpp", shape="1x1x1x1", ms_p20="1", ms_p50="2",
        ms_p80="3", bytes="1000000", copy_gb_per_s="2", commit="abc", date="2026-01-01",
        machine="m", threads="2", gpu="none", torch="2", status="ok", device="cpu",
    )  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, records.FIELDS)
        writer.writeheader()
        writer.writerows([base, base | columns])


def test_plot_keeps_cpu_and_gpu_apart(tmp_path, capsys):
    path = tmp_path / "r.csv"
    _rows(path, device="cuda", gpu="NVIDIA H200", provider="cuda")
    assert plot.main([str(path)]) == 0
    made = capsys.readouterr().out.split()
    assert len(made) == 2 and all(Path(p).stat().st_size > 1000 for p in made)
    groups = plot.machines(records.read(path)).values()
    assert [{row["device"] for row in rows} for rows in groups] == [{"cpu"}, {"cuda"}]


def test_plot_draws_one_machine_into_the_named_file(tmp_path):
    path = tmp_path / "r.csv"
    _rows(path, provider="torch")
    assert plot.main([str(path), "--out", str(tmp_path / "p.svg")]) == 0
    assert "copy bandwidth" in (tmp_path / "p.svg").read_text()


def test_peers_file_is_a_requirements_file():
    lines = (BENCHMARKS / "peers.txt").read_text().splitlines()
    named = [line for line in lines if line.strip() and not line.startswith("#")]
    pattern = re.compile(r"^[A-Za-z0-9._-]+(==[0-9][0-9.]*)?(\s+# --no-deps: .+)?$")
    assert [line for line in named if not pattern.match(line)] == []
    pinned = {line.split("==")[0] for line in named if "==" in line}
    assert pinned >= {"torchattacks", "foolbox", "cleverhans", "adversarial-robustness-toolbox"}


@pytest.mark.skipif(
    "cpp" not in advfast.available_impls("pgd_step_", "cpu"), reason="no native core"
)
def test_sanitized_program_compares_with_the_reference():
    done = run_script(sys.executable, "benchmarks/sanitize_pgd.py", "--impl", "cpp", "--small")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"cpp: \d{3} calls, 0 wrong", done.stdout)
    done = run_script(sys.executable, "benchmarks/sanitize_ntk.py", "--impl", "reference")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"reference: \d{2} calls, 0 wrong", done.stdout)


def test_gpu_suite_dry_run_passes():
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = run_script("bash", "benchmarks/gpu_suite.sh", "--dry-run", PATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in (
        "build",
        "test",
        "sanitize",
        "bench-kernels",
        "bench-attack",
        "bench-train",
        "bench-ntk",
    ):
        assert re.search(rf"^{stage}: at most (\d+) s", done.stdout, re.M)
    assert int(re.search(r"at most (\d+) s", done.stdout)[1]) < 480


@pytest.fixture
def copied_suite(tmp_path):
    """gpu_suite.sh beside files that exist, and a python3 that does what it is asked in no time."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "tests/kernels").mkdir(parents=True)
    for name in ("run.py", "sanitize_pgd.py", "sanitize_ntk.py"):
        (tmp_path / "benchmarks" / name).write_text("")
    script = tmp_path / "benchmarks/gpu_suite.sh"
    script.write_text((BENCHMARKS / "gpu_suite.sh").read_text())
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name, body in {
        "python3": 'case "$*" in *"run.py kernels"*) echo broken; exit 3 ;; esac',
        "compute-sanitizer": "exit 0",
        "nvidia-smi": "echo Test GPU, 1.0",
    }.items():
        tool = bin_ / name
        tool.write_text(f"#!/bin/sh\n{body}\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    path = os.pathsep.join((str(bin_), os.environ["PATH"]))

    def run(*arguments):
        return run_script("bash", script, *arguments, PATH=path)

    return run


def test_gpu_suite_dry_run_misses_a_file(copied_suite, tmp_path):
    assert copied_suite("--dry-run", "sanitize").returncode == 0
    (tmp_path / "benchmarks/sanitize_pgd.py").unlink()
    done = copied_suite("--dry-run", "sanitize")
    assert done.returncode == 1 and "missing: benchmarks/sanitize_pgd.py" in done.stdout


def test_gpu_suite_goes_on_after_a_failing_stage(copied_suite, tmp_path):
    out = tmp_path / "out"
    stages = ("bench-kernels", "bench-attack", "sanitize", "bench-ntk")
    done = copied_suite(*stages, "--out", out)
    assert done.returncode == 1
    summary = (out / "summary.txt").read_text()
    assert "Test GPU" in summary
    assert re.search(r"^bench-kernels: run, \d+ s, FAILED exit 3: ", summary, re.M)
    assert re.search(r"^bench-attack: run, \d+ s, ok$", summary, re.M)
    assert re.search(r"^sanitize: run, \d+ s, ok$", summary, re.M)
    assert re.search(r"^bench-ntk: run, \d+ s, ok$", summary, re.M)
    assert "broken" in (out / "gpu_suite.log").read_text()
    assert len(list(out.iterdir())) <= 6


@pytest.mark.parametrize("script", ["gpu_suite.sh", "make_peers_env.sh"])
def test_scripts_parse(script):
    assert run_script("bash", "-n", BENCHMARKS / script).returncode == 0
    assert os.access(BENCHMARKS / script, os.X_OK)
