import itertools

import pytest

from advfast.training import train
from advfast.training.methods import PGDAT, Settings
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
    assert all(eps == 0.1 for eps, *_ in strengths(StepsRamp(start, epochs)))


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


@pytest.mark.parametrize("words", [["eps-warmup:epochs=2"], ["steps-ramp:start=0,epochs=2"]])
def test_resumed_in_the_middle_of_a_ramp(tmp_path, words):
    assert_resumes(tmp_path, *words, clean_prefix=1)


def test_names_and_defaults():
    assert make("eps-warmup").epochs == 5
    made = make("steps-ramp")
    assert (made.start, made.epochs) == (1, None)


@pytest.mark.parametrize(
    "word",
    ["eps-warmup:epochs=0", "eps-warmup:epochs=x", "steps-ramp:epochs=-1", "steps-ramp:start=1.5"],
)
def test_bad_values(tmp_path, word):
    with pytest.raises(ValueError, match=r"(epochs must be a finite|start must be an integer)"):
        train(network(), images(), modifiers=[word], out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
