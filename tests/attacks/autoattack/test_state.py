"""An evaluation that is stopped and gone on with gives what one without a stop gives."""

import json
from itertools import chain

import pytest
import torch

from advfast.attacks.autoattack import state

from .test_driver import evaluation
from .toys import CALLS, Corners, MoreCorners, Stops, linear, samples


@pytest.fixture
def model():
    return linear()


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(state, "SECONDS", 0.0)


def test_no_stop_changes_a_bit(model, tmp_path, at_once):
    x, y = samples(model)
    path = tmp_path / "state"
    whole = evaluation(model, Corners, Stops)
    images, labels = whole.run_standard_evaluation(x, y, bs=6, return_labels=True)
    resumed = 0
    for stop in range(1, 6):
        path.unlink(missing_ok=True)
        Stops.left = stop
        run = evaluation(model, Corners, Stops)
        try:
            run.run_standard_evaluation(x, y, bs=6, state_path=path)
        except KeyboardInterrupt:
            resumed += 1
            partial = run.result
            assert not partial.complete and "interrupted" in str(partial)
            assert torch.equal(partial.images[partial.robust], x[partial.robust])
            assert not (partial.robust & ~whole.result.stages["corners"]).any()
        finally:
            Stops.left = 10**9
        again = evaluation(model, Corners, Stops)
        found = again.run_standard_evaluation(x, y, bs=6, return_labels=True, state_path=path)
        assert torch.equal(found[0], images) and torch.equal(found[1], labels)
        assert again.result.complete and again.result.stages.keys() == whole.result.stages.keys()
        for name, right in whole.result.stages.items():
            assert torch.equal(again.result.stages[name], right)
        assert again.result.forwards == whole.result.forwards
    assert resumed >= 3


def test_what_was_done_is_not_done_again(model, tmp_path, at_once, capsys):
    x, y = samples(model)
    path = tmp_path / "state"
    Stops.left = 3
    try:
        with pytest.raises(KeyboardInterrupt):
            evaluation(model, Corners, Stops, verbose=True, progress=False).run_standard_evaluation(
                x, y, bs=6, state_path=path
            )
    finally:
        Stops.left = 10**9
    printed = capsys.readouterr().out
    assert "stopped by KeyboardInterrupt: robust accuracy so far " in printed
    assert f"resume from {path}\n" in printed
    CALLS.clear()
    run = evaluation(model, Corners, Stops)
    run.run_standard_evaluation(x, y, bs=6, state_path=path)
    attacked = run.result.stages["corners"].nonzero()[:, 0].tolist()
    assert {name for name, _ in CALLS} == {"Stops"}  # the first attack was done, and two batches
    assert list(chain(*(ids for _, ids in CALLS))) == attacked[12:]
    CALLS.clear()
    again = evaluation(model, Corners, Stops)
    found = again.run_standard_evaluation(x, y, bs=6, state_path=path)
    assert torch.equal(found, run.result.images) and not CALLS


def test_without_a_path_what_was_found_is_still_there(model):
    x, y = samples(model)
    Stops.left, run = 3, evaluation(model, Corners, Stops)
    try:
        with pytest.raises(KeyboardInterrupt):
            run.run_standard_evaluation(x, y, bs=6)
    finally:
        Stops.left = 10**9
    assert list(run.result.stages) == ["clean", "corners", "stops"]
    assert torch.equal(model(run.result.images).argmax(1) == y, run.result.robust)


def test_it_is_written_at_stage_ends_and_now_and_then(model, tmp_path, monkeypatch):
    x, y = samples(model)
    written = []
    monkeypatch.setattr(state, "write_atomic", lambda *given: written.append(given))
    evaluation(model).run_standard_evaluation(x, y, bs=4, state_path=tmp_path / "s")
    assert len(written) == 2  # each attack's end; half a minute has not passed
    monkeypatch.setattr(state, "SECONDS", 0.0)
    written.clear()
    evaluation(model).run_standard_evaluation(x, y, bs=4, state_path=tmp_path / "s")
    assert len(written) > 10


def test_a_state_of_something_else_is_refused(model, tmp_path):
    x, y = samples(model)
    path = tmp_path / "state"
    evaluation(model).run_standard_evaluation(x, y, state_path=path)
    other = linear()
    with torch.no_grad():
        other[1].bias[0] += 1e-3
    moved = x.clone()
    moved[3, 0, 0, 0] += 1e-3
    for run, images, labels, words in (
        (evaluation(model, eps=0.2), x, y, r"eps \(0\.15 there, 0\.2 here\)"),
        (evaluation(model, seed=1), x, y, r"seed \(0 there, 1 here\)"),
        (evaluation(model, norm="l2"), x, y, r"norm \('linf' there"),
        (evaluation(model, MoreCorners), x, y, "attacks"),
        (evaluation(other), x, y, "differs in the weights"),
        (evaluation(model), moved, y, "differs in the data"),
        (evaluation(model), x, y.flip(0), "differs in the data"),
    ):
        if run.norm == "l2":
            for attack in run.attacks_to_run:
                attack.norm = "l2"
        with pytest.raises(ValueError, match=words):
            run.run_standard_evaluation(images, labels, state_path=path)
    for content in (b"", b"\x80\x04junk", json.dumps({"_attacks_to_run": ["square"]}).encode()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is not a state that advfast\.AutoAttack wrote"):
            evaluation(model).run_standard_evaluation(x, y, state_path=path)
    torch.save({"format": "another"}, path)
    with pytest.raises(ValueError, match="is not a state"):
        evaluation(model).run_standard_evaluation(x, y, state_path=path)


def test_a_folder_that_is_not_there(model, tmp_path):
    x, y = samples(model)
    run = evaluation(model)
    with pytest.raises(FileNotFoundError, match=r"cannot write .*: its folder does not exist"):
        run.run_standard_evaluation(x, y, state_path=tmp_path / "none" / "state")
    assert run.result is None  # before any work


def test_fingerprints_see_every_value():
    a, b = torch.arange(6.0), torch.arange(6.0).reshape(2, 3)
    assert state.fingerprint(a) != state.fingerprint(b)
    assert state.fingerprint(a) != state.fingerprint(a.double())
    assert state.fingerprint(a.bfloat16()) == state.fingerprint(a.bfloat16().clone())
    assert state.fingerprint(a.t()) == state.fingerprint(a)
    assert state.weights_of(print) == "print"
