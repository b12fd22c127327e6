"""resume="auto": a job that is started again and again."""

import os
import signal

import pytest

from advfast import cli
from advfast.training import checkpoint, names, train

from .test_resume import assert_same, course, data, outcome  # noqa: F401  data is a fixture

FOLDER = "runs/custom-pgd-at-seed4"


def test_a_job_started_again_goes_on_in_the_folder_without_a_number(
    tmp_path,
    data,  # noqa: F811
    monkeypatch,
):
    monkeypatch.chdir(tmp_path)
    course("whole", data)

    class Terminate:
        def on_step_end(self, state):
            if state.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        course(None, data, resume="auto", callbacks=[Terminate()])
    assert checkpoint.read(f"{FOLDER}/{names.LAST}")["run"]["loop"]["step"] == 1
    first = course(None, data, resume="auto")
    assert str(first.path) == FOLDER
    assert_same(outcome(tmp_path / FOLDER), outcome(tmp_path / "whole"))
    stamp = (tmp_path / FOLDER / names.LAST).stat().st_mtime_ns
    again = course(None, data, resume="auto")  # complete
    assert again.history == first.history
    assert (tmp_path / FOLDER / names.LAST).stat().st_mtime_ns == stamp
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["custom-pgd-at-seed4"]
    with pytest.raises(ValueError, match=r"lr was 0.05 and is now 0.06"):
        course(None, data, resume="auto", lr=0.06)


def test_a_folder_of_ones_own_may_be_empty(tmp_path, data):  # noqa: F811
    folder = tmp_path / "run"
    folder.mkdir()
    result = course(folder, data, resume="auto", epochs=1)
    assert result.path == folder


def test_a_damaged_checkpoint_is_named_with_what_can_be_done(tmp_path, data):  # noqa: F811
    course(tmp_path, data, epochs=1)
    last = tmp_path / names.LAST
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    for resume in (True, "auto"):
        with pytest.raises(ValueError, match="cut short") as raised:
            course(tmp_path, data, epochs=1, resume=resume)
        message = str(raised.value)
        assert "no earlier state of the run" in message
        assert "--overwrite" in message and str(tmp_path / names.BEST) in message
    assert last.read_bytes() == whole[: len(whole) // 2]


@pytest.mark.parametrize("resume", ["yes", 2, None])
def test_what_is_no_way_to_resume_is_refused(tmp_path, data, resume):  # noqa: F811
    with pytest.raises(ValueError, match="resume must be True, False or 'auto'"):
        train("small-cnn", data, out=tmp_path, resume=resume)


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["train", "--epochs", "1", "--steps", "1", "--quiet", "--resume-auto"]
    assert cli.main(command) == 0
    assert cli.main(command) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["digits-pgd-at-seed0"]
    capsys.readouterr()
    assert cli.main([*command, "--seeds", "0,1"]) == 1
    assert "--resume-auto is for one run" in capsys.readouterr().err
