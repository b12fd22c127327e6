"""Puts each fault into a copy of the sources and checks that the ordinary tests turn red.

python tests/mutants/run.py [--only REGEX] [--out FILE.csv] [--list]

The copy is built (C++ faults), the unchanged copy must pass, and each fault must make a test fail. Exits with 1 if a
fault survives. All of them take two hours on 2 cores; CI runs a handful.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.mutants import (  # noqa: E402
    faults,
    faults_apgd,
    faults_autoattack,
    faults_captured,
    faults_co_features,
    faults_collapse,
    faults_criticality,
    faults_deat,
    faults_fab,
    faults_fast,
    faults_induced,
    faults_memorization,
    faults_modifiers,
    faults_ntk,
    faults_prefix,
    faults_ranks,
    faults_reat,
    faults_regularised,
    faults_report,
    faults_sanity,
    faults_square,
    faults_studies,
    faults_te,
)
from tests.mutants.faults import Fault  # noqa: E402

FAULTS = [
    *faults.FAULTS,
    *faults_autoattack.FAULTS,
    *faults_apgd.FAULTS,
    *faults_captured.FAULTS,
    *faults_co_features.FAULTS,
    *faults_collapse.FAULTS,
    *faults_criticality.FAULTS,
    *faults_deat.FAULTS,
    *faults_fab.FAULTS,
    *faults_fast.FAULTS,
    *faults_memorization.FAULTS,
    *faults_induced.FAULTS,
    *faults_modifiers.FAULTS,
    *faults_ntk.FAULTS,
    *faults_prefix.FAULTS,
    *faults_ranks.FAULTS,
    *faults_reat.FAULTS,
    *faults_regularised.FAULTS,
    *faults_report.FAULTS,
    *faults_sanity.FAULTS,
    *faults_square.FAULTS,
    *faults_studies.FAULTS,
    *faults_te.FAULTS,
]


def _under(folder: str, *names: str) -> list[str]:
    return [f"tests/{folder}/test_{name}.py" for name in names]


KERNEL_TESTS = ["tests/kernels/test_pgd.py"]
TESTS = {
    "apgd": [
        *_under("attacks/search", "apgd", "apgd_schedule", "apgd_parity"),
        "tests/kernels/test_apgd.py",
    ],
    "attack": _under(
        "attacks", "pgd", "contract", "bad_input", "call_options", "finish", "wrappers", "losses"
    ),
    "options": _under(
        "attacks", "runs", "finish", "call_options", "cycles_attack", "pgd", "presets"
    ),
    "losses": _under("attacks", "losses", "pgd"),
    "cycles": _under("attacks", "cycles", "cycles_attack"),
    "bpda": _under("attacks", "bpda"),
    "network": ["tests/attacks/network/test_program.py"],
    "capture": ["tests/attacks/test_capture.py", "tests/test_graphs.py"],
    "conv": ["tests/kernels/test_conv.py", "tests/attacks/test_first_layer.py"],
    "activation": _under("kernels", "activation"),
    "activation-triton": _under("kernels", "activation"),
    "hash": _under("kernels", "hash"),
    "square": [f"tests/attacks/search/test_square{part}.py" for part in ("", "_draws", "_block")],
    "square-kernel": _under("kernels", "square"),
    "square-triton": _under("kernels", "square"),
    "hyperplane": _under("kernels", "hyperplane"),
    "fab": ["tests/attacks/search/test_fab_by_hand.py", "tests/attacks/search/test_fab.py"],
    "torchattacks-search": _under("compat", "torchattacks_search"),
    "torchattacks": _under("compat", "torchattacks", "torchattacks_surface"),
    "foolbox": _under("compat", "foolbox", "foolbox_hooks", "foolbox_parts"),
    "cleverhans": _under("compat", "cleverhans"),
    "art": _under("compat", "art", "art_classifier"),
    "research": _under("compat", "research"),
    "train": _under(
        "training",
        "methods",
        "loop",
        "schedules",
        "modifiers",
        "checkpoint",
        "setup",
        "callbacks",
        "precision",
        "inputs",
        "train",
        "resume",
    ),
    "collapse": _under("training", "noise", "kernel_monitor", "catastrophic", "fast_resume"),
    "captured": [*_under("training", "captured", "watch"), "tests/data/test_loader.py"],
    "injected": _under("data", "injected"),
    "low-pass": _under("models", "low_pass"),
    "curvature": _under("studies", "curvature"),
    "co-features": _under("studies", "co_features"),
    "deat": _under("training", "pnm", "captured"),
    "noise-scale": _under("studies", "noise_scale"),
    "noisy": _under("data", "noisy"),
    "gradient-norm": _under("training", "gradient_norm", "fast_resume"),
    "memorization": _under("studies", "memorization", "objective", "complexity"),
    "criticality": _under("studies", "resets", "criticality", "criticality_tables", "grid"),
    "studies": _under("studies", "grid", "effects"),
    "bn-estimators": [*_under("studies", "bn_estimators"), "tests/models/test_norm.py"],
    "induced": _under("studies", "induced"),
    "room": _under("studies", "room"),
    "ntk-trace": [*_under("studies", "ntk_trace"), "tests/ntk/test_digits_study.py"],
    "fast": _under("training", "single_step", "free", "yopo", "atta", "fast_resume"),
    "modifiers": [
        *_under("training", "catastrophic", "early_stopping", "norm_layers"),
        "tests/training/modifiers",
        "tests/data/test_mixed.py",
        "tests/models/test_norm.py",
    ],
    "prefix": [
        *_under("training", "clean_prefix", "prefix_runs"),
        "tests/training/modifiers/test_ramps.py",
    ],
    "te": ["tests/training/modifiers/test_te.py", "tests/training/test_parallel.py"],
    "ranks": [
        "tests/training/test_sync_bn.py",
        "tests/evaluation/test_shard.py",
        "tests/training/test_parallel.py",
    ],
    "reat": [
        *_under("training", "reat", "tail", "robal", "reat_runs"),
        "tests/data/test_long_tail.py",
        "tests/models/test_cosine.py",
    ],
    "regularised": [
        *_under("training", "regularised", "regularised_runs"),
        "tests/attacks/test_presets.py",
    ],
    "autoattack": ["tests/attacks/autoattack", "tests/evaluation/test_searching.py"],
    "robustbench": _under("compat", "robustbench"),
    "sanity": ["tests/attacks/sanity", "tests/attacks/masking"],
    "evaluate": ["tests/evaluation"],
    "report": _under(
        "evaluation", "parts", "confusion", "page", "sanity", "resume", "progress", "edges"
    ),
    "data": ["tests/data"],
    "ntk-reference": _under("kernels", "ntk_precision", "ntk"),
    "ntk-cpp": _under("kernels", "ntk"),
    "ntk-triton": _under("kernels", "ntk_triton", "ntk"),
    "ntk-rules": _under("ntk", "capture"),
    "ntk-networks": _under("ntk", "capture_networks"),
    "ntk-capture": _under("ntk", "capture_contract"),
    "ntk-kernel": _under("ntk", "kernel"),
    "ntk-costs": _under("ntk", "costs"),
    "ntk-store": _under("ntk", "store"),
    "ntk-operator": _under("ntk", "operator"),
    "ntk-algorithms": _under("ntk", "operator_algorithms", "operator_spectrum"),
    "ntk-metrics": _under("ntk", "metrics"),
    "ntk-reducers": _under("ntk", "reducers"),
    "ntk-recorder": _under("ntk", "adversarial", "recorder"),
}
"""Of the groups that are no implementation of the pgd kernels."""
EMULATED = {"cuda": "cuda_emulated", "ntk-cuda": "ntk_emulated"}
"""Tests of kernels in the emulator, by group."""


def copy_sources(target: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def build(copy: Path) -> None:
    """The copy's own CPU core, next to its sources."""
    import pybind11

    cache = copy / "build"
    if not cache.exists():
        subprocess.run(
            ["cmake", "-S", str(copy), "-B", str(cache), "-DADVFAST_PYTHON=ON", "-DADVFAST_TESTS=OFF",
             "-DADVFAST_CUDA=off", f"-DPython_EXECUTABLE={sys.executable}",
             f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
             f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={copy / 'advfast'}"],
            check=True, capture_output=True,
        )  # fmt: skip
    subprocess.run(["cmake", "--build", str(cache), "-j", "2"], check=True, capture_output=True)


def run_emulated(copy: Path, test: str) -> tuple[bool, str]:
    """The CUDA kernels in the emulator."""
    cache = copy / "build-emulated"
    configure = ["cmake", "-S", str(copy), "-B", str(cache), "-DADVFAST_CUDA=off"]
    compile_ = ["cmake", "--build", str(cache), "-j", "2", "--target", f"test_{test}"]
    for command in (configure, compile_):
        subprocess.run(command, check=True, capture_output=True)
    command = ["ctest", "--test-dir", str(cache), "-R", test]
    passed = subprocess.run(command, capture_output=True).returncode == 0
    return passed, "" if passed else f"test_{test}"


def run_tests(copy: Path, impl: str) -> tuple[bool, str]:
    """(all passed, the first failure)."""
    if impl in EMULATED:
        return run_emulated(copy, EMULATED[impl])
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    tests = TESTS.get(impl, KERNEL_TESTS)
    if impl.endswith("triton"):
        environment |= {"ADVFAST_TEST_IMPL": "triton", "TRITON_INTERPRET": "1"}
    elif impl not in TESTS:
        environment["ADVFAST_TEST_IMPL"] = impl
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "--hypothesis-profile=quick",
         "-p", "no:cacheprovider", *tests],
        cwd=copy, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest could not run ({done.returncode}):\n{done.stdout}{done.stderr}")
    failure = re.search(r"FAILED \S*?([\w.]+::\S+)", done.stdout)
    return done.returncode == 0, failure.group(1) if failure else ""


def apply(copy: Path, fault: Fault) -> str:
    """Puts the fault in; returns the file as it was."""
    path = copy / fault.file
    before = path.read_text()
    found = before.count(fault.old)
    if found != fault.count:
        raise SystemExit(
            f"{fault.impl}: {fault.name}: expected {fault.count} of {fault.old!r} in {fault.file}, "
            f"found {found}: the source has moved on; mend tests/mutants"
        )
    path.write_text(before.replace(fault.old, fault.new))
    return before


def compiled(fault: Fault) -> bool:
    return fault.impl not in EMULATED and fault.file.startswith("csrc/")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="", help="regular expression on 'impl: name'")
    parser.add_argument("--out", type=Path, help="CSV of fault, verdict and the test that noticed")
    parser.add_argument("--list", action="store_true", help="print the faults and stop")
    options = parser.parse_args()
    chosen = [f for f in FAULTS if re.search(options.only, f"{f.impl}: {f.name}")]
    if options.list or not chosen:
        print("\n".join(f"{f.impl}: {f.name}" for f in FAULTS))
        return 0 if options.list else 2
    rows, survivors = [], []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        copy_sources(copy)
        for fault in chosen:  # all fit the sources before any work is done
            (copy / fault.file).write_text(apply(copy, fault))
        build(copy)
        built = True  # the core is that of the sources as they are
        for impl in dict.fromkeys(f.impl for f in chosen):
            passed, failure = run_tests(copy, impl)
            if not passed:
                raise SystemExit(f"the unchanged sources fail: {failure} ({impl})")
        for fault in chosen:
            started = time.monotonic()
            before = apply(copy, fault)
            if compiled(fault) or not built:
                build(copy)
            passed, failure = run_tests(copy, fault.impl)
            (copy / fault.file).write_text(before)
            built = not compiled(fault)
            verdict = "SURVIVED" if passed else "noticed"
            if passed:
                survivors.append(fault)
            seconds = time.monotonic() - started
            print(
                f"{verdict:9} {fault.impl}: {fault.name:35} {failure} ({seconds:.0f} s)", flush=True
            )
            rows.append(
                {"impl": fault.impl, "fault": fault.name, "verdict": verdict, "noticed_by": failure}
            )
    if options.out:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    print(f"{len(rows) - len(survivors)} of {len(rows)} faults noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
