"""Checkpoints that stay: which ones, their weights, and a run that is killed."""

import pytest
import torch

import advfast
from advfast.training import checkpoint, names


def course(folder, **changes):
    settings = {
        "epochs": 5, "method": "standard", "batch_size": 256, "lr": 0.05, "keep_every": 2, "progress": False,
    }  # fmt: skip
    return advfast.train("small-cnn", "digits", out=folder, **settings | changes)


def kept(folder):
    return [path.name for path in sorted((folder / names.KEPT).iterdir())]


def test_first_every_second_and_last(tmp_path):
    result = course(tmp_path, ema=0.5)
    assert kept(tmp_path) == [f"epoch-000{epoch}.pt" for epoch in (0, 2, 4, 5)]
    for epoch in (0, 2, 4, 5):
        content = checkpoint.read(names.kept(tmp_path, epoch))
        assert content["epoch"] == epoch
        assert content["metrics"].get("epoch", 0) == epoch
    last, best = (checkpoint.read(tmp_path / name) for name in (names.LAST, names.BEST))
    own = checkpoint.read(names.kept(tmp_path, 5))["state"]
    # What counts with an average is the average.
    assert all(torch.equal(value, last["state"][name]) for name, value in own.items())
    assert any(not torch.equal(value, last["run"]["weights"][name]) for name, value in own.items())
    if best["epoch"] in (2, 4):
        at = checkpoint.read(names.kept(tmp_path, best["epoch"]))["state"]
        assert all(torch.equal(value, best["state"][name]) for name, value in at.items())
    assert advfast.load(names.kept(tmp_path, 0)) is not None
    assert result.path == tmp_path


def test_a_killed_run_keeps_the_same(tmp_path):
    class Die:
        def on_step_end(self, state):
            if state.epoch == 3:
                raise KeyboardInterrupt

    course(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        course(tmp_path / "cut", callbacks=[Die()])
    assert kept(tmp_path / "cut") == ["epoch-0000.pt", "epoch-0002.pt"]
    course(tmp_path / "cut", resume=True)
    assert kept(tmp_path / "cut") == kept(tmp_path / "whole")
    for epoch in (0, 2, 4, 5):
        one, other = (
            checkpoint.read(names.kept(tmp_path / name, epoch))["state"] for name in ("whole", "cut")
        )  # fmt: skip
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_run_that_stops_early_keeps_its_last_epoch_and_another_run_none_of_it(tmp_path):
    class Stop:
        def on_epoch_end(self, state):
            state.stop = state.epoch == 3

    course(tmp_path, callbacks=[Stop()])
    assert kept(tmp_path) == ["epoch-0000.pt", "epoch-0002.pt", "epoch-0003.pt"]
    course(tmp_path, overwrite=True, keep_every=None, epochs=1)
    assert kept(tmp_path) == []
    with pytest.raises(ValueError, match="keep_every must be an integer >= 1, got 0"):
        course(tmp_path / "other", keep_every=0)
