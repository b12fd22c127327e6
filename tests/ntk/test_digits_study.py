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
    """Standard training has the larger value in every column but the accuracies. Its kernel turns by 0.1 an epoch, that
    of adversarial training by 0.2 and stands still from epoch 4 on."""

    def kernel(angle):
        # Of rank one: 1 - cos^2 of the angle between the vectors is the distance.
        v = torch.tensor([angle, angle]).double().add(torch.tensor([0.0, torch.pi / 2])).cos()
        return torch.outer(v, v)

    def trained(method, seed, epochs, probe):
        calls.append((method, seed))
        standard = method == "standard"
        last = dict.fromkeys(ntk_digits.AFTER, 2.0 if standard else 1.0)
        last |= {"clean": 0.98 if standard else 0.97, "pgd-20": 0.1 if standard else 0.6}
        turns = [0.1 * e if standard else 0.2 * min(e, 4) for e in range(epochs + 1)]
        kernels = [{"clean": kernel(t), "adversarial": kernel(t)} for t in turns]
        return ntk_digits.Trained(last, kernels)

    calls = []
    monkeypatch.setattr(ntk_digits, "trained", trained)
    return calls


def read(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_orders_and_ranges_are_judged_as_they_are_expected(made_up, tmp_path, capsys):
    out = tmp_path / "a.csv"
    threads = torch.get_num_threads()
    assert ntk_digits.main(["--out", str(out)]) == 0
    assert torch.get_num_threads() == threads
    rows = read(out)
    assert all(value for row in rows for value in row.values())
    assert len(rows) == 3 * (4 + 8 + 2 + 5 + 12)
    found = {row["quantity"]: row for row in rows}
    held = {name: row["holds"] for name, row in found.items()}
    assert held["effective rank, clean"] == held["accuracy, PGD-20"] == "yes"
    assert held["largest eigenvalue / trace, clean"] == "no"  # 2 is not below 1
    assert held["accuracy, clean"] == held["specialization, PGD-10"] == "none"
    assert found["accuracy, clean"]["in_range"] == "yes"
    assert found["accuracy, PGD-20"]["in_range"] == "no"  # 0.1 is not 0
    assert found["effective rank, clean"]["ratio"] == "2.0"

    between = "kernel distance, standard to adversarial, clean, epoch"
    assert [held[f"{between} {e}"] for e in (0, 1, 2, 4)] == ["yes", "yes", "yes", "no"]
    by_hand = {1: 0.1, 2: 0.2, 4: 0.4, 6: 0.2}
    for epoch, angle in by_hand.items():
        expected = float(torch.tensor(angle).double().sin() ** 2)
        assert float(found[f"{between} {epoch}"]["left_value"]) == pytest.approx(expected, abs=1e-6)
    assert found[f"{between} 1"]["in_range"] == "no" and found[f"{between} 0"]["in_range"] == "yes"
    assert found[f"{between} 1"]["right_value"] == "none"

    still = found["kernel distance, epochs 4 to 5, clean"]
    assert (still["left_value"], still["right_value"]) == ("0.009967", "0.0")
    assert still["holds"] == "yes" and still["expected"] == "both <= 0.01"
    assert held["kernel distance, epochs 0 to 1, clean"] == "no"  # standard moves by 0.00997
    assert held["kernel distance, epochs 2 to 3, clean"] == "none"
    late = found["kernel distance, epochs 4 to 12, PGD-10"]
    assert late["holds"] == "yes" and late["right_value"] == "0.0"
    assert float(late["left_value"]) == pytest.approx(0.514600, abs=1e-6)  # sin^2 of 0.8
    printed = capsys.readouterr().out
    assert "| effective rank, clean | standard 2 to 2 | adversarial 1 to 1 | 2 to 2 |" in printed
    assert "epoch 4: left < 0.1 (left between them, right none): FAILED, 0 of 3 seeds" in printed


def test_before_training_it_is_the_same_network_looked_at_in_three_ways():
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = ntk_digits.before_training(0, (images, torch.arange(12)))
    rank, share = ntk_digits.RANK, ntk_digits.SHARE
    assert found["raw"] == found["eval mode"]
    assert 1 < found["raw"][rank] < found["standardised"][rank] < found["batch statistics"][rank]
    assert 1 > found["raw"][share] > found["standardised"][share] > found["batch statistics"][share]


def test_seeds_that_are_there_are_not_measured_again(made_up, tmp_path):
    out = tmp_path / "a.csv"
    ntk_digits.main(["--out", str(out), "--seeds", "1"])
    first = read(out)
    ntk_digits.main(["--out", str(out), "--seeds", "1,2"])
    assert [seed for _, seed in made_up] == [1, 1, 2, 2]
    assert read(out)[: len(first)] == first and len(read(out)) == 2 * len(first)
    out.write_text("seed,quantity\n0,rank\n")
    with pytest.raises(ValueError, match="other columns"):
        ntk_digits.main(["--out", str(out)])


def test_ranges_are_to_their_last_digit():
    assert ntk_digits.within(1.349, "1.4 .. 1.5") is False
    assert ntk_digits.within(1.36, "1.4 .. 1.5") and ntk_digits.within(1.54, "1.4 .. 1.5")
    assert ntk_digits.within(-0.054, "-0.05 .. 0.12") and ntk_digits.within(0.949, "0.95")
    assert not ntk_digits.within(0.94, "0.95")


def test_a_trial_writes_nothing(made_up, tmp_path):
    out = tmp_path / "a.csv"
    assert ntk_digits.main(["--quick", "--out", str(out)]) == 0
    assert not out.exists()
