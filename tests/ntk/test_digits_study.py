"""benchmarks/ntk_digits.py: what it compares and writes."""

import csv
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import ntk_digits


@pytest.fixture
def made_up(monkeypatch):
    """Standard training has the larger value in every column but the accuracies."""

    def trained(method, seed, epochs, probe):
        standard = method == "standard"
        last = {of.column: 2.0 if standard else 1.0 for of in ntk_digits.QUANTITIES}
        last |= {"clean": 0.9, "pgd-20": 0.1 if standard else 0.6, "share": 0.1}
        kernel = torch.eye(3) if standard else torch.ones(3, 3)
        return ntk_digits.Trained(last, kernel)

    monkeypatch.setattr(ntk_digits, "trained", trained)


def test_orders_are_judged_as_they_are_expected(made_up, tmp_path, capsys):
    out = tmp_path / "a.csv"
    threads = torch.get_num_threads()
    assert ntk_digits.main(["--out", str(out)]) == 0
    assert torch.get_num_threads() == threads
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * (2 + len(ntk_digits.QUANTITIES))
    held = {row["quantity"]: row["holds"] for row in rows}
    assert held["effective rank, clean"] == held["accuracy, PGD-20"] == "yes"
    assert held["largest eigenvalue / trace, clean"] == "no"  # 2 is not below 1
    assert held["accuracy, clean"] == held["specialization, PGD-10"] == "-"
    printed = capsys.readouterr().out
    assert "<, 0 of 3" in printed
    assert ">, 3 of 3" in printed
    assert "distance of their kernels 0.423" in printed  # 1 - 1/sqrt(3)


def test_a_trial_writes_nothing(made_up, tmp_path):
    out = tmp_path / "a.csv"
    assert ntk_digits.main(["--quick", "--out", str(out)]) == 0
    assert not out.exists()
