import sys
from types import SimpleNamespace

import pytest
import torch

from advfast.training import tensorboard
from advfast.training.tensorboard import TensorBoard


class FakeWriter:
    """Remembers what it is told."""

    made: list = []  # noqa: RUF012

    def __init__(self, log_dir, purge_step):
        self.log_dir, self.purge_step = log_dir, purge_step
        self.scalars, self.texts, self.closed = [], {}, False
        FakeWriter.made.append(self)

    def add_scalar(self, name, value, step):
        assert not self.closed
        self.scalars.append((name, value, step))

    def add_text(self, name, text):
        self.texts[name] = text

    def flush(self):
        pass

    def close(self):
        self.closed = True


class Unread:
    """A number on a device that counts how often it is read."""

    def __init__(self, value):
        self.value, self.reads = value, 0

    def item(self):
        self.reads += 1
        return self.value


@pytest.fixture
def fake(monkeypatch):
    FakeWriter.made = []
    monkeypatch.setattr(tensorboard, "_writer_class", lambda: FakeWriter)
    return FakeWriter


def state(folder, global_step=0):
    return SimpleNamespace(
        folder=folder,
        config={"eps": 0.1, "model": {"name": "small-cnn"}},
        global_step=global_step,
        lr=0.5,
        loss=Unread(2.0),
        correct=Unread(3),
        batch=SimpleNamespace(labels=torch.zeros(4)),
        images_per_second=100.0,
        row={},
    )


def steps(callback, at, until):
    while at.global_step < until:
        at.global_step += 1
        callback.on_step_end(at)


def test_scalars_of_steps_and_epochs(fake, tmp_path):
    callback, at = TensorBoard(every=10), state(tmp_path)
    callback.on_train_begin(at)
    steps(callback, at, 25)
    at.row = {"epoch": 1, "train_loss": 1.5, "val_robust": 0.25, "note": "text", "gap": None}
    callback.on_epoch_end(at)
    callback.on_train_end(at)
    (writer,) = fake.made
    assert writer.log_dir == str(tmp_path / "tensorboard")
    assert writer.purge_step is None
    assert [step for name, _, step in writer.scalars if name == "step/loss"] == [1, 10, 20]
    assert at.loss.reads == at.correct.reads == 3
    assert {(name, value) for name, value, step in writer.scalars if step == 20} == {
        ("step/loss", 2.0),
        ("step/accuracy", 0.75),
        ("step/lr", 0.5),
        ("step/images_per_second", 100.0),
    }
    assert writer.scalars[-3:] == [
        ("epoch/epoch", 1.0, 25),
        ("epoch/train_loss", 1.5, 25),
        ("epoch/val_robust", 0.25, 25),
    ]
    assert '    "eps": 0.1' in writer.texts["config"]
    assert writer.closed


def test_resumed_run_hides_what_was_written_beyond(fake, tmp_path):
    callback = TensorBoard(tmp_path / "logs")
    callback.on_train_begin(state(tmp_path, global_step=120))
    (writer,) = fake.made
    assert (writer.log_dir, writer.purge_step) == (str(tmp_path / "logs"), 121)
    assert not writer.texts


def test_one_callback_serves_several_runs(fake, tmp_path):
    callback = TensorBoard(every=1)
    for run in ("a", "b"):
        at = state(tmp_path / run)
        callback.on_train_begin(at)
        steps(callback, at, 1)
        callback.on_train_end(at)
    assert [writer.log_dir for writer in fake.made] == [
        str(tmp_path / run / "tensorboard") for run in ("a", "b")
    ]
    assert all(writer.closed and writer.scalars for writer in fake.made)
    callback.on_train_end(at)  # a run that failed before it began


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r'pip install "advfast\[tensorboard\]"'):
        TensorBoard()


@pytest.mark.parametrize("every", [0, 2.5, True])
def test_bad_arguments(every):
    with pytest.raises(ValueError, match="every must be an integer >= 1"):
        TensorBoard(every=every)


def test_event_files_can_be_read_back(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, stop, loss in ((0, 4, 2.0), (2, 4, 1.0)):  # the second goes on after step 2
        callback, at = TensorBoard(every=1), state(tmp_path, start)
        callback.on_train_begin(at)
        at.loss = torch.tensor(loss)
        at.correct = torch.tensor(3)
        steps(callback, at, stop)
        at.row = {"val_robust": loss / 4}
        callback.on_epoch_end(at)
        callback.on_train_end(at)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    losses = [(event.step, event.value) for event in found.Scalars("step/loss")]
    assert losses == [(1, 2.0), (2, 2.0), (3, 1.0), (4, 1.0)]
    assert [(e.step, e.value) for e in found.Scalars("epoch/val_robust")] == [(4, 0.25)]
    assert found.Tags()["tensors"] == ["config/text_summary"]
