"""Induced distributions: dispersion against its definition and limits, sets on disk, fresh networks, and the rows."""

import importlib
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import advfast
from advfast import cli, studies
from advfast.attacks import PGDAttack
from advfast.data import TensorSource, load
from advfast.studies import induced, load_study
from advfast.studies.dispersion import dispersion
from advfast.studies.induced_expectations import expectations
from advfast.studies.induced_sets import Crafting, Store, perturbed
from advfast.studies.induced_source import Subject, few
from advfast.studies.networks import conv_net
from advfast.studies.result import StudyResult
from advfast.training import setup

module = importlib.import_module("advfast.studies.induced")
rows_of = importlib.import_module("advfast.studies.induced_rows")
sets = importlib.import_module("advfast.studies.induced_sets")

RECIPE = {
    "data": "digits", "model": "small-cnn", "method": "pgd-at", "eps": 0.2, "steps": 2, "epochs": 2,
    "batch_size": 64, "lr": 0.05, "schedule": "piecewise", "schedule_options": {"milestones": [1]},
}  # fmt: skip
SMALL = {
    "samples": 80, "test_samples": 60, "steps": 2, "pairs": 1, "fresh_epochs": 1, "fresh": {"batch_size": 40},
    "progress": False,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_pictures_of_runs(monkeypatch):
    """They take most of the time."""
    for name in ("draw_curves", "draw"):
        monkeypatch.setattr(f"advfast.training.finish.{name}", lambda *given, **more: None)


@pytest.fixture(scope="module")
def at_run(tmp_path_factory):
    """A run with checkpoints of epochs 0, 1 and 2, and its first rows."""
    folder = tmp_path_factory.mktemp("induced") / "run"
    recipe = {**RECIPE, "out": folder, "keep_every": 1, "progress": False}
    x, y = load("digits").train.batch(torch.arange(200))
    advfast.train(**recipe | {"data": (x, y), "seed": 3})
    return folder, {"train": (x, y), "test": load("digits").test.batch(torch.arange(60))}


def net(seed=0):
    torch.manual_seed(seed)
    return conv_net((1, 8, 8), 10, (6,), (2,), batch_norm=True).eval()


def some(count=12):
    return load("digits").test.batch(torch.arange(count))


def test_dispersion_is_what_runs_from_pairs_of_starts_give():
    model, (x, y) = net(), some()
    attack = PGDAttack(model, 0.2, 0.05, 3, bounds=None, seed=5)
    found = dispersion(attack, x, y, 3, torch.arange(100, 112))
    ends = []
    for run in range(6):
        numbers = torch.arange(100, 112) * 6 + run
        ends.append(attack(x, y, sample_ids=numbers) - x)
    for i in range(len(x)):
        d = [end[i].flatten() for end in ends]
        pairs = [(d[0], d[1]), (d[2], d[3]), (d[4], d[5])]
        plain = {
            "dispersion": sum((a - b).norm() for a, b in pairs) / 3,
            "dispersion_linf": sum((a - b).abs().max() for a, b in pairs) / 3,
            "cosine": sum(a @ b / a.norm() / b.norm() for a, b in pairs) / 3,
            "size": sum(one.norm() for one in d) / 6,
            "shift": (sum(d) / 6).norm(),
        }
        for name, value in plain.items():
            assert found[name][i] == pytest.approx(float(value), abs=2e-5), name
    assert (found["dispersion"] > 0.01).all()


def test_one_start_has_no_dispersion_and_no_step_leaves_that_of_the_starts():
    model, (x, y) = net(), some(200)
    same = PGDAttack(model, 0.2, 0.05, 3, False, bounds=None, seed=0)
    found = dispersion(same, x[:12], y[:12], 2, torch.arange(12))
    assert found["dispersion"].eq(0).all() and found["dispersion_linf"].eq(0).all()
    torch.testing.assert_close(found["cosine"], torch.ones(12))
    torch.testing.assert_close(found["shift"], found["size"])
    starts = PGDAttack(model, 0.2, 0.05, 0, bounds=None, seed=0)
    found = {name: float(v.mean()) for name, v in dispersion(starts, x, y, 4, torch.arange(200)).items()}  # fmt: skip
    # Uniform on [-eps, eps]: variance eps^2 / 3 a pixel, twice that of a difference.
    assert found["dispersion"] == pytest.approx(0.2 * math.sqrt(2 * 64 / 3), rel=0.01)
    assert found["size"] == pytest.approx(0.2 * math.sqrt(64 / 3), rel=0.01)
    assert abs(found["cosine"]) < 0.02


def test_sets_are_the_attack_of_each_image_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "ROWS", 7)
    model, (x, y) = net(), some(20)
    crafting = Crafting(0.2, 0.05, 3, "linf", clip=False, pairs=1)
    store, source = Store(tmp_path, crafting), TensorSource(x, y)
    part = store.part(4, "train", source, lambda: model)
    kept = np.load(part.images)
    assert kept.dtype == np.float32 and kept.shape == (20, 1, 8, 8)
    assert part.images.name == "epoch-0004-train.npy" and np.array_equal(np.load(part.labels), y)
    plain = PGDAttack(model, 0.2, 0.05, 3, bounds=None, seed=0)(x, y, sample_ids=torch.arange(20))
    np.testing.assert_allclose(kept, plain.numpy(), atol=1e-6)
    assert kept.min() < -0.15 and kept.max() > 1.15 and np.abs(kept - x.numpy()).max() < 0.2001
    assert not np.allclose(
        kept[:5], np.load(store.part(4, "test", source, lambda: model).images)[:5]
    )
    boxed = Store(tmp_path / "box", Crafting(0.2, 0.05, 3, "linf", clip=True, pairs=1))
    kept = np.load(boxed.part(4, "train", source, lambda: model).images)
    assert kept.min() >= 0 and kept.max() <= 1


def test_measures_of_a_set(tmp_path):
    model, (x, y) = net(2), some(300)
    trained = advfast.train(
        model, (x, y), val=(x[:1], y[:1]), eps=0.1, steps=2, epochs=6, batch_size=50, lr=0.2, progress=False,
        out=tmp_path / "run",
    ).model.eval()  # fmt: skip
    crafting = Crafting(0.1, 0.025, 3, "linf", clip=True, pairs=2)
    part = Store(tmp_path, crafting).part(1, "train", TensorSource(x, y), lambda: trained)
    kept = torch.from_numpy(np.load(part.images))
    accuracy = float((trained(kept).argmax(1) == y).float().mean())
    assert part.measures["accuracy"] == pytest.approx(accuracy) and 0.1 < accuracy < 1
    # The same attack but for the starts.
    assert part.measures["robust"] == pytest.approx(accuracy, abs=0.02)
    each = dispersion(crafting.attack(trained, 2), x, y, 2, torch.arange(300))
    for name, values in each.items():
        assert part.measures[name] == pytest.approx(float(values.mean()), rel=1e-4), name
    # Without the box the set is harder for the checkpoint than what it was trained on.
    free = Store(tmp_path / "free", Crafting(0.1, 0.025, 3, "linf", clip=False, pairs=2))
    measures = free.part(1, "train", TensorSource(x, y), lambda: trained).measures
    assert measures["robust"] == part.measures["robust"]
    assert measures["accuracy"] <= accuracy


def test_a_whole_set_is_used_again_and_no_other(tmp_path, monkeypatch):
    model, (x, y) = net(), some(20)
    source, made = TensorSource(x, y), []
    crafting = Crafting(0.2, 0.05, 1, "linf", clip=False, pairs=1)

    def counted(*arguments):
        made.append(1)
        yield from perturbed(*arguments)

    monkeypatch.setattr(sets, "perturbed", counted)
    part = Store(tmp_path, crafting).part(1, "train", source, lambda: model)
    first = part.images.read_bytes()
    assert Store(tmp_path, crafting).part(1, "train", source, lambda: model) == part
    assert len(made) == 1
    # Killed before the record was written: the images may be of anything.
    record = tmp_path / "epoch-0001-train.json"
    text = record.read_text()
    record.unlink()
    part.images.write_bytes(b"")
    Store(tmp_path, crafting).part(1, "train", source, lambda: model)
    assert part.images.read_bytes() == first and record.read_text() == text and len(made) == 2
    # Killed while the images were written.
    (tmp_path / ".epoch-0001-train.npy.999999999.tmp").write_bytes(b"half")
    store = Store(tmp_path, crafting)
    assert not list(tmp_path.glob(".*"))
    store.drop()
    assert {file.name for file in tmp_path.iterdir()} == {record.name}
    again = store.part(1, "train", source, lambda: model)
    assert again.images.read_bytes() == first and len(made) == 3
    # Other weights, another attack.
    store.part(1, "train", source, lambda: net(1))
    Store(tmp_path, Crafting(0.2, 0.05, 2, "linf", False, 1)).part(
        1, "train", source, lambda: net(1)
    )
    assert len(made) == 5


def test_a_write_that_fails_leaves_no_set(tmp_path, monkeypatch):
    model, (x, y) = net(), some(20)

    def dying(*arguments):
        yield torch.zeros(4, 1, 8, 8)
        raise KeyboardInterrupt

    monkeypatch.setattr(sets, "perturbed", dying)
    crafting = Crafting(0.2, 0.05, 1, "linf", clip=False, pairs=1)
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path, crafting).part(1, "train", TensorSource(x, y), lambda: model)
    assert not (tmp_path / "epoch-0001-train.npy").exists()
    assert not (tmp_path / "epoch-0001-train.json").exists()


def test_fewer_images_are_in_proportion_and_disjoint():
    splits = load("digits")
    train, test = few(splits.train, splits.test, 300, 1497)
    assert (len(train), len(test)) == (300, 1497)
    assert train.labels.bincount().min() >= 28 and test.labels.bincount().min() >= 140
    whole = torch.cat(
        [part.batch(torch.arange(len(part)))[0] for part in (splits.train, splits.test)]
    )
    both = torch.cat([part.batch(torch.arange(len(part)))[0] for part in (train, test)])
    assert torch.equal(
        whole.flatten(1).unique(dim=0, return_counts=True)[1],
        both.flatten(1).unique(dim=0, return_counts=True)[1],
    )
    train, test = few(splits.train, splits.test, 100, 60)
    assert (len(train), len(test)) == (100, 60) and test.labels.bincount(minlength=10).min() >= 5
    train, test = few(splits.train, splits.test, 300, 700)
    assert (len(train), len(test)) == (300, 700)
    assert few(splits.train, splits.test, None, None) == (splits.train, splits.test)
    with pytest.raises(ValueError, match=r"test_samples must be 1 .. 500"):
        few(splits.train, splits.test, None, 501)
    with pytest.raises(ValueError, match="samples must be 1"):
        few(splits.train, splits.test, 0, None)


def test_a_recipe_is_trained_and_its_checkpoints_give_rows(tmp_path, monkeypatch):
    trained, began, original = [], [], rows_of.train

    def seen(model, data, **arguments):
        trained.append((data, arguments))
        began.append(sets.digest(model))
        result = original(model, data, **arguments)
        for parameter in result.model.parameters():
            parameter.data.zero_()  # the best weights, which do not count
        return result

    monkeypatch.setattr(rows_of, "train", seen)
    result = induced(RECIPE, at=[1, 2], seeds=[0, 1], keep_data=True, out=tmp_path, **SMALL)
    assert [(row["epoch"], row["seed"]) for row in result.rows] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert len(trained) == 4 and began[0] == began[2] != began[1] == began[3]
    for data, arguments in trained:
        assert arguments["method"] == "standard" and "augment" not in arguments
        assert (len(data), arguments["epochs"], arguments["batch_size"]) == (80, 1, 40)
        assert arguments["lr"] == 0.1 and arguments["schedule"] == "piecewise"
    room = Crafting(0.2, 0.05, 2, "linf", False, 1).room
    images = torch.from_numpy(np.load(tmp_path / "induced" / "epoch-0001-train.npy"))
    assert images.min() < 0 and images.max() > 1
    torch.testing.assert_close(room.take(trained[0][0].images), images, atol=1e-6, rtol=0)
    first, second, third, _ = result.rows
    assert first["ide_test_loss"] != second["ide_test_loss"]
    assert first["robust_gap"] == second["robust_gap"]
    assert first["dispersion_test"] == second["dispersion_test"] != third["dispersion_test"]
    for row in result.rows:
        assert row["ide_gap"] == pytest.approx(row["ide_test_error"] - row["ide_train_error"])
        assert row["robust_gap"] == pytest.approx(row["robust_train"] - row["robust_test"])
    record = json.loads((tmp_path / "induced" / "epoch-0001-test.json").read_text())
    assert first["checkpoint_test"] == record["measures"]["accuracy"]
    assert first["cosine_test"] == record["measures"]["cosine"] != first["cosine_train"]
    assert result.settings["lr_drops"] == [1] and result.settings["weights"]
    assert (tmp_path / "ide.png").read_bytes().startswith(b"\x89PNG")
    assert load_study(tmp_path).rows == result.rows
    assert not list((tmp_path / "fresh").iterdir())
    # Gone on with: nothing is trained again, and sets are not needed.
    more = induced(RECIPE, at=[1, 2], seeds=[0, 1], out=tmp_path, resume=True, **SMALL)
    assert more.rows == result.rows and len(trained) == 4
    assert not list((tmp_path / "induced").glob("*.npy"))
    with pytest.raises(FileExistsError, match="already holds a study"):
        induced(RECIPE, out=tmp_path, **SMALL)
    with pytest.raises(ValueError, match="other settings: pairs was 1 and is now 2"):
        induced(RECIPE, at=[1, 2], out=tmp_path, resume=True, **SMALL | {"pairs": 2})


def test_a_kill_in_the_middle_of_a_row_loses_none_before(tmp_path, monkeypatch):
    arguments = SMALL | {"at": [2], "seeds": [0, 1], "samples": 40, "test_samples": 20}
    whole = induced(RECIPE, out=tmp_path / "whole", **arguments)
    original = rows_of.error_and_loss
    calls = []

    def dying(*given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(rows_of, "error_and_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        induced(RECIPE, out=tmp_path / "killed", **arguments)
    monkeypatch.setattr(rows_of, "error_and_loss", original)
    made = []
    monkeypatch.setattr(sets, "perturbed", lambda *given: made.append(1))
    result = induced(RECIPE, out=tmp_path / "killed", resume=True, **arguments)
    assert result.rows == whole.rows and not made


def test_a_run_is_looked_at_with_the_images_that_it_trained_on(at_run):
    folder, data = at_run
    subject = Subject(folder, data, None, None, None, None, None)
    assert subject.epochs == [1, 2] and subject.recipe is None
    expected = setup.run_data(data["train"], None, None, None, 3).train
    assert len(subject.train) == 170
    assert torch.equal(
        subject.train.batch(torch.arange(170))[0], expected.batch(torch.arange(170))[0]
    )
    last = Subject(folder / "last.pt", data, None, None, None, None, None)
    assert last.epochs == [2]
    result = induced(
        folder, data=data, at=[2], seeds=[0], steps=1, pairs=1, fresh_epochs=1, fresh={"lr": 0.01}, clip=True,
        progress=False,
    )  # fmt: skip
    (row,) = result.rows
    assert result.settings["eps"] == 0.2 and result.settings["alpha"] == 0.05
    assert row["ide_test_error"] > 0 and row["dispersion_test"] > 0


def test_a_fresh_network_that_diverges_is_a_row_without_its_measures(at_run):
    folder, data = at_run
    arguments = {"data": data, "at": [1], "seeds": [0], "steps": 1, "pairs": 1, "progress": False}
    result = induced(folder, fresh_epochs=3, fresh={"lr": 1e25}, **arguments)
    assert all(result.rows[0][name] is None for name in rows_of.IDE)
    assert result.rows[0]["robust_test"] > 0 and result.expectations[0].held is None


def test_what_cannot_be_done_is_said_before_work(tmp_path, at_run, monkeypatch):
    folder, data = at_run
    own = SMALL | {"seeds": [0]}

    def refused(match, source=RECIPE, kind=ValueError, **changed):
        with pytest.raises(kind, match=match):
            induced(source, **own | changed)

    monkeypatch.setattr("advfast.studies.runs.train", lambda **_: pytest.fail("trained"))
    refused("a network alone has no checkpoints", nn.Linear(1, 1), TypeError)
    refused("samples and test_samples are for recipes", folder, data=data)
    refused(r"at must be epochs of checkpoints, 1, 2, got 3", at=[3])
    refused("at must be different integers", at=[1, 1])
    refused("pairs must be an integer >= 1, got 0", pairs=0)
    refused("eps must be a finite number > 0", eps=-0.1)
    refused("eps must be at most 1 for linf", eps=8)
    refused(
        r"does not take images \[1, 8, 8\]", model=lambda: conv_net((1, 28, 28), 10, (4,), (2,))
    )
    refused("seeds must be different integers", seeds=[])
    refused("method is set by the study", fresh={"method": "pgd-at"})
    refused("must say `model`", {"data": "digits"})
    refused("weights of two seeds are the same", model=lambda: net(0))
    refused("resume needs `out`", resume=True)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    refused("no room for the perturbed images: 0.0358 MB are needed", kind=OSError, out=tmp_path)


def curve(errors, dispersion, data="digits"):
    rows = [
        {"epoch": 10 * t, "seed": seed, "ide_test_error": e + 0.01 * seed, "robust_gap": e,
         "dispersion_test": d, "dispersion_train": 1.1 * d}
        for t, (e, d) in enumerate(zip(errors, dispersion, strict=True), 1)
        for seed in (0, 1)
    ]  # fmt: skip
    measures = ("ide_test_error", "robust_gap", "dispersion_test", "dispersion_train")
    return StudyResult("induced", {"data": data, "lr_drops": []}, ("epoch", "seed"), measures, rows)


def test_expectations_are_the_band_of_digits_and_signs_elsewhere():
    rising = curve([0.1, 0.2, 0.35], [0.5, 0.6, 0.7])
    assert [one.held for one in expectations(rising)] == [True] * 4
    little = curve([0.1, 0.25, 0.2], [0.5, 0.7, 0.6])
    assert [one.held for one in expectations(little)] == [False, False, False, True]
    other = curve([0.1, 0.25, 0.2], [0.5, 0.7, 0.6], data="fashion-mnist")
    assert [one.held for one in expectations(other)] == [True, True, True, True]
    falling = curve([0.3, 0.2, 0.1], [0.5, 0.4, -0.3], data="fashion-mnist")
    assert [one.held for one in expectations(falling)] == [False] * 4
    one = curve([0.1], [0.5])
    assert [e.held for e in expectations(one)] == [None, None, None, True]


def test_command_takes_the_preset_and_what_is_given(tmp_path, monkeypatch, at_run, capsys):
    seen = {}

    def study(source, **arguments):
        seen.clear()
        seen.update(arguments, source=source)
        return StudyResult("induced", {}, (), (), [])

    monkeypatch.setattr(studies, "induced", study)
    assert cli.main(["study", "induced", "--out", str(tmp_path), "--threads", "1"]) == 0
    assert seen["samples"] == 300 and seen["clip"] is True and seen["seeds"] == (0, 1)
    words = ["--at", "1,2", "--no-clip", "--pairs", "3", "--ide-epochs", "2", "--seeds", "4"]
    words += ["--eps", "8/255"]
    assert cli.main(["study", "induced", *words, "--keep-data", "--threads", "1"]) == 0
    assert (seen["at"], seen["clip"], seen["pairs"], seen["fresh_epochs"]) == ([1, 2], False, 3, 2)
    assert (seen["seeds"], seen["eps"], seen["keep_data"]) == ([4], 8 / 255, True)
    folder, _ = at_run
    assert cli.main(["study", "induced", str(folder), "--threads", "1"]) == 0
    assert seen["source"] == str(folder) and not {"samples", "test_samples", "at", "clip"} & set(seen)  # fmt: skip
    monkeypatch.undo()
    capsys.readouterr()
    assert cli.main(["study", "induced", "--dry-run", "--threads", "1"]) == 0
    said = capsys.readouterr()
    assert "passes of an image" in said.err and "0.46 MB of perturbed images" in said.err
    assert said.out == ""
    assert cli.main(["study", "induced", str(tmp_path / "no" / "run"), "--threads", "1"]) != 0
    assert "neither a run's folder nor a checkpoint" in capsys.readouterr().err
    assert cli.main(["study", "induced", "--preset", "fashon"]) != 0
    assert (
        "small, fashion, published, got 'fashon'; did you mean 'fashion'"
        in capsys.readouterr().err.replace("?", "")
    )
