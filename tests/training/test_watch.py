import pytest
import torch

from advfast.training.watch import EVERY, NonFiniteLoss, Watch


def watch(late):
    return Watch(torch.device("cpu"), late=late, where=lambda step: f"step {step}")


def test_on_a_cpu_a_bad_loss_is_found_at_once():
    early = watch(None)
    early.begin(7)
    early.start()
    early.see(torch.tensor(1.0))
    early.look(8)
    early.start()
    with pytest.raises(NonFiniteLoss, match="became inf at step 9;"):
        early.see(torch.tensor(torch.inf))


def test_late_the_first_bad_step_is_found_by_one_of_the_next_looks():
    late = watch(True)
    late.begin(40)
    bad = {EVERY - 3: torch.nan, EVERY - 1: torch.inf}
    for step in range(41, 2 * EVERY):
        late.start()
        late.see(torch.tensor(bad.get(step, 0.5)))
        late.see(torch.tensor(0.5))  # another part of the batch
        if step == EVERY + 1:
            with pytest.raises(NonFiniteLoss, match=f"became nan at step {EVERY - 3};"):
                late.look(step)
            break
        late.look(step)
    with pytest.raises(NonFiniteLoss, match=f"became nan at step {EVERY - 3};"):
        late.finish()


def test_a_new_beginning_knows_of_nothing_bad():
    late = watch(True)
    late.begin(0)
    late.start()
    late.see(torch.tensor(torch.nan))
    late.begin(5)
    late.finish()
    late.start()
    late.see(torch.tensor(torch.nan))
    with pytest.raises(NonFiniteLoss, match="step 6;"):
        late.finish()
