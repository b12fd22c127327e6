"""Runs the tests that other libraries ship: first on the library itself, then with ours in its place.

.venv-peers/bin/python benchmarks/parity/run.py --sources DIR [--only SUITE] [--out results/parity.csv]

DIR holds checkouts named foolbox, adversarial-library and adversarial-attacks-pytorch; without it only what pip
installs is tested. README.md beside this file says how to get them and what was found.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import records  # noqa: E402
from benchmarks.parity import outcomes  # noqa: E402
from benchmarks.parity.suites import SUITES, Suite  # noqa: E402

FIELDS = (
    "date", "commit", "machine", "python", "torch", "suite", "peer", "source", "test",
    "original_passed", "original_failed", "original_skipped",
    "ours_passed", "ours_failed", "ours_skipped", "first_failure",
)  # fmt: skip
NOTHING = outcomes.Count()


def source_of(suite: Suite, root: Path) -> str:
    """The version of the tests: "shipped" with the package, or the commit of the checkout."""
    if not suite.checkout:
        return "shipped"
    noted = root / "COMMIT"
    if noted.exists():
        return noted.read_text().strip()
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def run_suite(
    suite: Suite, root: Path, swap: bool, python: str, fault: str = ""
) -> dict[str, outcomes.Count]:
    """One run of pytest in a process and a folder of its own.

    Raises:
        RuntimeError: pytest ran no test; with the end of what it printed.
    """
    paths = [str(ROOT), *(str(root / folder) for folder in suite.on_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    plugins = ["-p", "benchmarks.parity.shims"]
    if swap:
        plugins += ["-p", f"benchmarks.parity.swaps.{suite.name}"]
    if fault:
        plugins += ["-p", "benchmarks.parity.fault"]
        environment["ADVFAST_PARITY_FAULT"] = fault
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            python, "-m", "pytest", "-c", os.devnull, "--rootdir", str(root), "-q",
            "-p", "no:cacheprovider", *plugins, *suite.arguments, f"--junitxml={report}",
            *(["-k", suite.select] if suite.select else []),
            *(str(root / file) for file in suite.files),
        ]  # fmt: skip
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        found = outcomes.read(report) if report.exists() else {}
        if not found or done.returncode not in (0, 1):
            raise RuntimeError(
                f"{suite.name}: pytest ran no test\n{(done.stdout + done.stderr)[-3000:]}"
            )
    return found


def compare(suite: Suite, root: Path, python: str, shared: dict[str, str]) -> list[dict[str, str]]:
    """A row for each test function of the suite."""
    original = run_suite(suite, root, False, python)
    ours = run_suite(suite, root, True, python)
    rows = []
    for name in sorted({*original, *ours}):
        theirs, own = original.get(name, NOTHING), ours.get(name, NOTHING)
        row = {
            **shared,
            "suite": suite.name,
            "peer": f"{suite.peer} {version(suite.peer)}",
            "source": source_of(suite, root),
            "test": name,
            "first_failure": own.message or theirs.message or "none",
        }
        for who, count in (("original", theirs), ("ours", own)):
            for what in ("passed", "failed", "skipped"):
                row[f"{who}_{what}"] = str(getattr(count, what))
        rows.append(row)
    return rows


def lost(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows where ours does worse than the peer."""
    return [
        row
        for row in rows
        if int(row["ours_failed"]) > int(row["original_failed"])
        or int(row["ours_passed"]) < int(row["original_passed"])
    ]


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """Rows of other suites that the file has stay."""
    names, kept = {row["suite"] for row in rows}, []
    if path.exists():
        with path.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if row["suite"] not in names]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept + rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sources", type=Path, help="folder of checkouts")
    parser.add_argument("--only", default="", metavar="REGEX", help="suites whose name matches")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/parity.csv")
    parser.add_argument(
        "--fault",
        choices=("clean", "raise"),
        default="",
        help="instead: how many tests notice if ours returns clean images, or raises",
    )
    parser.add_argument("--python", default=sys.executable, help="interpreter with the peers")
    given = parser.parse_args(arguments)
    here = records.environment("cpu")
    shared = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": here.commit,
        "machine": here.machine,
        "python": here.python,
        "torch": here.torch,
    }
    found: list[dict[str, str]] = []
    broken: list[str] = []
    unmoved: list[str] = []
    chosen = [suite for suite in SUITES if re.search(given.only, suite.name)]
    if not chosen:
        parser.error(f"--only {given.only} matches none of {', '.join(s.name for s in SUITES)}")
    for suite in chosen:
        root = suite.root(given.sources)
        if root is None:
            place = f"--sources DIR with {suite.checkout}" if suite.checkout else "the package"
            print(f"{suite.name:14} skipped: needs {place}")
            continue
        if given.fault:
            counts = run_suite(suite, root, True, given.python, given.fault).values()
            failed = sum(count.failed for count in counts)
            total = failed + sum(count.passed for count in counts)
            print(f"{suite.name:14} {failed} of {total} tests notice the fault")
            unmoved += [suite.name] if not failed else []
            continue
        try:
            rows = compare(suite, root, given.python, shared)
        except RuntimeError as error:
            print(error)
            broken.append(suite.name)
            continue
        found += rows
        for who in ("original", "ours"):
            counts = [
                sum(int(row[f"{who}_{what}"]) for row in rows)
                for what in ("passed", "failed", "skipped")
            ]
            print(
                f"{suite.name:14} {who:9} {counts[0]:4} passed {counts[1]:4} failed {counts[2]:4} skipped"
            )
        for row in lost(rows):
            print(f"    {row['test']}: {row['first_failure']}")
    if given.fault:
        return 1 if unmoved else 0
    if found:
        write(given.out, found)
        print(f"wrote {given.out}")
    return 1 if broken or lost(found) or not found else 0


if __name__ == "__main__":
    sys.exit(main())
