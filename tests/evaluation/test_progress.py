"""What an evaluation shows while it runs."""

import re
import sys
from functools import partial

import pytest
import torch

from advfast.evaluation import evaluate, progress
from advfast.evaluation.attacks import Entry
from advfast.evaluation.progress import Progress
from advfast.evaluation.tally import Outcome, Tally

EPS = 0.1


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves by hand."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def attack(name):
    return Entry(name, "", lambda images, labels, numbers: images)


def test_bar_shows_the_attack_the_accuracy_and_the_time_left(cnn, monkeypatch, capsys):
    monkeypatch.setattr(progress, "tqdm", partial(progress.tqdm, mininterval=0))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    model, images, labels = cnn
    report = evaluate(model, (images, labels), eps=EPS, batch_size=45, progress=True)
    shown = capsys.readouterr().err
    assert "pgd-20" in shown
    assert f"{100 * report['pgd-20'].value:.1f} % right" in shown
    assert re.search(r"right, [\d.]+ s left", shown)
    assert "images/s" in shown
    evaluate(model, (images, labels), eps=EPS)
    assert capsys.readouterr().err == ""


def test_without_a_terminal_there_is_a_line_a_minute(clock, capsys):
    (entry,) = made = [attack("slow")]
    tally = Tally(made)
    with Progress(100, made, tally, True) as shown:
        shown.begin(50)
        clock.now += 59
        shown.within(entry, 0.4, 40)
        assert capsys.readouterr().err == ""
        clock.now += 1
        shown.within(entry, 0.5, 30)
        # Half of 50 images took 60 s; 75 are left.
        line = "slow: 25 % done, 60.0 % right, 3:00 min left\n"
        assert capsys.readouterr().err == line
        clock.now += 30
        shown.within(entry, 0.75, 20)
        assert capsys.readouterr().err == ""
    with Progress(100, made, tally, False) as hidden:
        hidden.begin(50)
        clock.now += 100
        hidden.done(entry, 30)
    assert capsys.readouterr().err == ""


def test_time_left_counts_every_attack(clock):
    fast, slow = made = [attack("fast"), attack("slow")]
    tally = Tally(made)
    with Progress(40, made, tally, False) as shown:
        shown.begin(10)
        assert shown.left() == ""
        clock.now += 1
        shown.done(fast, 5)
        assert shown.left() == "at least 3.0 s"  # nothing is known of the other one
        shown.begin(10)
        clock.now += 5
        shown.within(slow, 0.5, 5)
        # 0.1 s an image for 30, and 1 s an image for 35.
        assert shown.left() == "38.0 s"
        shown.within(slow, 0.3, 5)  # it does not go back
        assert shown.left() == "38.0 s"
    with Progress(None, made, tally, False) as unknown:
        unknown.begin(10)
        clock.now += 1
        unknown.done(fast, 5)
        assert unknown.left() == ""


def test_a_resumed_evaluation_knows_its_pace(clock):
    made = [attack("fast"), attack("slow")]
    tally = Tally(made)
    right = torch.zeros(10, dtype=torch.int32)
    predicted = {"fast": right, "slow": right}
    nans = {"fast": 0, "slow": 0}
    tally.add(Outcome(right.long(), 2, right, predicted, nans, {"fast": 1.0, "slow": 10.0}))
    with Progress(30, made, tally, False) as shown:
        assert shown.left() == "22.0 s"
