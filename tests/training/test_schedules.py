from itertools import pairwise

import pytest
import torch

from advfast.training import schedules


def rates(name, total, peak=1.0, **options):
    schedule = schedules.make(name, peak, epochs=total, steps=1, options=options)
    return [schedule(step) for step in range(total)]


@pytest.mark.parametrize("total", [10, 37, 1000])
def test_one_cycle_is_that_of_torch(total):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.3, total_steps=total, cycle_momentum=False
    )
    for rate in rates("one-cycle", total, 0.3):
        assert rate == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if schedule.last_epoch < total - 1:
            schedule.step()


@pytest.mark.parametrize("total", [10, 37, 1000])
def test_cosine_is_that_of_torch(total):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total)
    for rate in rates("cosine", total, 0.3):
        assert rate == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        schedule.step()


def test_cosine_with_warmup_and_a_final_rate():
    found = rates("cosine", 100, warmup=10, final=0.1)
    assert found[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert found[10] == pytest.approx(1)
    assert all(a > b for a, b in pairwise(found[10:]))
    assert 0.1 < found[-1] < 0.101


def test_triangular_is_a_triangle():
    found = rates("triangular", 9)
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 0.8, 0.6, 0.4, 0.2])
    found = rates("triangular", 99, peak_at=0.4)
    assert found.index(max(found)) == 39
    assert max(found) == pytest.approx(1)
    assert min(found) > 0


@pytest.mark.parametrize(
    ("options", "decays"),
    [
        ({}, [100, 150]),
        ({"milestones": [100, 150]}, [100, 150]),
        ({"milestones": [0.3, 0.9]}, [60, 180]),
        ({"milestones": [75, 90, 100]}, [75, 90, 100]),
    ],
)
def test_piecewise_decays_at_shares_or_epochs(options, decays):
    # 3 steps an epoch: a decay comes with the first step after so many epochs.
    schedule = schedules.make("piecewise", 0.1, epochs=200, steps=3, options=options)
    found = [schedule(step) for step in range(600)]
    changes = [step for step in range(1, 600) if found[step] != found[step - 1]]
    assert changes == [3 * epoch for epoch in decays]
    assert found[0] == 0.1
    assert found[-1] == pytest.approx(0.1 * 0.1 ** len(decays))


def test_piecewise_factor_and_constant():
    assert rates("piecewise", 4, milestones=[0.5], gamma=0.5) == [1, 1, 0.5, 0.5]
    assert rates("constant", 3, 0.2) == [0.2] * 3


@pytest.mark.parametrize("name", list(schedules.SCHEDULES))
@pytest.mark.parametrize("total", [1, 2, 3, 5, 11])
def test_short_runs(name, total):
    found = rates(name, total)
    assert all(0 < rate <= 1 for rate in found)
    assert max(found) >= 0.5


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("onecycle", {}, "did you mean 'one-cycle'"),
        ("piecewise", {"milestone": [1]}, "has no option 'milestone'.*did you mean 'milestones'"),
        ("constant", {"gamma": 0.1}, "it has none"),
        ("piecewise", {"milestones": [150, 100]}, "must rise"),
        ("piecewise", {"milestones": "100"}, "numbers >= 0"),
        ("piecewise", {"gamma": -1}, "between 0 and inf"),
        ("triangular", {"peak_at": 1.0}, "between 0 and 1"),
        ("cosine", {"final": "a"}, "must be a number"),
        ("one-cycle", {"start_factor": float("nan")}, "must be a number"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        schedules.make(name, 0.1, epochs=10, steps=3, options=options)
