import pytest

from advfast.training import EarlyStopping, finish
from advfast.training import run as module

from .modifiers.runs import Terminate, course
from .test_resume import assert_same, outcome

ACCURACIES = [(0.5, 0.3), (0.6, 0.4), (0.7, 0.4), (0.8, 0.39), (0.7, 0.5), (0.9, 0.6)]


@pytest.fixture(autouse=True)
def _scripted(monkeypatch):
    """Validation sees ACCURACIES, an epoch each."""
    monkeypatch.setattr(finish, "_pictures", lambda *arguments: None)
    made = module.Run.__init__

    def scripted(self, loop, **settings):
        settings["validate"] = lambda: ACCURACIES[loop.epoch - 1]
        made(self, loop, **settings)

    monkeypatch.setattr(module.Run, "__init__", scripted)


@pytest.mark.parametrize(
    ("patience", "metric", "least", "epochs"),
    [
        (1, "val_robust", 0.0, 3),
        (2, "val_robust", 0.0, 4),
        (3, "val_robust", 0.0, 6),
        (1, "val_clean", 0.0, 5),
        (1, "val_robust", 0.15, 2),
        (5, "val_robust", 0.5, 6),
    ],
)
def test_stops_after_patience_epochs_without_a_better_one(
    tmp_path, patience, metric, least, epochs
):
    watch = EarlyStopping(patience, metric, least)
    result = course(tmp_path, callbacks=[watch], epochs=6, steps=1)
    assert len(result.history) == epochs
    assert result.best.epoch == max(range(epochs), key=lambda e: ACCURACIES[e][::-1]) + 1


def test_by_name_it_is_robust_accuracy_and_of_standard_training_clean(tmp_path, capsys):
    assert len(course(tmp_path / "robust", epochs=6, steps=1, patience=1).history) == 3
    assert (
        "early stopping after epoch 3: val_robust was best in epoch 2 (0.400)"
        in capsys.readouterr().err
    )
    settings = {"epochs": 6, "patience": 1, "method": "standard"}
    assert len(course(tmp_path / "clean", **settings).history) == 5


def test_epochs_of_a_clean_prefix_do_not_count(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ACCURACIES", [(0.9, 0.0)] * 6)
    result = course(tmp_path, epochs=6, steps=1, clean_prefix=3, patience=2)
    assert len(result.history) == 5


@pytest.mark.parametrize("stop", [4, 8])
def test_resumed_it_stops_at_the_same_epoch(tmp_path, stop):
    course(tmp_path / "whole", epochs=6, steps=1, patience=2)
    with pytest.raises(SystemExit):
        course(tmp_path / "cut", epochs=6, steps=1, patience=2, callbacks=[Terminate(stop)])
    course(tmp_path / "cut", epochs=6, steps=1, patience=2)
    assert_same(outcome(tmp_path / "cut"), outcome(tmp_path / "whole"))


def test_killed_between_the_last_epoch_and_the_decision(tmp_path):
    class Die:
        def on_epoch_end(self, state):
            if state.row["epoch"] == 4:
                raise KeyboardInterrupt

    course(tmp_path / "whole", epochs=6, steps=1, patience=2)
    with pytest.raises(KeyboardInterrupt):
        course(tmp_path / "cut", epochs=6, steps=1, patience=2, callbacks=[Die()])
    course(tmp_path / "cut", epochs=6, steps=1, patience=2)
    assert_same(outcome(tmp_path / "cut"), outcome(tmp_path / "whole"))


@pytest.mark.parametrize("patience", [0, True, 1.5])
def test_bad_patience(tmp_path, patience):
    with pytest.raises(ValueError, match="patience must be an integer >= 1"):
        course(tmp_path / "run", patience=patience)
    assert not (tmp_path / "run").exists()


def test_bad_values():
    with pytest.raises(ValueError, match="metric must be val_robust or val_clean, got 'loss'"):
        EarlyStopping(2, "loss")
    with pytest.raises(ValueError, match="least must be at least 0 and below 1"):
        EarlyStopping(2, least=-0.1)
