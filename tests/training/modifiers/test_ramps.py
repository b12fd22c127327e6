import itertools
import re

import pytest
import torch

from advfast.data import Loader, as_source
from advfast.training import train
from advfast.training.methods import METHODS, PGDAT, Settings
from advfast.training.methods import make as make_method
from advfast.training.modifiers import EpsWarmup, RunInfo, StepsRamp, make

from .runs import assert_resumes, assert_same_runs, at, course, images, network

RUN = RunInfo(classes=3, batch_size=48, epochs=10, steps_per_epoch=4, seed=0)


def strengths(*modifiers, steps=7, run=RUN):
    """(eps, alpha, steps) of the attack in every step of a run."""
    method, found = PGDAT(network(), Settings(0.1, 0.03, steps, "linf")), []
    for modifier in modifiers:
        modifier.begin(network(), run)
    for step in range(run.epochs * run.steps_per_epoch):
        for modifier in modifiers:
            modifier.before_step(at(step, method, run))
        assert (method.pgd.eps, method.pgd.alpha) == (method.eps, method.alpha)
        assert method.pgd.steps == method.steps
        found.append((method.eps, method.alpha, method.steps))
    return found


@pytest.mark.parametrize("epochs", [5, 1, 0.5, 2.5])
def test_eps_grows_to_its_exact_value(epochs):
    last = epochs * 4
    for step, (eps, alpha, steps) in enumerate(strengths(EpsWarmup(epochs))):
        share = min(1, (step + 1) / last)
        assert eps == pytest.approx(0.1 * share, rel=1e-12)
        assert alpha == pytest.approx(0.03 * share, rel=1e-12)
        assert steps == 7
        if step + 1 >= last:
            assert (eps, alpha) == (0.1, 0.03)


@pytest.mark.parametrize(("start", "epochs"), [(1, None), (0, None), (3, 2), (7, None), (9, 5)])
def test_steps_grow_to_those_of_the_run(start, epochs):
    found = [steps for *_, steps in strengths(StepsRamp(start, epochs))]
    assert found[0] == min(start, 7)
    assert found == sorted(found)
    assert found[-1] == 7
    assert {later - earlier for earlier, later in itertools.pairwise(found)} <= {0, 1}
    if epochs is not None:
        assert all(steps == 7 for steps in found[4 * epochs :])
    if start == 1 and epochs is None:
        # Linear: 1 + 6 * step / 39, halves up.
        assert found == [int(1 + 6 * step / 39 + 0.5) for step in range(40)]
    for eps, alpha, steps in strengths(StepsRamp(start, epochs)):
        assert (eps, alpha) == (0.1 if steps else 0, 0.03)


def by_stages(stages, begins, per_epoch=4, epochs=10):
    """Straight from the words: the last stage that has begun."""
    found = []
    for step in range(epochs * per_epoch):
        begun = [number for number, epoch in enumerate(begins) if step >= epoch * per_epoch]
        found.append(stages[begun[-1]])
    return found


@pytest.mark.parametrize(
    ("word", "stages", "begins"),
    [
        ("stages=0-1-3-7", (0, 1, 3, 7), (0, 2.5, 5, 7.5)),
        ("stages=0-1-3-5-7", (0, 1, 3, 5, 7), (0, 2, 4, 6, 8)),
        ("stages=1-4-7,epochs=6", (1, 4, 7), (0, 3, 6)),
        ("stages=0-7,at=3", (0, 7), (0, 3)),
        ("stages=5-0-7,at=0.5-2.25", (5, 0, 7), (0, 0.5, 2.25)),
        ("stages=2", (2,), (0,)),
        # More than the 7 steps of the run there are not.
        ("stages=0-9-7", (0, 7, 7), (0, 10 / 3, 20 / 3)),
    ],
)  # fmt: skip
def test_stages(word, stages, begins):
    found = strengths(make(f"steps-ramp:{word}"))
    assert [steps for *_, steps in found] == by_stages(stages, begins)
    assert all((eps, alpha) == (0.1 if steps else 0, 0.03) for eps, alpha, steps in found)


def test_stages_as_lists_and_of_three_tenths():
    assert strengths(StepsRamp(stages=[0, 3], at=[0.3])) == strengths(
        make("steps-ramp:stages=0-3,at=0.3")
    )
    # 0.1 * 3 is more than 0.3 in floating point; the second stage begins with step 3 of 10 an epoch all the same.
    run = RunInfo(classes=3, batch_size=48, epochs=1, steps_per_epoch=10, seed=0)
    found = strengths(StepsRamp(stages=[1, 2], at=[0.1 * 3]), run=run)
    assert [steps for *_, steps in found] == [1] * 3 + [2] * 7


def test_a_stage_of_no_steps_within_a_warmup():
    found = strengths(EpsWarmup(5), StepsRamp(stages=[0, 7], at=[2]))
    assert [(eps, steps) for eps, _, steps in found[:8]] == [(0, 0)] * 8
    assert [eps for eps, *_ in found[8:20]] == pytest.approx([0.1 * k / 20 for k in range(9, 21)])
    assert {steps for *_, steps in found[8:]} == {7}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_with_no_steps_every_method_takes_the_images_as_they_are(method, norm):
    data = images(12)
    options = {"free": {"m": 2}, "yopo": {"m": 1, "n": 1}, "gradalign": {"lam": 0.2}}
    model = network().train()
    made = make_method(
        method, model, Settings(0.1, None, None, norm, options=options.get(method, {}))
    )  # fmt: skip
    loader = Loader(as_source(data), 12, device=torch.device("cpu"), seed=0)
    made.begin(loader, data[0][:2])
    made.begin_epoch(1, loader)
    ramp = StepsRamp(stages=[0])
    ramp.begin(model, RUN)
    ramp.before_step(at(0, made, RUN))
    batch = next(iter(loader.batches(1)))
    crafted = made.craft(batch)
    seen = []
    handle = model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    made.update(crafted, batch, lambda loss: loss.backward())
    handle.remove()
    # Also what free and yopo make of them within the update.
    assert seen
    for found in (crafted, *seen):
        assert torch.equal(found, batch.images)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_both_at_once():
    both = strengths(EpsWarmup(3), StepsRamp(2))
    eps, steps = strengths(EpsWarmup(3)), strengths(StepsRamp(2))
    assert both == [(*one[:2], other[2]) for one, other in zip(eps, steps, strict=True)]


def test_nothing_is_set_where_nothing_changes():
    method = PGDAT(network(), Settings(0.1, 0.03, 7, "linf"))
    warmup = EpsWarmup(1)
    warmup.begin(network(), RUN)
    for step in range(5):
        warmup.before_step(at(step, method, RUN))
    calls = []
    method.strength = lambda *arguments: calls.append(arguments)
    for step in range(5, 40):
        warmup.before_step(at(step, method, RUN))
    assert not calls


@pytest.mark.parametrize("words", [["eps-warmup:epochs=0.1"], ["steps-ramp:start=2"]])
def test_a_ramp_that_is_over_at_once_is_the_run_without_it(tmp_path, words):
    course(tmp_path / "base")
    course(tmp_path / "ramp", *words)
    assert_same_runs(tmp_path / "ramp", tmp_path / "base")


@pytest.mark.parametrize(
    "word", ["eps-warmup:epochs=2", "steps-ramp:start=0,epochs=2", "steps-ramp:stages=0-1-2"]
)
def test_resumed_in_the_middle_of_a_ramp(tmp_path, word):
    assert_resumes(tmp_path, word, clean_prefix=1)


def test_names_and_defaults():
    assert make("eps-warmup").epochs == 5
    made = make("steps-ramp")
    assert (made.start, made.epochs, made.stages, made.at) == (1, None, None, None)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("eps-warmup:epochs=0", "epochs must be a finite"),
        ("eps-warmup:epochs=x", "epochs must be a finite"),
        ("steps-ramp:epochs=-1", "epochs must be a finite"),
        ("steps-ramp:start=1.5", "start must be an integer"),
        ("steps-ramp:stages=1--3", "stages must be integers >= 0, such as 0-1-3-7-10, got '1--3'"),
        ("steps-ramp:stages=-1", "stages must be integers >= 0"),
        ("steps-ramp:stages=1.5", "stages must be integers >= 0"),
        ("steps-ramp:stages=true", "stages must be integers >= 0"),
        ("steps-ramp:stages=0-7,at=2-3", "one less than there are stages, got '2-3'"),
        ("steps-ramp:stages=0-3-7,at=3-2", "at must be rising epochs"),
        ("steps-ramp:stages=0-3-7,at=2-2", "at must be rising epochs"),
        ("steps-ramp:stages=0-7,at=x", "at must be numbers >= 0"),
        ("steps-ramp:at=2", "at needs stages"),
        ("steps-ramp:stages=0-7,at=2,epochs=3", "at needs stages, and excludes epochs"),
        ("steps-ramp:start=0,stages=0-7", "start is the first of the stages"),
    ],
)
def test_bad_values(tmp_path, word, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        train(network(), images(), modifiers=[word], out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
