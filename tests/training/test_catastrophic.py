import copy
import csv

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from advfast.attacks import PGDAttack
from advfast.training import CatastrophicOverfitting, checkpoint, finish
from advfast.training.callbacks import TrainState

from .modifiers.runs import Terminate, course, images, network
from .test_resume import assert_same, outcome

GOOD, BAD = (0.5, 0.45), (0.9, 0.1)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr(finish, "_pictures", lambda *arguments: None)


class Scripted(CatastrophicOverfitting):
    """Sees what it is told to see, one pair a check."""

    def __init__(self, pairs, **settings):
        super().__init__(**settings)
        self.pairs = pairs

    def measure(self, model, eps, norm):
        return self.pairs[len(self.history)]


def rows(folder):
    with open(folder / CatastrophicOverfitting.FILE) as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(
    ("pairs", "settings", "fires"),
    [
        ([(0.5, 0.45), (0.55, 0.2)], {}, [0, 1]),  # PGD falls, FGSM does not
        ([(0.5, 0.45), (0.45, 0.26)], {}, [0, 0]),  # by 0.19
        ([(0.5, 0.45), (0.25, 0.2)], {}, [0, 0]),  # both fall
        ([(0.4, 0.36), (0.22, 0.14)], {}, [0, 0]),  # as a PGD-AT run did on its way
        ([(0.5, 0.45), (0.55, 0.2)], {"drop": 0.3, "gap": 0.5}, [0, 0]),
        ([(0.8, 0.6), (0.9, 0.59)], {}, [0, 1]),  # far apart
        ([(0.8, 0.49)], {}, [1]),  # at the first check
        ([(0.8, 0.49), (0.9, 0.4), (0.95, 0.1)], {"gap": None, "action": "report"}, [0, 0, 1]),
        ([(0.5, 0.4), (0.6, 0.45), (0.4, 0.36)], {}, [0, 0, 0]),
    ],
)
def test_when_it_fires(tmp_path, pairs, settings, fires):
    watch = Scripted(pairs, **settings)
    course(tmp_path, epochs=len(pairs), callbacks=[watch], steps=1)
    assert [row["fired"] for row in watch.history] == fires
    assert watch.fired == any(fires)
    assert [(row["step"], row["epoch"]) for row in watch.history] == [
        (3 * epoch, epoch) for epoch in range(1, len(fires) + 1)
    ]
    assert [float(row["pgd"]) for row in rows(tmp_path)] == [pgd for _, pgd in pairs[: len(fires)]]


def test_measures_fgsm_and_pgd_10_on_training_images(tmp_path):
    data = images()
    watch = CatastrophicOverfitting(samples=40)
    kept = {}

    class Keep:
        def on_step_end(self, state):
            kept.update(copy.deepcopy(state.model.state_dict()), training=state.model.training)

    result = course(tmp_path, callbacks=[Keep(), watch], data=data, epochs=1)
    assert kept.pop("training")
    x, y = watch._images, watch._labels
    assert x.shape == (40, 1, 8, 8)
    # All are in the 110 that are trained on, none is held out; none is augmented.
    held_out = {tuple(row) for row in data[0].flatten(1).tolist()} - {
        tuple(row) for row in x.flatten(1).tolist()
    }
    assert len(held_out) == 90
    model = network()
    model.load_state_dict(kept)
    model.eval()

    def gradient(point):
        point = point.clone().requires_grad_()
        return torch.autograd.grad(torch.nn.functional.cross_entropy(model(point), y), point)[0]

    def accuracy(point):
        return (model(point).argmax(1) == y).float().mean().item()

    fgsm = (x + 0.1 * gradient(x).sign()).clamp(0, 1)
    assert watch.history[0]["fgsm"] == pytest.approx(accuracy(fgsm))
    pgd = PGDAttack(model, 0.1, 0.025, 10, seed=0, fold=False)(x, y)
    assert watch.history[0]["pgd"] == pytest.approx(accuracy(pgd), abs=1 / 40)
    assert not result.model.training


class Snapshots:
    """What the run holds after each step, before the detector looks."""

    def __init__(self):
        self.found = []

    def on_step_end(self, state):
        average = [copy.deepcopy(modifier.state_dict()) for modifier in state.modifiers]
        self.found.append((copy.deepcopy(state.model.state_dict()), average))


@pytest.mark.parametrize(("every", "fatal", "good"), [(None, 2, 6), (2, 3, 5), (2, 1, 2)])
def test_the_weights_of_the_last_good_check_come_back(tmp_path, capsys, every, fatal, good):
    # Checks after steps 3, 6, 9; with every=2 after 2, 3, 4, 6, 8, 9.
    steps = [3, 6, 9] if every is None else [2, 3, 4, 6, 8, 9]
    good = steps[fatal - 1]
    watch, snapshots = Scripted([GOOD] * fatal + [BAD], every=every), Snapshots()
    result = course(tmp_path, "ema:decay=0.7", callbacks=[snapshots, watch], steps=1)
    last = checkpoint.read(tmp_path / "last.pt")
    weights, average = snapshots.found[good - 1]
    assert_same(last["run"]["weights"], dict(weights))
    assert_same(last["state"], average[0]["average"])
    assert last["run"]["finished"]
    # The epoch in which it fired was validated with the weights that were put back: best.pt is no collapsed one.
    assert result.history[-1]["epoch"] == (steps[fatal] + 2) // 3
    message = capsys.readouterr().err.strip().splitlines()
    assert message == [
        f"catastrophic overfitting at step {steps[fatal]} (epoch {(steps[fatal] + 2) // 3}): PGD-10 "
        f"accuracy 0.450 -> 0.100, FGSM 0.900, on 110 training images; training ends with the weights "
        f"of step {good}"
    ]
    assert [int(row["fired"]) for row in rows(tmp_path)] == [0] * fatal + [1]


def test_a_collapse_before_the_first_good_check(tmp_path, capsys):
    course(tmp_path, callbacks=[Scripted([BAD])], steps=1)
    assert "no check before was in order: the weights stay" in capsys.readouterr().err
    assert len(rows(tmp_path)) == 1


def test_report_only_tells_once_and_changes_nothing(tmp_path, capsys):
    course(tmp_path / "base")
    watch = Scripted([GOOD, BAD, BAD], action="report")
    course(tmp_path / "told", callbacks=[watch])
    assert_same(outcome(tmp_path / "told"), outcome(tmp_path / "base"))
    assert capsys.readouterr().err.count("training goes on") == 1
    assert watch.fired


def test_looking_changes_nothing(tmp_path):
    course(tmp_path / "base")
    course(tmp_path / "watched", callbacks=[CatastrophicOverfitting(every=1, gap=None, drop=1)])
    assert_same(outcome(tmp_path / "watched"), outcome(tmp_path / "base"))


@pytest.mark.parametrize("stop", [2, 4, 6, 7])
def test_resumed_anywhere(tmp_path, stop):
    pairs = [GOOD, (0.6, 0.5), GOOD, BAD]  # after steps 2, 3, 4, 6

    def run(folder, *callbacks):
        # Each process has a detector of its own.
        watch = Scripted(pairs, every=2)
        course(folder, "ema:decay=0.7", callbacks=[watch, *callbacks], steps=1, save_every=1)
        return watch

    whole = run(tmp_path / "whole")
    if stop > 6:
        # Dies when what fired at step 6 is saved, but before the epoch is validated.
        class Die:
            def on_step_end(self, state):
                self.step = state.global_step

        from advfast.training import run as module

        die, save = Die(), module.Run.save

        def saved(self):
            save(self)
            if die.step == 6:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module.Run, "save", saved)
            run(tmp_path / "stopped", die)
    else:
        with pytest.raises(SystemExit):
            run(tmp_path / "stopped", Terminate(stop))
    again = run(tmp_path / "stopped")
    assert_same(outcome(tmp_path / "stopped"), outcome(tmp_path / "whole"))
    assert again.history == whole.history
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")


def test_the_same_object_in_another_run_begins_anew(tmp_path):
    watch = Scripted([BAD])
    for name in ("one", "other"):
        course(tmp_path / name, callbacks=[watch], steps=1)
        assert watch.history == [{"step": 3, "epoch": 1, "fgsm": 0.9, "pgd": 0.1, "fired": 1}]


def test_clean_epochs_are_not_looked_at(tmp_path):
    watch = Scripted([GOOD, GOOD])
    course(tmp_path, callbacks=[watch], clean_prefix=2, steps=1)
    assert [row["epoch"] for row in watch.history] == [3]


def test_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(CatastrophicOverfitting, "measure", lambda *a: BAD)
    result = course(tmp_path, on_collapse="stop", steps=1)
    assert len(result.history) == 1
    assert result.config["on_collapse"] == "stop"
    assert "catastrophic overfitting at step 3" in capsys.readouterr().err


def test_samples_of_a_data_loader_are_its_first(tmp_path):
    data = images()
    loader = DataLoader(TensorDataset(*data), batch_size=48)
    watch = CatastrophicOverfitting(samples=60)
    state = TrainState(network(), None, {"seed": 0}, tmp_path, 1, 1, data=loader)
    watch.on_train_begin(state)
    assert torch.equal(watch._images, data[0][:60])
    assert torch.equal(watch._labels, data[1][:60])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every must be an integer >= 1, got 0"),
        ({"samples": True}, "samples must be an integer >= 1"),
        ({"drop": 0}, "drop must be above 0 and at most 1, got 0"),
        ({"gap": 1.5}, "gap must be above 0 and at most 1"),
        ({"restore": 1}, "restore must be True or False, got 1"),
        ({"action": "warn"}, "action must be one of stop, report, noise, got 'warn'"),
    ],
)
def test_bad_values(settings, message):
    with pytest.raises(ValueError, match=message):
        CatastrophicOverfitting(**settings)
