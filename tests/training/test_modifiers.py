import pytest
import torch
from torch import nn

from advfast.evaluation import evaluate
from advfast.training import checkpoint, train
from advfast.training.modifiers import EMA, Modifier, RunInfo, StepInfo

from .conftest import EPS, RECIPE


def network():
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3))


RUN = RunInfo(classes=3, batch_size=64, epochs=6, steps_per_epoch=2, seed=0)


def at(step):
    return StepInfo(step, RUN.steps_per_epoch, RUN.epochs, 0.1, None, RUN.seed)


def test_ema_is_the_recursion():
    model = network()
    ema = EMA(0.5)
    ema.begin(model, RUN)
    expected = {name: value.double() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(12):
        ema.before_step(at(step))
        with torch.no_grad():
            for value in (*model.parameters(), model[1].running_mean):
                value.add_(torch.randn(value.shape, generator=generator))
            model[1].num_batches_tracked += 1
        ema.after_step(model)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    for name, value in ema.average.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-5)
    assert ema.average["1.num_batches_tracked"] == 12
    assert decay == 0.5


def test_ema_lends_its_weights():
    model = network()
    ema = EMA(0.9)
    ema.begin(model, RUN)
    with torch.no_grad():
        model[2].weight.zero_()
    ema.before_step(at(0))
    ema.after_step(model)
    with pytest.raises(RuntimeError, match="inside"), ema.evaluating(model):
        assert torch.equal(model[2].weight, ema.average["2.weight"])
        assert model[2].weight.abs().sum() > 0
        raise RuntimeError("inside")
    assert model[2].weight.abs().sum() == 0


def test_averaged_weights_are_what_is_evaluated_saved_and_returned(tmp_path, tiny):
    settings = dict(RECIPE, epochs=2, steps=1)
    plain = train("small-cnn", tiny, val=tiny, out=tmp_path / "plain", **settings)
    averaged = train("small-cnn", tiny, val=tiny, ema=0.8, out=tmp_path / "ema", **settings)
    last = checkpoint.read(tmp_path / "ema" / "last.pt")
    raw = checkpoint.read(tmp_path / "plain" / "last.pt")["state"]
    # The average has no influence on training itself.
    assert all(torch.equal(last["run"]["weights"][name], raw[name]) for name in raw)
    average = last["run"]["modifiers"][0]["average"]
    assert all(torch.equal(last["state"][name], average[name]) for name in raw)
    assert not torch.equal(last["state"]["linear2.weight"], raw["linear2.weight"])
    best = checkpoint.load(tmp_path / "ema")
    assert all(
        torch.equal(value, best.state_dict()[name])
        for name, value in averaged.model.state_dict().items()
    )
    assert plain.history[-1]["train_loss"] == averaged.history[-1]["train_loss"]


def test_held_out_accuracy_is_that_of_the_average(tmp_path, tiny):
    # With a decay this slow the average is still near the start, far from the weights of the last steps.
    settings = dict(RECIPE, epochs=4, steps=2, lr=0.3, seed=3)
    model = network()
    result = train(model, tiny, val=tiny, ema=0.99, out=tmp_path, **settings)
    last = checkpoint.load(tmp_path / "last.pt", network())
    report = evaluate(last, tiny, attacks=("clean", "pgd-10"), eps=EPS, seed=3)
    row = result.history[-1]
    assert (row["val_clean"], row["val_robust"]) == (
        report["clean"].value,
        report["pgd-10"].value,
    )
    raw = network()
    raw.load_state_dict(checkpoint.read(tmp_path / "last.pt")["run"]["weights"])
    other = evaluate(raw, tiny, attacks=("clean", "pgd-10"), eps=EPS, seed=3)
    assert other["pgd-10"].value != row["val_robust"]


@pytest.mark.parametrize("decay", [1.0, -0.1, True, "0.9"])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match="ema must be a decay"):
        EMA(decay)


class Darker(Modifier):
    """Halves the images, and counts what it was asked."""

    name = "darker"

    def __init__(self):
        self.calls = []

    def begin(self, model, run):
        self.calls.append("begin")

    def batch(self, batch):
        self.calls.append("batch")
        return batch._replace(images=batch.images / 2)

    def after_step(self, model):
        self.calls.append("after_step")


def test_modifiers_compose_in_order(tmp_path, tiny):
    class Watch:
        largest = 0.0

        def on_step_end(self, state):
            self.largest = max(self.largest, state.batch.images.max().item())

    watch, first, second = Watch(), Darker(), Darker()
    settings = dict(RECIPE, epochs=1, batch_size=200, steps=1)
    train("small-cnn", tiny, modifiers=[first, second], callbacks=[watch], out=tmp_path, **settings)
    assert first.calls == second.calls == ["begin", "batch", "after_step"]
    assert 0 < watch.largest <= 0.375  # 1.5 / 4


def test_not_a_modifier(tmp_path, tiny):
    with pytest.raises(TypeError, match="modifiers must be names or instances"):
        train("small-cnn", tiny, modifiers=[EMA], out=tmp_path / "run", **RECIPE)
    assert not (tmp_path / "run").exists()
