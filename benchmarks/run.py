"""Tests an op, then times it against its peers: benchmarks/run.py kernels|attack|train|ntk [--quick] ...

Nothing is timed, and no ratio printed, when a test of what is timed fails. results/README.md says
what is measured.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import suite_attack
import suite_kernels
import suite_ntk
import suite_train
import torch
from ntk_providers import NT_PYTHON
from peers import PEERS
from records import ROOT, SUITES, Results, environment, table
from timing import Clock, DeviceClock, HostClock

MODULES: dict[str, Any] = {
    "kernels": suite_kernels, "attack": suite_attack, "train": suite_train, "ntk": suite_ntk,
}  # fmt: skip
NOISE = 1.5
BUSY = 0.5  # a barrier waits for the one thread that another program holds up
TESTS = {
    "kernels": "tests/kernels", "attack": "tests/attacks", "train": "tests/training",
    "ntk": "tests/ntk",
}  # fmt: skip


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument(
        "--quick", action="store_true", help="small cases, few rounds: a trial, no result"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="of torch on the CPU; default: torch's own")
    parser.add_argument(
        "--out", type=Path,
        help="CSV; rows of the same key in it are replaced (default: "
        "benchmarks/results/SUITE_DEVICE.csv, with --quick none)",
    )  # fmt: skip
    parser.add_argument("--only", type=re.compile, metavar="REGEX", help="cases that it matches")
    parser.add_argument(
        "--tests", nargs="+", metavar="PATH",
        help=f"what pytest runs first; default: {', '.join(TESTS.values())}, by suite",
    )  # fmt: skip
    parser.add_argument(
        "--quick-tests", action="store_true", help="with fewer examples, as --quick takes them"
    )
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", default=float("inf"),
        help="no new case is begun after this long; those left are rows with status skipped",
    )  # fmt: skip
    parser.add_argument(
        "--nt-python", metavar="PYTHON", help="ntk: the interpreter of make_ntk_peers_env.sh's "
        f"environment, for neural-tangents (default: the variable {NT_PYTHON})",
    )  # fmt: skip
    return parser.parse_args(arguments)


def tests_pass(paths: list[str], *, quick: bool) -> bool:
    missing = [path for path in paths if not (ROOT / path.split("::")[0]).exists()]
    if missing:
        print(f"no tests at {', '.join(missing)}", file=sys.stderr)
        return False
    command = [sys.executable, "-m", "pytest", "-q", "-x", *paths]
    if quick and all(path.startswith("tests/") for path in paths):
        command.append("--hypothesis-profile=quick")  # of tests/conftest.py
    print("tests first:", " ".join(command[2:]), flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def clock_for(suite: str, device: str) -> Clock:
    return DeviceClock() if suite == "kernels" and device == "cuda" else HostClock(device)


def run(args: argparse.Namespace, chosen: Iterable[Any], results: Results) -> None:
    module = MODULES[args.suite]
    clock = clock_for(args.suite, args.device)
    start = time.monotonic()
    for case in chosen:
        if time.monotonic() - start > args.budget:
            rows = [module.skipped(case, f"the time budget of {args.budget:g} s was spent")]
        else:
            rows = module.measure(case, args.device, quick=args.quick, clock=clock)
        results.add(rows)
        print(table(rows), flush=True)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.nt_python is not None:
        os.environ[NT_PYTHON] = args.nt_python
    found = MODULES[args.suite].cases(args.device, quick=args.quick)
    chosen = [case for case in found if args.only is None or args.only.search(str(case))]
    if args.list or not chosen:
        print("\n".join(map(str, chosen)) or f"--only {args.only.pattern} matches no case")
        return 0 if args.list else 2
    if args.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: torch sees no CUDA device here", file=sys.stderr)
        return 2
    shared = environment(args.device)
    if not tests_pass(args.tests or [TESTS[args.suite]], quick=args.quick or args.quick_tests):
        print("refused: the tests above must pass before anything is timed", file=sys.stderr)
        return 1
    path = args.out
    if path is None and not args.quick:
        path = ROOT / f"benchmarks/results/{args.suite}_{args.device}.csv"
    results = Results(path, shared)
    print(f"{shared.machine}, {shared.threads} threads; GPU {shared.gpu}; torch {shared.torch}")
    if (shared.load or 0.0) > BUSY:
        said = f"noise: the load average was {shared.load:.1f}: other programs distort the times"
        print(said, file=sys.stderr)
    run(args, chosen, results)
    bad = [row for row in results.rows if row.status.startswith(("wrong", "failed"))]
    for row in bad:
        print(f"{row.op} {row.norm} {row.provider}: {row.status}", file=sys.stderr)
    timed = [row for row in results.rows if row.ms_p20 and row.ms_p80]
    noisy = sum(row.ms_p80 > NOISE * row.ms_p20 for row in timed if row.ms_p20 and row.ms_p80)
    if noisy:
        said = f"noise: in {noisy} of {len(timed)} rows p80 is over {NOISE} times p20"
        print(said, file=sys.stderr)
    print(f"\n{len(results.rows)} rows" + (f" in {path}" if path else ", not written"))
    # What a peer cannot do is a result, not a fault of this run.
    peers = {*PEERS, *suite_ntk.PEERS}
    return 1 if any(row.provider not in peers for row in bad) else 0


if __name__ == "__main__":
    sys.exit(main())
