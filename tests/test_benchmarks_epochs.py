"""The benchmark of whole epochs: whose time is taken, and what counts as wrong."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import suite_train
import timing
import torch
import training_epochs
from training_epochs import Epochs


def measure(case):
    rows = suite_train.measure(case, "cpu", quick=False, clock=timing.HostClock("cpu"))
    return {row.provider: row for row in rows}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(training_epochs, "PEER_STEPS", 3)
    # Learned in a few steps.
    labels = torch.arange(128) % 10
    images = torch.zeros(128, 1, 8, 8)
    images.flatten(1)[torch.arange(128)[:, None], labels[:, None] * 6 + torch.arange(6)] = 1
    monkeypatch.setattr(suite_train, "make_data", lambda case: (images, labels))
    monkeypatch.setattr(training_epochs, "LR", 0.02)


@pytest.mark.filterwarnings("ignore")
def test_an_epoch_beside_one_by_hand():
    case = Epochs("small-cnn", (16, 1, 8, 8), 128, epochs=3, steps=2, precision="fp32")
    rows = measure(case)
    assert list(rows) == ["advfast", "advfast_eager", "torch"]
    assert {row.status for row in rows.values()} == {"ok"}
    assert rows["advfast"].rounds == 2 and rows["advfast_eager"].rounds == 1
    assert rows["advfast"].op == "pgd-at-2 epoch"
    for row in rows.values():
        assert row.ratio_to_torch == pytest.approx(rows["torch"].ms_p50 / row.ms_p50)


@pytest.mark.filterwarnings("ignore")
def test_a_run_whose_loss_does_not_fall_has_no_time(monkeypatch):
    case = Epochs("small-cnn", (16, 1, 8, 8), 128, 3, "fgsm-rs", 1, "fp32", whole=True)
    (row,) = measure(case).values()
    assert row.status == "ok" and row.rounds == 1 and row.op == "fgsm-rs 3 epochs"
    monkeypatch.setattr(training_epochs, "_train", lambda *given: ([1.0, 1.0], [2.0, 2.5]))
    (row,) = measure(case).values()
    assert row.status.startswith("wrong: the loss went") and row.ms_p50 is None


def test_the_targets_are_among_the_cases_of_a_gpu():
    names = [str(case) for case in suite_train.cases("cuda", quick=False)]
    for name in ("pgd-at-10 epoch", "fgsm-rs 15 epochs"):
        assert any(name in shown and "resnet18-w64" in shown for shown in names)
