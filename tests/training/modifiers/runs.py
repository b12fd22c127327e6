"""Whole runs on tiny data, and what they leave."""

import os
import signal
import time

import pytest
import torch

from advfast.training import train
from advfast.training.methods import Settings, make
from advfast.training.modifiers import RunInfo, StepInfo
from advfast.training.precision import make_scaler
from advfast.training.step import TrainStep

from ..test_resume import assert_same, network, outcome

RUN = RunInfo(classes=3, batch_size=48, epochs=3, steps_per_epoch=3, seed=4)


def at(step, method=None, run=RUN):
    return StepInfo(step, run.steps_per_epoch, run.epochs, 0.1, method, run.seed)


def images(count=130):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 3


def course(folder, *modifiers, data=None, **changes):
    """Three epochs of three steps."""
    settings = {
        "eps": 0.1,
        "steps": 2,
        "epochs": 3,
        "batch_size": 48,
        "lr": 0.05,
        "schedule": "triangular",
        "augment": ["crop", "flip"],
        "deterministic": True,
        "progress": False,
        "resume": True,
        "seed": 4,
    }
    data = images() if data is None else data
    settings |= {"test": data, "modifiers": modifiers} | changes
    return train(network(), data, out=folder, **settings)


class Terminate:
    """Sends SIGTERM after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, state):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)  # the handler runs at the next bytecode


def assert_resumes(folder, *modifiers, steps=(1, 4), **changes):
    """A run that is stopped after each of `steps` and resumed is the one that is not."""
    course(folder / "whole", *modifiers, **changes)
    for step in steps:
        stopped = folder / str(step)
        with pytest.raises(SystemExit):
            course(stopped, *modifiers, callbacks=[Terminate(step)], **changes)
        course(stopped, *modifiers, **changes)
        assert_same(outcome(stopped), outcome(folder / "whole"), f"after step {step}")


def assert_same_runs(one, other):
    """All that two runs leave, but for what modifiers carry."""
    assert_same(outcome(one), outcome(other))


def stepper(model, *modifiers, method="standard", lr=0.1, momentum=0.9, run=RUN):
    """(step, batch) -> Outcome: the steps of the loop without the loop."""
    made = make(method, model, Settings(eps=0.1, alpha=None, steps=2, norm="linf"))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=5e-4)
    step = TrainStep(model, optimizer, modifiers, make_scaler("fp32", torch.device("cpu")))
    for modifier in modifiers:
        modifier.begin(model, run)
    model.train()

    def one(number, batch):
        for modifier in modifiers:
            modifier.before_step(at(number, made, run))
        return step(made, batch)

    one.train_step = step
    return one
