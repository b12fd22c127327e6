"""A run that is killed anywhere and resumed ends with the bits of one that was not."""

import builtins
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from advfast import files
from advfast.training import checkpoint, finish, names, train

from . import kill

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

TIMES = ("seconds", "images_per_second")
DIED = 9


def network():
    # Dropout draws from torch's generator, batch normalisation has buffers.
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(256, 3),
    )


def course(folder, data, **changes):
    """A run with everything that has a state."""
    settings = {
        "test": data,
        "eps": 0.1,
        "steps": 2,
        "epochs": 3,
        "batch_size": 48,
        "lr": 0.05,
        "ema": 0.9,
        "clip_grad": 1.0,
        "label_smoothing": 0.1,
        "schedule": "triangular",
        "augment": ["crop", "flip"],
        "save_every": 2,
        "deterministic": True,
        "progress": False,
        "resume": True,
        "seed": 4,
    }
    return train(network(), data, out=folder, **settings | changes)


def outcome(folder):
    """All that a run leaves, without times."""
    last, best = (checkpoint.read(folder / name) for name in (names.LAST, names.BEST))
    rows = json.loads((folder / names.HISTORY_JSON).read_text())["history"]
    results = json.loads((folder / names.RESULTS).read_text())
    return {
        "last": last["state"],
        "best": best["state"],
        "weights": last["run"]["weights"],
        "optimizer": last["run"]["optimizer"],
        "rng": last["run"]["rng"],
        "epoch": best["epoch"],
        "history": [{k: v for k, v in row.items() if k not in TIMES} for row in rows],
        "test": [results[name]["test"]["results"] for name in ("best", "last")],
    }


def assert_same(found, expected, where=""):
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}[{number}]")
    else:
        assert found == expected, where


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(130, 1, 8, 8, generator=generator), torch.arange(130) % 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """The outcome of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    course(folder, data)
    return outcome(folder)


def in_child(work):
    """Runs it in a forked process; its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


class Boundaries:
    """Counts what write_atomic asks of the system, and can die before the n-th of them, in the middle of a write."""

    def __init__(self, fatal=None, error=None):
        self.fatal, self.error = fatal, error
        self.seen = []

    def reach(self, what, half=None):
        self.seen.append(what)
        if len(self.seen) - 1 == self.fatal:
            if half is not None:
                half()
            if self.error is not None:
                raise self.error
            os._exit(DIED)

    @contextlib.contextmanager
    def watching(self):
        replace, fsync = os.replace, os.fsync

        def counted_replace(source, target):
            self.reach(f"replace {Path(target).name}")
            replace(source, target)

        def counted_fsync(descriptor):
            self.reach("fsync")
            fsync(descriptor)

        def counted_open(path, mode):
            stream = builtins.open(path, mode)  # noqa: SIM115
            write = stream.write
            proxy = Stream(stream)

            def counted_write(content):
                def half():
                    write(bytes(content)[: len(content) // 2])
                    stream.flush()

                self.reach(f"write {Path(path).name}", half)
                return write(content)

            proxy.write = counted_write
            return proxy

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", counted_replace)
            patch.setattr(os, "fsync", counted_fsync)
            patch.setattr(files, "open", counted_open, raising=False)
            yield self


class Stream:
    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._stream.close()


def places(seen):
    """Numbers of the boundaries to try: of the many writes of a file, the first and the last."""
    for number, what in enumerate(seen):
        neighbours = seen[number - 1 : number], seen[number + 1 : number + 2]
        if what.startswith("write") and all(near == [what] for near in neighbours):
            continue
        yield number


def test_killed_at_every_boundary_of_a_write(tmp_path, data, whole):
    with Boundaries().watching() as counted:
        course(tmp_path / "count", data)
    assert_same(outcome(tmp_path / "count"), whole)
    tried = list(places(counted.seen))
    kinds = {what.split(" ")[0] for what in counted.seen}
    written = {what.split(" ")[1] for what in counted.seen if what.startswith("replace")}
    assert kinds == {"write", "fsync", "replace"}
    assert written >= {"config.yaml", "last.pt", "best.pt", "history.csv", "results.json"}
    assert len(tried) > 60
    # Each is a run of its own; every third here, all of them with --slow, begins elsewhere each time.
    for number in tried[:: 1 if kill.ALL else 3]:
        folder = tmp_path / str(number)
        boundaries = Boundaries(fatal=number)

        def killed(boundaries=boundaries, folder=folder):
            with boundaries.watching():
                course(folder, data)

        assert in_child(killed) == DIED, counted.seen[number]
        assert in_child(lambda folder=folder: course(folder, data)) == 0, counted.seen[number]
        assert_same(outcome(folder), whole, f"{number}: {counted.seen[number]}")
        assert not list(folder.glob(".*.tmp"))


def test_full_disk_at_every_boundary_keeps_what_was_saved(tmp_path, data, whole):
    with Boundaries().watching() as counted:
        course(tmp_path / "count", data)
    for number in list(places(counted.seen))[:: 1 if kill.ALL else 9]:
        folder = tmp_path / str(number)
        saved = None
        error = OSError(28, "No space left on device")
        boundaries = Boundaries(fatal=number, error=error)
        with (
            boundaries.watching(),
            pytest.raises(OSError, match=r"disk is full|No space") as raised,
        ):
            course(folder, data)
        assert raised.value.errno == 28
        last = folder / names.LAST
        if last.exists():
            saved = checkpoint.read(last)  # whole
            assert "go on with resume=True" in str(raised.value)
        assert not list(folder.glob(".*.tmp"))
        course(folder, data)
        assert_same(outcome(folder), whole, f"{number}: {counted.seen[number]}")
        assert saved is None or saved["epoch"] <= 3


@pytest.mark.parametrize("step", [1, 3, 4, 9])
def test_sigterm_saves_in_the_middle_of_an_epoch(tmp_path, data, whole, step, capsys):
    class Terminate:
        def on_step_end(self, state):
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)  # the handler runs at the next bytecode

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        course(tmp_path, data, callbacks=[Terminate()], save_every=None)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    message = capsys.readouterr().err
    assert message.startswith("SIGTERM")
    assert str(tmp_path) in message
    assert "--resume" in message
    loop = checkpoint.read(tmp_path / names.LAST)["run"]["loop"]
    assert (loop["epoch"] - 1) * 3 + loop["step"] == step
    course(tmp_path, data, save_every=None)
    assert_same(outcome(tmp_path), whole)


def test_ctrl_c_during_validation_saves_the_trained_epoch(tmp_path, data, whole, monkeypatch):
    module = sys.modules["advfast.training.assemble"]
    evaluate, calls = module.evaluate, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "evaluate", interrupted)
        course(tmp_path, data)
    loop = checkpoint.read(tmp_path / names.LAST)["run"]["loop"]
    assert (loop["epoch"], loop["step"]) == (2, 3)
    course(tmp_path, data)
    assert_same(outcome(tmp_path), whole)


def test_killed_programs_go_on(tmp_path):
    # Real processes, killed at random; many more of them: python -m tests.training.kill
    assert kill.main(["--kills", "3", "--out", str(tmp_path / "runs")]) == 0


def test_resume_of_a_complete_run_returns_at_once(tmp_path, data, monkeypatch):
    first = course(tmp_path, data)
    for module in (sys.modules["advfast.training.assemble"], finish):
        monkeypatch.setattr(module, "evaluate", lambda *a, **k: pytest.fail("evaluated again"))
    stamps = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = course(tmp_path, data)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps
    assert again.history == first.history
    assert again.best.test.to_dict() == first.best.test.to_dict()
    assert (again.best.epoch, again.seconds) == (first.best.epoch, first.seconds)
    for name, value in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)
    assert not again.model.training


def test_resume_without_results_evaluates_again(tmp_path, data, whole):
    course(tmp_path, data)
    (tmp_path / names.RESULTS).unlink()
    course(tmp_path, data)
    assert_same(outcome(tmp_path), whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.06}, "lr was 0.05 and is now 0.06"),
        ({"epochs": 4}, "epochs was 3 and is now 4"),
        ({"augment": ["flip"]}, "augment was"),
        ({"method": "standard"}, "method was 'pgd-at' and is now 'standard'"),
    ],
)
def test_resume_with_other_settings_is_refused(tmp_path, data, changes, message):
    course(tmp_path, data, epochs=3, steps=1)
    before = (tmp_path / names.LAST).read_bytes()
    with pytest.raises(ValueError, match=message):
        course(tmp_path, data, **{"steps": 1} | changes)
    assert (tmp_path / names.LAST).read_bytes() == before


def test_resume_with_other_data_or_another_model_is_refused(tmp_path, data):
    course(tmp_path, data)
    images, labels = data
    with pytest.raises(ValueError, match="another training data"):
        course(tmp_path, (images, labels.flip(0)))
    with pytest.raises(
        ValueError, match="model was '<Sequential from Python>' and is now 'small-cnn'"
    ):
        train("small-cnn", data, **_arguments(tmp_path, data))
    wider = network()
    wider[0] = nn.Conv2d(1, 5, 3, padding=1)
    wider[1], wider[5] = nn.BatchNorm2d(5), nn.Linear(320, 3)
    (tmp_path / names.RESULTS).unlink()
    with pytest.raises(ValueError, match="do not fit this Sequential"):
        train(wider, data, **_arguments(tmp_path, data))


def _arguments(folder, data):
    seen = {}

    def spy(model, data, **arguments):
        seen.update(arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "train", spy)
        course(folder, data)
    return seen


def test_what_is_no_run_is_refused(tmp_path, data):
    (tmp_path / names.LAST).write_bytes(b"hello")
    with pytest.raises(ValueError, match="not an advfast checkpoint"):
        course(tmp_path, data)
    model = network()
    checkpoint.save(
        tmp_path / names.LAST, model, model.state_dict(), epoch=1, metrics={}, config={}
    )
    with pytest.raises(ValueError, match="weights alone"):
        course(tmp_path, data)


def test_lost_best_checkpoint_is_named(tmp_path, data):
    first = course(tmp_path, data, epochs=4, lr=1e-6)  # the first epoch stays the best
    if first.best.epoch == first.last.epoch:
        pytest.fail("the last epoch must not be the best one here")
    for name in (names.RESULTS, names.BEST):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"best\.pt is missing, but the best epoch"):
        course(tmp_path, data, epochs=4, lr=1e-6)


def test_resume_needs_a_folder_and_excludes_overwrite(tmp_path, data):
    with pytest.raises(ValueError, match="resume needs `out`"):
        course(None, data)
    with pytest.raises(ValueError, match="exclude each other"):
        course(tmp_path, data, overwrite=True)


def test_command_line_is_terminated_with_a_message(tmp_path):
    command = [sys.executable, "-m", "advfast", "train", "--epochs", "500", "--out", "run"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / names.LAST).exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    assert out == ""
    assert "SIGTERM in epoch" in err.splitlines()[-1]
    assert "Traceback" not in err
