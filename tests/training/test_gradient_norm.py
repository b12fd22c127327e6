"""The column of squared gradient norms: what it holds, and that it changes nothing."""

import pytest
import torch
from torch import nn

from advfast.training import checkpoint, train
from advfast.training.modifiers import GradientNorm

RUN = {
    "method": "fgsm", "eps": 0.1, "epochs": 2, "batch_size": 48, "lr": 0.1, "progress": False,
    "model": "small-cnn",
}  # fmt: skip


class Seen:
    """|grad|^2 of every step, from what a step leaves."""

    def __init__(self):
        self.squares = []

    def on_step_end(self, state):
        grads = [p.grad.double() for p in state.model.parameters()]
        self.squares.append(sum(float(grad.square().sum()) for grad in grads))


def test_it_is_the_mean_over_the_steps_of_an_epoch_and_changes_no_bit(tmp_path, tiny):
    seen = Seen()
    with_norm = train(
        data=tiny, out=tmp_path / "a", modifiers=["gradient-norm"], callbacks=[seen], **RUN
    )
    train(data=tiny, out=tmp_path / "b", **RUN)
    steps = len(seen.squares) // 2
    assert steps >= 2
    for epoch, row in enumerate(with_norm.history):
        mean = sum(seen.squares[epoch * steps : (epoch + 1) * steps]) / steps
        assert row["gradient_norm2"] == pytest.approx(mean, rel=1e-5)
    a, b = (checkpoint.read(tmp_path / name / "last.pt")["state"] for name in ("a", "b"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert "gradient_norm2" in (tmp_path / "a" / "history.csv").read_text().splitlines()[0]


def test_it_is_that_of_the_whole_batch_before_clipping(tmp_path, tiny):
    run = RUN | {"modifiers": ["gradient-norm"], "epochs": 1, "batch_size": 200}
    (whole,) = train(data=tiny, out=tmp_path / "whole", **run).history
    (parts,) = train(data=tiny, out=tmp_path / "parts", micro_batch=31, **run).history
    seen = Seen()
    (clipped,) = train(
        data=tiny, out=tmp_path / "clipped", clip_grad=1e-3, callbacks=[seen], **run
    ).history
    assert parts["gradient_norm2"] == pytest.approx(whole["gradient_norm2"], rel=1e-4)
    assert clipped["gradient_norm2"] == pytest.approx(whole["gradient_norm2"], rel=1e-5)
    assert seen.squares[0] == pytest.approx(1e-6, rel=1e-2)
    assert whole["gradient_norm2"] > 1e-5


def test_the_scale_of_fp16_is_taken_out_and_gradients_that_overflow_do_not_count():
    layer = nn.Linear(2, 1, bias=False)
    norm, scaler = GradientNorm(), torch.amp.GradScaler("cpu", init_scale=8.0)
    for gradient in ([3.0, 4.0], [float("inf"), 0.0], [6.0, 8.0]):
        layer.weight.grad = 8 * torch.tensor([gradient])
        norm.gradient([layer.weight, nn.Parameter(torch.ones(3))], scaler)
    assert norm.columns()["gradient_norm2"] == (25 + 100) / 2
