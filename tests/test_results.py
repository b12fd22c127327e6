"""The committed results of the benchmarks: whole rows, and the numbers of the documentation are theirs."""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import ensembling  # noqa: E402
import fashion_mnist  # noqa: E402
import methods_fashion  # noqa: E402
import records  # noqa: E402
import systems  # noqa: E402
from rows import read  # noqa: E402

RESULTS = sorted((BENCHMARKS / "results").glob("*.csv"))
SUITE_FILES = {f"{suite}_{device}" for suite in records.SUITES for device in ("cpu", "cuda")}
OF_SUITES = [path for path in RESULTS if path.stem in SUITE_FILES]


@pytest.mark.parametrize("path", OF_SUITES, ids=lambda p: p.name)
def test_committed_results_are_complete(path):
    rows = records.read(path)
    assert rows
    assert len({records.key(row) for row in rows}) == len(rows)
    devices = {row["device"] for row in rows}
    assert len(devices) == 1, "CPU and GPU rows in one file"
    for row in rows:
        assert row["date"] and row["commit"] and row["torch"] and row["machine"]
        assert "+changes" not in row["commit"]
        assert row["device"] == "cpu" or (row["gpu"] != "none" and row["driver"])
        assert bool(row["ms_p50"]) == (row["status"] == "ok")


@pytest.mark.parametrize("path", sorted({*RESULTS} - {*OF_SUITES}), ids=lambda p: p.name)
def test_other_committed_results_name_their_source_and_have_no_holes(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        assert all(row.values())
        assert row["machine"] and row["torch"] and len(row["commit"]) == 40
    text = (BENCHMARKS / "results" / "README.md").read_text()
    assert path.name in text


def test_recipe_table_is_that_of_its_rows():
    # The numbers in README.md and docs/recipes.md.
    with (BENCHMARKS / "results" / "fashion_mnist_cpu.csv").open(newline="") as file:
        rows = [fashion_mnist.from_strings(row) for row in csv.DictReader(file)]
    found = {line.split("|")[1].strip(): line for line in fashion_mnist.table(rows).splitlines()}
    for page in ("README.md", "docs/recipes.md"):
        text = (ROOT / page).read_text()
        for line in list(found.values())[2:]:
            assert line.split("|", 2)[2] in text, page


def test_tables_of_methods_are_those_of_their_rows():
    # The numbers in docs/training.md.
    rows = read(BENCHMARKS / "results" / "methods_fashion_cpu.csv")
    text = (ROOT / "docs" / "training.md").read_text()
    small, resnet = (methods_fashion.tasks(name, quick=False) for name in ("small-cnn", "resnet18"))
    shown = 0
    for task in (small, replace(small, lr=0.05), resnet):
        mine = methods_fashion.of_setting(rows, task)
        assert mine
        shown += len(mine)
        for line in methods_fashion.table(mine).splitlines()[2:]:
            assert line in text
    assert shown == len(rows)
    elsewhere = {"at-bsl", "reat", "robal"}  # for long-tailed data: docs/systems/reat.md
    assert {row["method"] for row in rows} == set(methods_fashion.METHODS) - elsewhere


@pytest.mark.parametrize(
    ("benchmark", "page"),
    [(systems, "training.md"), (ensembling, "systems/temporal-ensembling.md")],
)
def test_tables_of_the_published_systems_are_those_of_their_rows(benchmark, page):
    text = (ROOT / "docs" / page).read_text()
    for line in benchmark.table(read(benchmark.OUT)).splitlines():
        assert line in text
