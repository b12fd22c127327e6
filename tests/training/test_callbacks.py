import numpy as np
import pytest
import torch

from advfast.training import rng, train
from advfast.training.loop import NonFiniteLoss

from .conftest import RECIPE


class Log:
    def __init__(self):
        self.calls = []

    def on_train_begin(self, state):
        self.calls.append(("begin", state.epoch, state.step))

    def on_step_end(self, state):
        assert state.batch.images.shape[1:] == (1, 8, 8)
        assert state.batch.indices.max() < 110
        assert 0 <= state.correct <= len(state.batch.labels)
        self.calls.append(("step", state.epoch, state.step, state.global_step))

    def on_epoch_end(self, state):
        assert state.row is state.history[-1]
        self.calls.append(("epoch", state.epoch, len(state.history)))

    def on_train_end(self, state):
        self.calls.append(("end", state.epoch))


def test_order_of_calls(tmp_path, tiny):
    log = Log()
    train("small-cnn", tiny, callbacks=[log], out=tmp_path, **dict(RECIPE, epochs=2, steps=1))
    assert log.calls == [  # 110 images in batches of 64
        ("begin", 1, 0),
        ("step", 1, 1, 1),
        ("step", 1, 2, 2),
        ("epoch", 1, 1),
        ("step", 2, 1, 3),
        ("step", 2, 2, 4),
        ("epoch", 2, 2),
        ("end", 2),
    ]


def test_end_is_told_also_of_a_failure(tmp_path, tiny):
    log = Log()
    with pytest.raises(NonFiniteLoss):
        train("small-cnn", tiny, callbacks=[log], out=tmp_path, **dict(RECIPE, lr=1e20))
    assert log.calls[-1][0] == "end"


@pytest.mark.parametrize(("hook", "rows"), [("on_step_end", 2), ("on_epoch_end", 2)])
def test_stop_ends_the_run_like_a_last_epoch(tmp_path, tiny, hook, rows):
    class Stop:
        pass

    def stop(state):
        state.stop = state.epoch == 2

    callback = Stop()
    setattr(callback, hook, stop)
    settings = dict(RECIPE, epochs=5, steps=1, out=tmp_path)
    result = train("small-cnn", tiny, test=tiny, callbacks=[callback], **settings)
    assert len(result.history) == result.last.epoch == rows
    assert result.best.test["clean"].total == 130
    again = train("small-cnn", tiny, test=tiny, resume=True, **settings)
    assert again.history == result.history  # complete: returned at once


def test_bad_callbacks(tmp_path, tiny):
    for wrong in (object(), Log, lambda state: None):
        with pytest.raises(TypeError, match="on_step_end"):
            train("small-cnn", tiny, callbacks=[wrong], out=tmp_path / "run", **RECIPE)
    assert not (tmp_path / "run").exists()


def test_random_states_round_trip(tmp_path):
    import random

    torch.save(rng.state(), tmp_path / "state.pt")
    drawn = torch.rand(3), np.random.rand(3), random.random(), random.gauss(0, 1)
    rng.set_state(torch.load(tmp_path / "state.pt", weights_only=True))
    again = torch.rand(3), np.random.rand(3), random.random(), random.gauss(0, 1)
    assert torch.equal(drawn[0], again[0])
    assert np.array_equal(drawn[1], again[1])
    assert drawn[2:] == again[2:]
    with rng.seeded(5):
        first = torch.rand(1), np.random.rand(), random.random()
    with rng.seeded(5):
        assert (torch.rand(1), np.random.rand(), random.random()) == first


def test_clipping_bounds_the_step(tmp_path, tiny):
    sizes = []

    class Watch:
        def on_step_end(self, state):
            grads = [p.grad for group in state.optimizer.param_groups for p in group["params"]]
            sizes.append(torch.cat([g.flatten() for g in grads]).norm().item())

    settings = dict(RECIPE, epochs=1, steps=1, lr=1e-3)
    train("small-cnn", tiny, callbacks=[Watch()], out=tmp_path / "a", **settings)
    free, sizes = max(sizes), sizes[:0]
    train("small-cnn", tiny, clip_grad=0.01, callbacks=[Watch()], out=tmp_path / "b", **settings)
    assert free > 0.05
    assert max(sizes) <= 0.01 + 1e-6
