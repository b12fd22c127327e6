"""Runs of the fast methods that are stopped in the middle of an epoch and resumed: the same bits."""

import pytest
import torch

from advfast.training import checkpoint, names

from .test_resume import assert_same, course, outcome


class Stop(Exception):
    pass


class StopAt:
    def __init__(self, step):
        self.step = step

    def on_step_end(self, state):
        if state.global_step == self.step:
            raise Stop


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(130, 1, 8, 8, generator=generator), torch.arange(130) % 3


CASES = {
    "fgsm": {},
    "fgsm-rs": {},
    "fgsm gradient-norm": {"modifiers": ["gradient-norm"]},
    "n-fgsm": {},
    "n-fgsm lognormal": {"method_options": {"noise": "lognormal"}},
    "n-fgsm saliency": {"method_options": {"noise": "saliency"}},
    "free": {"method_options": {"m": 4}},
    "free reset": {"method_options": {"m": 4, "reset": True}},
    "yopo": {"method_options": {"m": 2, "n": 2}},
    "atta": {"method_options": {"reset_every": 2}},
    "at-bsl": {},
    "robal": {},
    "reat": {"method_options": {"tail": "pairwise", "rbl": "logit-adjust"}},
}


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_resumed_is_undisturbed(tmp_path, data, case):
    method = case.split()[0]
    # Three batches an epoch. "free" is saved after the third of four repeats of the first batch of epoch 2.
    saved, at = (15, 17) if method == "free" else (4, 6)
    changes = {"method": method, "epochs": 2, "save_every": saved, "steps": None} | CASES[case]
    course(tmp_path / "whole", data, **changes)
    with pytest.raises(Stop):
        course(tmp_path / "cut", data, callbacks=[StopAt(at)], **changes)
    run = checkpoint.read(tmp_path / "cut" / names.LAST)["run"]
    assert (run["loop"]["epoch"], run["loop"]["step"]) == (
        2,
        saved % (12 if method == "free" else 3),
    )
    course(tmp_path / "cut", data, **changes)
    assert_same(outcome(tmp_path / "cut"), outcome(tmp_path / "whole"))
    states = [
        checkpoint.read(tmp_path / name / names.LAST)["run"]["method"] for name in ("cut", "whole")
    ]
    assert_same(*states)
    assert bool(states[0]) == (method in ("free", "atta", "reat") or "saliency" in case)
