import pytest
import torch

from advfast.training import checkpoint, train
from advfast.training.modifiers import EMA, RunInfo, make

from .runs import assert_resumes, assert_same_runs, at, course, images, network

RUN = RunInfo(classes=3, batch_size=48, epochs=8, steps_per_epoch=5, seed=0)


def walk(ema, steps):
    """(weights, running means) of a random walk, and the two averages after each step."""
    model, rows = network().train(), []
    ema.begin(model, RUN)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        with torch.no_grad():
            for value in (model[0].weight, model[1].running_mean):
                value.add_(torch.randn(value.shape, generator=generator))
        ema.before_step(at(step, run=RUN))
        ema.after_step(model)
        names = ("0.weight", "1.running_mean")
        rows.append(
            [
                *(model.state_dict()[n].clone() for n in names),
                *(ema.average[n].clone() for n in names),
            ]
        )
    return rows


@pytest.mark.parametrize(("warmup", "first"), [(0, 0), (0.25, 10), (2, 10), (0.24, 10)])
@pytest.mark.parametrize("buffers", ["average", "copy"])
def test_the_recursion_with_warmup(warmup, first, buffers):
    average = mean = None
    for step, (weight, running, got, got_mean) in enumerate(walk(EMA(0.7, warmup, buffers), 40)):
        s = step - first
        decay = 0.0 if s < 0 else min(0.7, (1 + s) / (10 + s))
        if average is None:
            initial = network().state_dict()
            average, mean = initial["0.weight"].double(), initial["1.running_mean"].double()
        average = decay * average + (1 - decay) * weight.double()
        mean = decay * mean + (1 - decay) * running.double()
        torch.testing.assert_close(got.double(), average, rtol=1e-5, atol=1e-5)
        if buffers == "copy":
            assert torch.equal(got_mean, running)
        else:
            torch.testing.assert_close(got_mean.double(), mean, rtol=1e-5, atol=1e-5)
        if s < 0:
            assert torch.equal(got, weight)


def test_the_weight_is_a_tensor_that_stays_and_has_the_bits_of_a_number():
    model, ema = network(), EMA(0.9)
    ema.begin(model, RUN)
    place = ema._weight
    generator = torch.Generator().manual_seed(0)
    expected = ema.average["5.weight"].clone()
    for step in range(120):
        with torch.no_grad():
            model[5].weight.copy_(torch.randn(3, 256, generator=generator))
        ema.before_step(at(step))
        ema.after_step(model)
        expected.lerp_(model[5].weight.detach(), 1 - min(0.9, (1 + step) / (10 + step)))
        assert ema._weight is place
        assert torch.equal(ema.average["5.weight"], expected)


def test_decay_0_is_the_run_without_it(tmp_path):
    course(tmp_path / "base")
    course(tmp_path / "ema", "ema:decay=0")
    assert_same_runs(tmp_path / "ema", tmp_path / "base")


def test_weights_in_float64_are_averaged_in_it():
    model, ema = network().double(), EMA(0.9)
    ema.begin(model, RUN)
    start = model[5].weight.detach().clone()
    with torch.no_grad():
        model[5].weight.add_(1)
    ema.before_step(at(0))
    ema.after_step(model)
    torch.testing.assert_close(ema.average["5.weight"], start + 0.9, rtol=0, atol=1e-14)


@pytest.mark.parametrize("buffers", ["average", "copy"])
def test_resumed_in_the_middle_of_an_epoch(tmp_path, buffers):
    word = f"ema:decay=0.8,warmup=0.3,buffers={buffers}"
    assert_resumes(tmp_path, word, steps=(2, 5))
    saved = checkpoint.read(tmp_path / "whole" / "last.pt")
    weights, state = saved["run"]["weights"], saved["state"]
    assert torch.equal(weights["1.running_var"], state["1.running_var"]) == (buffers == "copy")
    assert not torch.equal(weights["5.weight"], state["5.weight"])


def test_names_and_defaults():
    made = make("ema")
    assert (made.decay, made.warmup, made.buffers) == (0.995, 0, "average")
    assert make("ema:decay=0.999,warmup=0.025,buffers=copy").buffers == "copy"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("ema:decay=1", "ema must be a decay"),
        ("ema:warmup=-1", "ema: warmup must be a finite number >= 0"),
        ("ema:buffers=both", "ema: buffers must be one of average, copy, got 'both'"),
    ],
)
def test_bad_values(tmp_path, word, message):
    with pytest.raises(ValueError, match=message):
        train(network(), images(), modifiers=[word], out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_two_averages_are_refused(tmp_path):
    with pytest.raises(ValueError, match="ema and ema each say which weights are evaluated"):
        course(tmp_path / "run", "ema", ema=0.9)
    assert not (tmp_path / "run").exists()
