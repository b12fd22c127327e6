"""REAT in runs: the table of predictions, resumption, capture, parts of a batch, precision, and the command line."""

import csv

import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advfast import cli
from advfast.data import Batch, long_tail, long_tail_counts
from advfast.training import checkpoint, methods, names, train
from advfast.training.methods.reat import class_weights

from .passes import counted
from .test_captured import both
from .test_resume import assert_same, network, outcome


@pytest.fixture(scope="module")
def data():
    """Three classes of 60, 24 and 10 images."""
    generator = torch.Generator().manual_seed(1)
    whole = torch.rand(180, 1, 8, 8, generator=generator), torch.arange(180) % 3
    source = long_tail(whole, 0.1667, head=60)
    return source.images, source.labels


def run(folder, data, **changes):
    settings = {
        "method": "reat", "val": tuple(part[:9] for part in data), "eps": 0.1, "steps": 2, "epochs": 3,
        "batch_size": 24, "lr": 0.05, "progress": False, "seed": 4,
    }  # fmt: skip
    return train(network(), data, out=folder, **settings | changes)


def table(folder):
    with (folder / names.AE_PREDICTIONS).open(newline="") as file:
        return [{k: int(v) for k, v in row.items()} for row in csv.DictReader(file)]


def test_predictions_of_every_epoch_are_written_and_sum_to_the_images(tmp_path, data):
    seen = []

    class Weights:
        def on_step_end(self, state):
            if state.step == 1:
                seen.append((state.method.weight.clone(), state.method.predicted.tolist()))

    run(tmp_path, data, callbacks=[Weights()])
    rows = table(tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    counts = [[row[f"class_{c}"] for c in range(3)] for row in rows]
    assert all(sum(row) == len(data[1]) == 94 for row in counts)
    # An epoch is balanced by what was found in the one before it; the first by the training images.
    assert [predicted for _, predicted in seen] == [data[1].bincount().tolist(), *counts[:2]]
    for weight, predicted in seen:
        expected = class_weights(torch.tensor(predicted), data[1].bincount())
        torch.testing.assert_close(weight, expected.float())


def test_a_folder_of_another_method_has_no_table(tmp_path, data):
    run(tmp_path, data, epochs=1)
    assert (tmp_path / names.AE_PREDICTIONS).exists()
    run(tmp_path, data, epochs=1, method="pgd-at", overwrite=True)
    assert not (tmp_path / names.AE_PREDICTIONS).exists()


def test_epochs_on_clean_images_are_not_counted(tmp_path, data):
    run(tmp_path, data, clean_prefix=2)
    assert [row["epoch"] for row in table(tmp_path)] == [3]


class Stop(Exception):
    pass


class StopAt:
    def __init__(self, step):
        self.step = step

    def on_step_end(self, state):
        if state.global_step == self.step:
            raise Stop


@pytest.mark.parametrize("at", [4, 5, 6, 8])
def test_resumed_anywhere_it_counts_on(tmp_path, data, at):
    # Four steps an epoch: in the middle of one, and at the last step before its counts are closed.
    settings = {
        "method_options": {"rbl": "logit-adjust"}, "save_every": 1, "resume": True, "test": data,
    }  # fmt: skip
    run(tmp_path / "whole", data, **settings)
    with pytest.raises(Stop):
        run(tmp_path / "cut", data, callbacks=[StopAt(at)], **settings)
    found = checkpoint.read(tmp_path / "cut" / names.LAST)["run"]
    if found["loop"]["step"]:
        assert int(found["method"]["found"].sum()) == found["loop"]["seen"] > 0
    run(tmp_path / "cut", data, **settings)
    assert_same(outcome(tmp_path / "cut"), outcome(tmp_path / "whole"))
    assert table(tmp_path / "cut") == table(tmp_path / "whole")


FORMS = [
    {"rbl": "logit-adjust", "tail": "pairwise"},
    {"rbl": "step-scale", "tail": "off"},
]


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_captured_steps_have_the_bits_of_eager_ones(tmp_path, data, monkeypatch, options):
    changes = {"method": "reat", "method_options": options}
    eager, captured, launches = both(tmp_path, data, monkeypatch, **changes)
    assert_same(captured, eager)
    assert launches[-1] == 3 * 3 - 1
    assert table(tmp_path / "captured") == table(tmp_path / "eager")


def test_parts_of_a_batch_are_counted_once(tmp_path, data):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Softplus(), nn.Linear(9, 3)).double()
    double = data[0].double(), data[1]
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    found = []
    for folder, size in ((tmp_path / "1", None), (tmp_path / "2", 7)):
        model.load_state_dict(kept)
        train(
            _Double(model), double, method="reat", method_options={"tail": "off"}, eps=0.1, steps=2,
            val=double, epochs=2, batch_size=24, lr=0.05, progress=False, out=folder, micro_batch=size,
        )  # fmt: skip
        found.append((table(folder), model.state_dict()))
        found[-1] = found[-1][0], {k: v.clone() for k, v in found[-1][1].items()}
    assert found[0][0] == found[1][0]
    for name, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], value, rtol=0, atol=1e-8)


class _Double(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images.double())


def test_awp_does_not_count_twice(tmp_path, data):
    run(tmp_path, data, modifiers=["awp"], epochs=2)
    assert [sum(row.values()) - row["epoch"] for row in table(tmp_path)] == [94, 94]


def test_a_data_loader_needs_counts(tmp_path, data):
    loader = DataLoader(TensorDataset(*data), 24, shuffle=True)
    with pytest.raises(ValueError, match="not known"):
        run(tmp_path, loader, val=data)
    counts = data[1].bincount().tolist()
    run(tmp_path, loader, val=data, epochs=1, method_options={"counts": counts})
    assert sum(table(tmp_path)[0].values()) - 1 == 94


def test_mixed_labels_and_fp16(tmp_path, data):
    with pytest.raises(ValueError, match="mixes labels, and method 'reat' needs classes"):
        run(tmp_path / "1", data, modifiers=["cutmix"])
    run(tmp_path / "2", data, modifiers=["cutmix"], method="at-bsl", epochs=1)
    result = run(tmp_path / "3", data, precision="bf16", epochs=1)
    assert all(value.isfinite().all() for value in result.model.state_dict().values())


VARIANTS = [
    ("at-bsl", {}),
    ("robal", {}),
    ("reat", {}),
    ("reat", {"tail": "pairwise", "rbl": "step-scale"}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_pass_units_are_those_that_are_made(name, options):
    torch.manual_seed(5)
    batch = Batch(torch.rand(16, 1, 8, 8), torch.arange(16) % 3, torch.arange(16))
    settings = methods.Settings(
        eps=0.1, alpha=None, steps=4, norm="linf", options=options | {"counts": [9, 4, 2]}
    )

    def make(model):
        method = methods.make(name, model, settings)
        method.begin(None, batch.images[:2])
        return method

    assert counted(make, batch) == methods.make(name, nn.Identity(), settings).passes()


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    arguments = [
        "train", "--data", "digits-lt:0.05:100", "--method", "reat", "--steps", "1", "--epochs", "1",
        "--method-option", "rbl=step-scale", "--method-option", "tail_weight=0.1", "--quiet",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    torch.set_num_threads(threads)
    folder = tmp_path / "runs" / "digits-lt-0.05-100-reat-seed0"
    assert sum(table(folder)[0].values()) - 1 == sum(long_tail_counts(10, 100, 0.05))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["eps"], config["data"]) == (0.15, "digits-lt:0.05:100")
    assert config["method_options"] == {"rbl": "step-scale", "tail_weight": 0.1}
    assert "on 280 images held out" in capsys.readouterr().out
