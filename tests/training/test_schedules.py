import pytest
import torch

from advfast.training.schedules import one_cycle


@pytest.mark.parametrize("total", [10, 37, 1000])
def test_one_cycle_is_that_of_torch(total):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.3, total_steps=total, cycle_momentum=False
    )
    for step in range(total):
        assert one_cycle(step, total, 0.3) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if step < total - 1:
            schedule.step()


@pytest.mark.parametrize("total", range(1, 12))
def test_one_cycle_of_short_runs(total):
    rates = [one_cycle(step, total, 1.0) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) > 0.5
