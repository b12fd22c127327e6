"""How many clean epochs: the rule, its bounds, the spelling, and what they save."""

import math
import re

import pytest
import torch

from advfast.training import CleanPrefix, methods, schedules
from advfast.training.clean_prefix import latest, parsed, saved_share
from advfast.training.prefix import Prefix

NAN = math.nan


@pytest.mark.parametrize(
    ("distances", "velocities", "bound", "expected"),
    [
        # The measured trace of a network on digits: 0.02, 0.14 at the first two epochs.
        ([0.02], [NAN], 9, None),
        ([0.02, 0.14], [NAN, 0.05], 9, (2, "kernel distance 0.14 >= 0.05")),
        # The first epoch that fails counts, whatever comes later.
        ([0.02, 0.14, 0.01], [NAN, 0.05, 0.001], 9, (2, "kernel distance 0.14 >= 0.05")),
        ([0.05], [NAN], 9, (1, "kernel distance 0.05 >= 0.05")),
        ([0.02, 0.03, 0.04], [NAN, 0.03, 0.01], 9, None),
        ([0.02, 0.03, 0.04], [NAN, 0.03, 0.009], 9, (3, "kernel velocity 0.009 < 0.01 an epoch")),
        ([0.02, 0.03], [NAN, 0.03], 3, (3, "why")),
        ([0.02, 0.06], [NAN, 0.03], 3, (2, "kernel distance 0.06 >= 0.05")),
        ([], [], 2, None),
        ([], [], 1, (1, "why")),
        ([], [], 0, (0, "why")),
    ],
)
def test_the_rule_on_traces(distances, velocities, bound, expected):
    assert CleanPrefix().choose(distances, velocities, bound, "why") == expected


def test_the_rule_with_other_thresholds():
    traces = [0.02, 0.04, 0.08, 0.16], [NAN, 0.2, 0.02, 0.002]
    for distance, velocity, epochs in (
        (0.03, 0.01, 2), (0.08, 0, 3), (0.1, 0.01, 4), (1, 0.05, 3), (1, 0.3, 2),
    ):  # fmt: skip
        chosen = CleanPrefix(distance=distance, velocity=velocity).choose(*traces, 9)
        assert chosen is not None
        assert chosen[0] == epochs
    assert CleanPrefix(distance=1, velocity=0).choose(*traces, 9) is None


@pytest.mark.parametrize(
    ("schedule", "options", "epochs", "expected"),
    [
        ("piecewise", {"milestones": [100, 150]}, 200, 50),
        ("piecewise", {"milestones": [3]}, 12, 1),
        ("piecewise", {"milestones": [0.3]}, 20, 3),
        ("piecewise", {"gamma": 0.2}, 12, 3),
        ("piecewise", None, 12, 3),
        ("one-cycle", None, 12, 3),
        ("triangular", {"peak_at": 0.4}, 60, 15),
        ("cosine", {}, 3, 0),
        (lambda step: 0.1, None, 9, 2),
    ],
)
def test_the_latest_end(schedule, options, epochs, expected):
    found, why = latest(CleanPrefix(), epochs, schedule, options)
    assert found == expected
    milestones = schedule == "piecewise"
    assert why.startswith("half of the" if milestones else f"a quarter of the {epochs} epochs")
    for most in (0, expected, expected + 1):
        bound, why = latest(CleanPrefix(most=most), epochs, schedule, options)
        assert bound == min(most, expected)
        assert (why == f"most={most}") == (most < expected)


def test_the_latest_end_is_before_the_first_decay():
    options = {"milestones": [7, 9]}
    rate = schedules.make("piecewise", 1.0, epochs=10, steps=5, options=options)
    first = next(step for step in range(50) if rate(step) < 1)
    assert latest(CleanPrefix(), 10, "piecewise", options)[0] == first // 5 // 2 == 3


@pytest.mark.parametrize(
    "text",
    ["auto", "auto:distance=0.03", "auto:velocity=0.0,samples=64,readout=full", "auto:attack=pgd-3,most=2"],
)  # fmt: skip
def test_spelling(text):
    rule = parsed(text)
    assert str(rule) == text
    assert parsed(rule) is rule
    assert parsed(str(rule)) == rule


def test_spelling_of_small_numbers():
    # A float that YAML takes for a text.
    assert (
        parsed(str(CleanPrefix(distance=1e-5))) == parsed("auto:distance=1e-5") == CleanPrefix(1e-5)
    )


def test_numbers():
    assert [parsed(given) for given in (0, 3, "3")] == [0, 3, 3]
    assert str(CleanPrefix(most=0)) == "auto:most=0"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (-1, "clean_prefix must be an integer >= 0, 'auto' or a CleanPrefix, got -1"),
        (True, "got True"),
        (1.5, "got 1.5"),
        (None, "got None"),
        ("atuo", "did you mean 'auto'"),
        ("-1", "got '-1'"),
        ("3:most=2", "got '3:most=2'"),
        ("auto:tau=0.1", "with a KEY of distance, velocity, samples, readout, attack, most, got 'tau=0.1'"),
        ("auto:distance", "got 'distance'"),
        ("auto:distance=0", "distance must be above 0"),
        ("auto:distance=x", "distance must be a number from 0 to 1, got 'x'"),
        ("auto:distance=1.1", "distance must be a number from 0 to 1, got 1.1"),
        ("auto:velocity=-0.1", "velocity must be a number from 0 to 1"),
        ("auto:velocity=.nan", "velocity must be a number from 0 to 1"),
        ("auto:samples=1", "samples must be an integer >= 2, got 1"),
        ("auto:most=-1", "most must be an integer >= 0, got -1"),
        ("auto:most=true", "most must be an integer >= 0, got True"),
        ("auto:readout=loss", "readout must be one of sum, full, got 'loss'"),
        ("auto:attack=clean", "attack must be one that changes the images"),
        ("auto:attack=5", "attack must be a name, got 5"),
    ],
)  # fmt: skip
def test_bad_values(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parsed(given)


@pytest.mark.parametrize(("clean", "saved"), [(0, 0), (40, 0.182), (60, 0.273), (200, 10 / 11)])
def test_the_formula_of_the_cost(clean, saved):
    epochs, steps = 200, 10
    found = saved_share([1] * clean + [steps + 1] * (epochs - clean), steps + 1)
    assert found == pytest.approx(saved, abs=5e-4)
    assert found == pytest.approx(clean / epochs * steps / (steps + 1), abs=1e-12)


def test_the_formula_in_pass_units():
    settings = methods.Settings(0.1, None, 10, "linf")
    clean, full = (
        methods.make(name, torch.nn.Identity(), settings).passes()
        for name in ("standard", "pgd-at")
    )
    assert (clean, full) == (3, 23)
    # Three units of each step of training, of which a forward and backward pass of the attack has two.
    assert saved_share([clean] * 40 + [full] * 160, full) == pytest.approx(0.2 * 20 / 23)


def history(*seconds):
    return [{"seconds": float(value)} for value in seconds]


def test_what_a_run_tells_of_its_prefix():
    assert Prefix(0).summary(history(4, 4), 9) == {}
    prefix = Prefix(2, units=(3, 23))
    assert prefix.summary(history(1, 1, 4, 4), 12.0) == {
        "epochs": 2,
        "reason": "given",
        "saved": pytest.approx(0.5 * 20 / 23),
        "saved_seconds": pytest.approx(1 - 10 / 16),
    }
    # A run that ended within it has no adversarial epoch to compare with.
    short = prefix.summary(history(1), 2.0)
    assert (short["epochs"], short["saved_seconds"]) == (1, None)


def test_what_a_run_tells_of_the_rule():
    run = {
        "epochs": 4,
        "schedule": "constant",
        "schedule_options": None,
        "eps": 0.1,
        "norm": "linf",
    }
    prefix = Prefix(CleanPrefix(), run, torch.nn.Identity(), units=(3, 23))
    assert (prefix.epochs, prefix.reason) == (1, "a quarter of the 4 epochs")
    checks = [
        {"epoch": 1, "distance": 0.01, "velocity": NAN, "seconds": 0.25},
        {"epoch": 2, "distance": 0.07, "velocity": 0.1, "seconds": 0.75},
    ]
    saved = {"epochs": 2, "reason": "r", "checks": checks, "kernel": torch.ones(2, 2)}
    prefix.load_state_dict(saved)
    assert prefix.state_dict() == saved
    found = prefix.summary(history(1, 1, 4, 4), 20.0)
    assert found["saved_seconds"] == pytest.approx(1 - 11 / 16)
    assert (found["seconds"], found["share"]) == (1.0, 0.05)
    assert [check["velocity"] for check in found["checks"]] == [None, 0.1]
