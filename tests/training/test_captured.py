"""A step as one graph, on a stand-in for CUDA graphs: the bits of an eager run."""

import pytest
import torch
from torch import nn

from advfast import graphs
from advfast.training import checkpoint, methods, train
from advfast.training.captured import CapturedStep
from advfast.training.loop import NonFiniteLoss
from advfast.training.modifiers import Modifier

from ..tape import Recorder
from .test_resume import assert_same, outcome


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


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(170, 1, 8, 8, generator=generator), torch.arange(170) % 3


@pytest.fixture
def recorder(monkeypatch):
    tape = Recorder()
    monkeypatch.setattr(graphs, "recorder", lambda device: tape)
    return tape


def course(folder, data, model=None, **changes):
    """Three epochs of four whole batches and a short one."""
    settings = {
        "val": data, "test": data, "eps": 0.1, "steps": 2, "epochs": 3, "batch_size": 40,
        "lr": 0.05, "schedule": "triangular", "augment": ["crop", "flip"], "progress": False,
        "seed": 4,
    }  # fmt: skip
    return train(model or network(), data, out=folder, **settings | changes)


class Launches:
    """Of the captured step, after each step of a run."""

    def __init__(self, monkeypatch):
        self.step, self.counts = None, []
        made = CapturedStep.__post_init__

        def post_init(step):
            made(step)
            self.step = step

        monkeypatch.setattr(CapturedStep, "__post_init__", post_init)

    def on_step_end(self, state):
        self.counts.append(self.step.launches)


def both(tmp_path, data, monkeypatch, **changes):
    """(outcome of an eager run, of a captured one, launches after each step)."""
    course(tmp_path / "eager", data, capture="off", **changes)
    monkeypatch.setattr(graphs, "recorder", lambda device, tape=Recorder(): tape)
    launches = Launches(monkeypatch)
    course(tmp_path / "captured", data, capture="required", callbacks=[launches], **changes)
    return outcome(tmp_path / "eager"), outcome(tmp_path / "captured"), launches.counts


OPTIONS = {"free": {"m": 2}, "yopo": {"m": 2, "n": 2}}


@pytest.mark.parametrize("method", sorted(methods.METHODS))
def test_every_method_gives_the_bits_of_an_eager_run(tmp_path, data, monkeypatch, method):
    changes = {"method": method, "method_options": OPTIONS.get(method)}
    eager, captured, launches = both(tmp_path, data, monkeypatch, **changes)
    assert_same(captured, eager)
    if method == "free":
        # Every batch twice, so that the short one too comes twice in a row.
        assert launches[-1] == 3 * 10 - 2
    else:
        # All but the first step, the short batches, and the step behind the last of them: it is replayed.
        assert launches == [0, 1, 2, 3, 3, 4, 5, 6, 7, 7, 8, 9, 10, 11, 11]


MODIFIERS = {
    "awp": ["awp:gamma=0.01"],
    "awp-warmup": ["awp:gamma=0.01,warmup=2"],
    "ema": ["ema:decay=0.9,warmup=0.4"],
    "all": ["awp:gamma=0.01", "ema:decay=0.9"],
}


@pytest.mark.parametrize("modifiers", MODIFIERS)
def test_every_modifier_gives_the_bits_of_an_eager_run(tmp_path, data, monkeypatch, modifiers):
    eager, captured, launches = both(tmp_path, data, monkeypatch, modifiers=MODIFIERS[modifiers])
    assert_same(captured, eager)
    assert launches[-1] == 11 - (modifiers == "awp-warmup")
    saved = [
        checkpoint.read(tmp_path / name / "last.pt")["run"]["modifiers"]
        for name in ("eager", "captured")
    ]
    assert_same(*saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "l2", "eps": 0.5},
        {"bn": "train", "clip_grad": 0.1},
        {"bn": "train-update", "label_smoothing": 0.1},
        {"micro_batch": 16},
        {"clean_prefix": 1},
        {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0},
        {"optimizer_options": {"nesterov": True}},
        {"precision": "bf16"},
        {"augment": ["crop-reflect", "cutout:3"]},
    ],
    ids=str,
)
def test_settings_give_the_bits_of_an_eager_run(tmp_path, data, monkeypatch, changes):
    eager, captured, launches = both(tmp_path, data, monkeypatch, **changes)
    assert_same(captured, eager)
    assert launches[-1] == 11 - ("clean_prefix" in changes)
