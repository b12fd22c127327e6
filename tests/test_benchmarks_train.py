"""The benchmarks of training: what is compared, what counts as wrong, whose time is taken."""

import contextlib
import csv
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import methods as bench_methods
import networks
import suite_train
import timing
import training_loops

from advfast.data import Batch

from .training.passes import counted

CASES = list(suite_train.cases("cpu", quick=True))
INSTALLED = importlib.util.find_spec("torchattacks") is not None


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def measure(case):
    small = replace(case, batch=(8, 1, 8, 8), images=32)
    rows = suite_train.measure(small, "cpu", quick=True, clock=timing.HostClock("cpu"))
    return {row.provider: row for row in rows}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.filterwarnings("ignore")
def test_rows_hold_what_the_targets_are_about(case):
    found = measure(case)
    assert list(found) == ["torch", "torchattacks", "advfast", "advfast_exact"]
    timed = {"torch", "advfast", *(["torchattacks"] if INSTALLED else [])}
    for name in timed:
        row = found[name]
        assert row.status == "ok" and row.rounds == 4 - suite_train.WARMUPS
        assert row.ratio_to_torch == pytest.approx(found["torch"].ms_p50 / row.ms_p50)
        assert (row.ratio_to_torchattacks is not None) == INSTALLED
    if not INSTALLED:
        assert found["torchattacks"].status.startswith("skipped: No module named")
    exact = found["advfast_exact"]
    assert exact.status.startswith("untimed") and exact.ms_p50 is None
    assert exact.rel_error < (1e-7 if case.method == "pgd-at" else 5e-3)
    assert suite_train.skipped(case, "no time").status == "skipped: no time"


@pytest.mark.filterwarnings("ignore")
def test_an_attack_that_stands_still_is_wrong(monkeypatch):
    monkeypatch.setattr(suite_train, "ALPHA", 1e-6)
    assert_wrong(measure(replace(CASES[1], steps=10)))


@pytest.mark.filterwarnings("ignore")
def test_another_learning_rate_is_wrong(monkeypatch):
    step = training_loops.Peer.__call__
    monkeypatch.setattr(training_loops.Peer, "__call__", lambda *given: step(*given[:3], 1.0))
    assert_wrong(measure(CASES[0]))


def assert_wrong(found):
    for name in ("advfast", "advfast_exact"):
        assert found[name].status.startswith("wrong: losses") and found[name].ms_p50 is None


@pytest.mark.filterwarnings("ignore")
def test_a_peer_that_fails_drops_out(monkeypatch):
    def broken(*_):
        raise RuntimeError("no attack\nhere")

    monkeypatch.setattr(training_loops, "with_torchattacks", lambda *_: broken)
    found = measure(CASES[0])
    assert found["torchattacks"].status == "failed: RuntimeError: no attack here"
    assert found["advfast"].status == "ok" and found["advfast"].ratio_to_torchattacks is None


class AsMethod:
    """A loop by hand, where passes are counted of a method."""

    def __init__(self, method, model):
        by_hand = {"pgd-at": training_loops.pgd_by_hand, "trades": training_loops.trades_by_hand}
        self.peer = training_loops.Peer(
            model,
            method,
            by_hand[method](model, 10, contextlib.nullcontext),
            contextlib.nullcontext,
        )

    def craft(self, batch):
        return self.peer.craft(batch.images, batch.labels)

    def update(self, images, batch, backward):
        loss = self.peer.loss(batch.images, images, batch.labels)
        backward(loss)
        return loss, self.peer.model(images)


@pytest.mark.parametrize(("method", "units"), [("pgd-at", 23), ("trades", 36)])
def test_the_loops_by_hand_do_the_passes_that_are_said(method, units):
    batch = Batch(torch.rand(16, 1, 8, 8), torch.arange(16) % 3, torch.arange(16))
    # One more pass makes the logits that a method returns.
    assert counted(lambda model: AsMethod(method, model), batch) == units + 1


def test_methods_are_timed_beside_the_bare_model(tmp_path, capsys):
    out = tmp_path / "methods.csv"
    assert bench_methods.main(["--quick", "--only", "^(standard|pgd-at) ", "--out", str(out)]) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["method"], row["modifier"]) for row in rows} >= {
        ("standard", "-"), ("pgd-at", "-"), ("pgd-at", "awp"), ("pgd-at", "ema"),
    }  # fmt: skip
    for row in rows:
        assert all(row.values())
        work = float(row["pass_units"]) * float(row["unit_ms"])
        assert float(row["over_model"]) == pytest.approx(float(row["ms_p50"]) / work, rel=1e-3)
    units = {(row["method"], row["modifier"]): row["pass_units"] for row in rows}
    assert (units["standard", "-"], units["pgd-at", "-"], units["pgd-at", "awp"]) == (
        "3",
        "23",
        "26",
    )
    assert "| pgd-at | awp | 10 | 26 |" in capsys.readouterr().out


def test_the_bare_model_goes_back_through_every_layer():
    model = networks.make("small-cnn", 1)
    seen = []
    hook = model[0].register_full_backward_hook(lambda module, given, out: seen.append(given[0]))
    beside = bench_methods.Beside(model.train(), 1)
    beside._passes(torch.rand(4, 1, 8, 8), torch.arange(4))
    hook.remove()
    assert seen[0].shape == (4, 1, 8, 8)
    assert all(parameter.grad is None for parameter in model.parameters())
