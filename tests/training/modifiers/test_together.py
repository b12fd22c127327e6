"""Several modifiers in one run."""

import pytest
import torch

from advfast.training import checkpoint

from ..test_resume import assert_same
from .runs import assert_resumes, assert_same_runs, course, images

ALL = (
    "cutmix:alpha=0.8",
    "eps-warmup:epochs=2",
    "steps-ramp:start=0,epochs=2",
    "awp:gamma=0.02,warmup=0.5",
    "ema:decay=0.8,buffers=copy",
)


@pytest.mark.parametrize("method", ["pgd-at", "trades"])
def test_all_are_resumed_in_the_middle_of_an_epoch(tmp_path, method):
    assert_resumes(
        tmp_path, *ALL, steps=(2, 4, 6), method=method, extra=images(40), extra_share=0.3
    )
    saved = checkpoint.read(tmp_path / "whole" / "last.pt")["run"]
    assert [sorted(state) for state in saved["modifiers"]] == [[], [], [], [], ["average"]]


def test_all_are_resumed_from_what_was_saved_between_steps(tmp_path):
    class Die:
        def on_step_end(self, state):
            if state.global_step == 5:
                raise RuntimeError("died")

    words = ("mixup", "awp", "swa:start=1")
    course(tmp_path / "whole", *words)
    with pytest.raises(RuntimeError, match="died"):
        course(tmp_path / "cut", *words, save_every=2, callbacks=[Die()])
    assert checkpoint.read(tmp_path / "cut" / "last.pt")["run"]["loop"]["step"] == 1
    course(tmp_path / "cut", *words, save_every=2)
    assert_same_runs(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("norm_layers", ["dual-batch", "batch-no-stats"])
def test_with_other_batch_normalisation(tmp_path, norm_layers):
    words = ("cutmix", "awp:gamma=0.02", "swa:start=2")
    assert_resumes(tmp_path, *words, steps=(4,), method="trades", norm_layers=norm_layers)


def test_the_attack_meets_the_mixed_images_and_the_weights_before_they_are_moved(tmp_path):
    # The batch that is told to callbacks is the mixed one; cutmix leaves pixels as they are.
    class Seen:
        def __init__(self):
            self.labels = []

        def on_step_end(self, state):
            self.labels.append(state.batch.labels)

    seen = Seen()
    course(tmp_path, "cutmix", callbacks=[seen], epochs=1)
    assert all(labels.shape[1] == 3 for labels in seen.labels)
    for labels in seen.labels:
        torch.testing.assert_close(labels.sum(1), torch.ones(len(labels)))


def test_what_averages_does_not_change_training(tmp_path):
    course(tmp_path / "base", "cutmix", "awp")
    course(tmp_path / "ema", "cutmix", "awp", "ema:decay=0.9")
    base, ema = (checkpoint.read(tmp_path / name / "last.pt")["run"] for name in ("base", "ema"))
    assert_same(ema["weights"], base["weights"])


def test_swa_and_ema_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="ema and swa each say which weights are evaluated"):
        course(tmp_path / "run", "ema", "swa")
    assert not (tmp_path / "run").exists()


def test_mixed_labels_and_a_method_that_needs_classes(tmp_path):
    with pytest.raises(ValueError, match="modifier 'cutmix' mixes labels, and method 'mart' needs"):
        course(tmp_path, "cutmix", method="mart")
