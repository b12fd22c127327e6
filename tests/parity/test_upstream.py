"""benchmarks/parity: what the libraries' own tests said is counted, compared and kept correctly."""

import csv
import sys
from pathlib import Path

import pytest

from benchmarks.parity import outcomes, run
from benchmarks.parity.suites import SUITES, Suite

TESTS = """
import pytest, unittest
from nose.plugins.skip import SkipTest

@pytest.mark.parametrize("n", range(4))
def test_some(n):
    assert n != 2, "two is\\nwrong"

class TestMore(unittest.TestCase):
    def test_skipped(self):
        raise SkipTest()

    def test_passes(self):
        pass

def test_left_out():
    assert False
"""


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "sources" / "peer"
    (folder / "tests").mkdir(parents=True)
    (folder / "tests" / "test_peer.py").write_text(TESTS)
    (folder / "COMMIT").write_text("abc\n")
    return folder


SUITE = Suite("cleverhans", "pytest", ("tests/test_peer.py",), "peer", "not left_out")


def test_counts_of_a_run(checkout):
    assert SUITE.root(checkout.parent) == checkout
    assert run.source_of(SUITE, checkout) == "abc"
    found = run.run_suite(SUITE, checkout, False, sys.executable)
    assert found.keys() == {
        "tests::test_peer::test_some",
        "test_peer::TestMore::test_skipped",
        "test_peer::TestMore::test_passes",
    }
    some = found["tests::test_peer::test_some"]
    assert (some.passed, some.failed, some.skipped) == (3, 1, 0)
    assert "two is wrong" in some.message and "\n" not in some.message
    assert found["test_peer::TestMore::test_skipped"] == outcomes.Count(skipped=1)
    assert found["test_peer::TestMore::test_passes"] == outcomes.Count(passed=1)


def test_a_run_without_tests_is_an_error(checkout):
    (checkout / "tests" / "test_peer.py").write_text("import no_such_module")
    with pytest.raises(RuntimeError, match="no_such_module"):
        run.run_suite(SUITE, checkout, False, sys.executable)


def test_missing_sources_are_said(tmp_path, capsys):
    for suite in SUITES:
        if suite.checkout:
            assert suite.root(None) is None and suite.root(tmp_path) is None
    assert run.main(["--only", "adv_lib", "--out", str(tmp_path / "out.csv")]) == 1
    assert "needs --sources DIR with adversarial-library" in capsys.readouterr().out
    assert not (tmp_path / "out.csv").exists()
    with pytest.raises(SystemExit):
        run.main(["--only", "nobody"])


def row(suite, test, *counts):
    names = [
        f"{who}_{what}" for who in ("original", "ours") for what in ("passed", "failed", "skipped")
    ]
    rest = dict.fromkeys(run.FIELDS, "x")
    return {**rest, "suite": suite, "test": test, **dict(zip(names, map(str, counts), strict=True))}


def test_what_counts_as_lost():
    same = row("a", "same", 2, 1, 1, 2, 1, 1)
    fails, hidden = row("a", "fails", 2, 0, 0, 1, 1, 0), row("a", "hidden", 2, 0, 0, 1, 0, 1)
    more = row("a", "more", 2, 0, 1, 2, 1, 0)  # one that the library skips
    better, absent = row("a", "better", 1, 1, 0, 2, 0, 0), row("a", "absent", 2, 0, 0, 0, 0, 0)
    assert run.lost([same, fails, hidden, more, better, absent]) == [fails, hidden, more, absent]


def test_rows_of_other_suites_stay(tmp_path):
    path = tmp_path / "new" / "out.csv"
    run.write(path, [row("a", "old", 1, 0, 0, 1, 0, 0), row("b", "kept", 1, 0, 0, 1, 0, 0)])
    run.write(path, [row("a", "new", 1, 0, 0, 1, 0, 0)])
    with path.open(newline="") as file:
        assert {r["test"] for r in csv.DictReader(file)} == {"kept", "new"}


def test_committed_outcome_holds_every_suite_and_loses_nothing():
    path = Path(run.ROOT) / "benchmarks" / "results" / "parity.csv"
    if not path.exists():
        pytest.skip("not run yet: benchmarks/parity/run.py")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {r["suite"] for r in rows} == {suite.name for suite in SUITES}
    assert run.lost(rows) == []
    assert all(tuple(r) == run.FIELDS and all(r.values()) for r in rows)


def test_every_suite_has_its_swap():
    swaps = Path(run.__file__).parent / "swaps"
    assert {suite.name for suite in SUITES} == {p.stem for p in swaps.glob("[a-z]*.py")}
