import csv
import math

import numpy as np
import pytest
import torch
from torch import nn

from advfast.data import load as load_data
from advfast.ntk import NTKRecorder, balanced_probe, metrics, ntk
from advfast.training import finish, load, train

SETTINGS = {
    "eps": 0.15,
    "steps": 2,
    "epochs": 2,
    "batch_size": 256,
    "lr": 0.1,
    "progress": False,
    "threads": 1,
}


class Net(nn.Module):
    """Batch norm and dropout: modes, statistics and random numbers that must not be touched."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.drop(self.norm(self.conv(x)).relu().flatten(1)))


@pytest.fixture(scope="module")
def digits():
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            finish, "_pictures", lambda *arguments: None
        )  # most of the time of a short run
        yield load_data("digits").train.subset(torch.arange(600))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def probe(digits):
    return digits.batch(balanced_probe(digits.labels, 20))


def new():
    torch.manual_seed(7)
    return Net()


def run(digits, out, callbacks, **more):
    model = new()
    settings = dict(SETTINGS, **more)
    train(model, digits, out=out, callbacks=callbacks, **settings)
    return model


@pytest.fixture(scope="module")
def recorded(digits, probe, tmp_path_factory):
    out = tmp_path_factory.mktemp("recorded")
    recorder = NTKRecorder(*probe)
    return run(digits, out, [recorder]), recorder, out


def test_training_is_bit_for_bit_the_same(digits, recorded, tmp_path):
    with_it, recorder, out = recorded
    without = run(digits, tmp_path, [])
    for name, value in without.state_dict().items():
        assert torch.equal(value, with_it.state_dict()[name]), name
    assert len(recorder.history) == 3
    first, second = (
        torch.load(folder / "last.pt", weights_only=True)["run"] for folder in (out, tmp_path)
    )
    assert torch.equal(first["rng"]["torch"], second["rng"]["torch"])
    assert torch.equal(first["rng"]["numpy"][1], second["rng"]["numpy"][1])


def test_records_are_of_the_network_as_it_was(recorded, probe):
    _, recorder, out = recorded
    x, y = probe
    trained = load(out / "last.pt", Net())
    assert [row["epoch"] for row in recorder.history] == [0, 1, 2]
    start, end = (ntk(model.eval(), x).tensor for model in (new(), trained))
    first, last = recorder.history[0], recorder.history[-1]
    assert first["clean_trace"] == pytest.approx(metrics.trace(start), rel=1e-5)
    assert first["clean_distance"] == first["adversarial_radius"] == 0
    assert math.isnan(first["clean_velocity"])
    assert last["clean_alignment"] == pytest.approx(metrics.alignment(end, y), rel=1e-4)
    assert last["clean_specialization"] == pytest.approx(
        metrics.specialization(end, y).value, rel=1e-4
    )
    assert last["clean_distance"] == pytest.approx(metrics.kernel_distance(end, start), rel=1e-4)
    radius, angle = metrics.polar(end, start)
    assert last["clean_radius"] == pytest.approx(radius, rel=1e-4)
    assert last["clean_angle"] == pytest.approx(angle, rel=1e-4)
    kernels = [np.load(file)["clean"] for file in sorted((out / "ntk").glob("step-*.npz"))]
    between = metrics.kernel_distance(*(torch.from_numpy(k) for k in kernels[1:]))
    assert last["clean_velocity"] == pytest.approx(between, rel=1e-6)
    assert last["clean_adversarial_distance"] > 1e-5
    assert last["adversarial_effective_rank"] != last["clean_effective_rank"]


def test_cost_is_stated_and_the_rows_are_a_table(recorded):
    _, recorder, out = recorded
    for row in recorder.history:
        assert row["seconds"] > 0
        assert 0 < row["share"] <= 1
    with (out / "ntk" / "ntk.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [list(row) for row in rows] == [list(row) for row in recorder.history]
    for row, read in zip(recorder.history, rows, strict=True):
        for name, value in row.items():
            assert float(read[name]) == value or math.isnan(value)


def same(rows, others):
    """Apart from the times."""
    for row, other in zip(rows, others, strict=True):
        for name, value in row.items():
            if name not in ("seconds", "share"):
                assert other[name] == value or math.isnan(value), name


class StopAt:
    def __init__(self, step):
        self.step = step

    def on_step_end(self, state):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [3, 5])
def test_a_resumed_run_has_the_same_records(digits, probe, tmp_path, stop):
    """Killed after a record that was made after the last saving, and then at another place."""
    settings = {"save_every": 2, "batch_size": 128}
    at = [0, 0.25, 0.75, 1, 1.25, 2]
    whole = NTKRecorder(*probe, at=at, attack=None, readout="sum")
    run(digits, tmp_path / "whole", [whole], **settings)
    assert [row["step"] for row in whole.history] == [0, 1, 3, 4, 5, 8]
    files = sorted((tmp_path / "whole" / "ntk").glob("step-*.npz"))[:2]
    way = metrics.kernel_distance(*(torch.from_numpy(np.load(file)["clean"]) for file in files))
    assert whole.history[1]["clean_velocity"] == pytest.approx(way / 0.25, rel=1e-6)
    broken = NTKRecorder(*probe, at=at, attack=None, readout="sum")
    with pytest.raises(KeyboardInterrupt):
        run(digits, tmp_path / "broken", [broken, StopAt(stop)], **settings)
    table = tmp_path / "broken" / "ntk" / "ntk.csv"
    rows = table.read_text().splitlines()
    assert rows[-1].split(",")[1] == str(stop)
    # Beyond the last saving: it is made again, so what it says does not matter.
    table.write_text("\n".join([*rows[:-1], rows[-1].replace(".", "1.")]) + "\n")
    resumed = NTKRecorder(*probe, at=at, attack=None, readout="sum")
    run(digits, tmp_path / "broken", [resumed], resume=True, **settings)
    same(whole.history, resumed.history)
    assert "clean_specialization" not in whole.history[0]
    assert "adversarial_trace" not in whole.history[0]


def test_records_of_an_earlier_run_are_replaced(digits, probe, tmp_path):
    folder = tmp_path / "records"
    for epochs in (2, 1):
        recorder = NTKRecorder(*probe, attack=None, readout=3, metrics=["trace"], path=folder)
        run(digits, tmp_path / "run", [recorder], epochs=epochs, overwrite=True)
        files = sorted(file.name for file in folder.glob("step-*.npz"))
        assert len(files) == len(recorder.history) == epochs + 1
    assert list(recorder.history[0])[:3] == ["epoch", "step", "clean_trace"]


def test_an_attack_of_ones_own_sees_the_network_in_eval_mode(digits, probe, tmp_path):
    seen = []

    def attack(model, images, labels):
        seen.append((model.training, len(labels)))
        torch.rand(3)
        return (images + 0.1).clamp(0, 1)

    recorder = NTKRecorder(*probe, at=[0, 0.5], attack=attack, readout="sum", metrics=["top_share"])
    with_it = run(digits, tmp_path / "a", [recorder])
    assert seen == [(False, 20)] * 2
    without = run(digits, tmp_path / "b", [])
    assert all(
        torch.equal(a, b)
        for a, b in zip(with_it.state_dict().values(), without.state_dict().values(), strict=True)
    )


def test_balanced_probe():
    labels = torch.tensor([0] * 50 + [1] * 3 + [4] * 20)
    chosen = balanced_probe(labels, 16)
    assert labels[chosen].tolist() == [0] * 7 + [1] * 3 + [4] * 6
    assert len(set(chosen.tolist())) == 16
    assert torch.equal(chosen, balanced_probe(labels, 16))
    assert not torch.equal(chosen, balanced_probe(labels, 16, seed=1))
    assert sorted(balanced_probe(labels, 73).tolist()) == list(range(73))
    for n in (0, 74):
        with pytest.raises(ValueError, match=r"1 \.\. 73"):
            balanced_probe(labels, n)


X, Y = torch.rand(4, 1, 8, 8), torch.arange(4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": X[:3]}, "got (3, 1, 8, 8), (4,)"),
        ({"y": Y.float()}, "class indices"),
        ({"y": Y - 1}, "got -1 .. 2"),
        ({"every": 0}, "every must be"),
        ({"at": []}, "at must be epochs"),
        ({"at": [-1, 1]}, "at must be epochs"),
        ({"attack": "pdg-10"}, "must be 'clean'"),
        ({"attack": "clean"}, "changes the images"),
        ({"attack": 3}, "attack must be"),
        ({"metrics": ["ranks"]}, "must be of trace"),
        ({"of": "all"}, "of must be"),
    ],
)
def test_bad_arguments(arguments, message):
    given = {"x": X, "y": Y, **arguments}
    with pytest.raises((ValueError, TypeError)) as raised:
        NTKRecorder(given.pop("x"), given.pop("y"), **given)
    assert message in str(raised.value)
