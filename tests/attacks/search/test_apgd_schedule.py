"""APGD's checks of its progress on scripted losses, against a slow transcription; its losses, against the paper."""

import math

import pytest
import torch

from advfast.attacks.search.apgd_l1 import Sparsity
from advfast.attacks.search.apgd_losses import dlr, dlr_towards, loss_of
from advfast.attacks.search.apgd_schedule import Progress, checkpoints, even_checkpoints


def test_the_list_of_the_paper():
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoints(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert list(checkpoints(3)) == [1, 2, 3]
    assert list(even_checkpoints(100)) == list(range(4, 101, 4))
    assert list(even_checkpoints(10)) == list(range(1, 11))


def halvings(losses, start, rho):
    """(steps after which the step size is halved, the best loss): one sample, in plain Python, from section 3.

    Written after the paper; where the first comparison is with zero, after the published program.
    """
    steps = len(losses)
    window = max(int(0.22 * steps), 1)
    shortest, decrement = max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    found, best, best_then, halved_then = [], start, start, True
    checked = 0
    for done in range(1, steps + 1):
        best = max(best, losses[done - 1])
        if done - checked < window:
            continue
        rises = 0
        for j in range(checked, done):
            before = losses[j - 1] if j else 0.0
            rises += losses[j] > before
        halves = rises <= rho * window or (not halved_then and best_then == best)
        if halves:
            found.append(done)
        halved_then, best_then, checked = halves, best, done
        window = max(window - decrement, shortest)
    return found, best


@pytest.mark.parametrize("rho", [0.75, 0.3, 0.9])
@pytest.mark.parametrize("steps", [5, 33, 100])
def test_halvings_of_scripted_losses(steps, rho):
    """Rising, falling, constant, oscillating, stuck after a while, negative, and many random ones."""
    t = torch.arange(steps, dtype=torch.float32)
    scripts = [
        t + 1, -t - 1, torch.ones(steps), (-1.0) ** t, t.clamp(max=steps // 3), -1 / (t + 1),
        torch.where(t % 5 == 0, -t, t), torch.sin(t / 3),
    ]  # fmt: skip
    walks = (torch.randint(-2, 4, (steps, 60)).float().cumsum(0) - 3).t()
    noise = torch.randn(40, steps)
    table = torch.cat([torch.stack(scripts), walks, noise]).contiguous()
    start = table[:, 0] - 0.5
    start[::3] = table[::3].amax(1) + 1  # never better than the start
    progress = Progress.start(start)
    rows, checks = len(table), checkpoints(steps)
    got = [[] for _ in range(rows)]
    best = start.clone()
    for done in range(1, steps + 1):
        loss = table[:, done - 1].clone()
        improved = progress.note(loss)
        assert torch.equal(improved, loss > best)
        best = torch.maximum(best, loss)
        if done in checks:
            for row in progress.check(checks[done], rho).nonzero()[:, 0].tolist():
                got[row].append(done)
    for row in range(rows):
        expected = halvings(table[row].tolist(), start[row].item(), rho)
        assert (got[row], progress.best[row].item()) == expected
    assert len({tuple(g) for g in got}) > 3


def test_the_first_comparison_is_with_zero():
    """A loss that always falls but is above zero rises once in the first window; one below it never does."""
    for sign, rises in ((1.0, 1.0), (-1.0, 0.0)):
        progress = Progress.start(torch.tensor([sign * 9.0]))
        progress.note(torch.tensor([sign * 9.0 - 0.5]))
        assert progress.rises.item() == rises


def test_pixels_of_the_l1_step():
    x0 = torch.zeros(3, 100)
    sparsity = Sparsity.start(x0 + 0.1, x0, given=False)
    assert sparsity.share.tolist() == pytest.approx([0.2] * 3) and sparsity.support[0] == 100
    best = torch.zeros(3, 100)
    best[0, :94], best[1, :95], best[2, :30] = 0.1, 0.1, 0.1
    back, step = sparsity.check(best, x0, torch.tensor([1.5, 1.5, 0.25]), 2.0)
    assert back.tolist() == [True, False, True]  # 94 of 100 are still fewer, 95 are not
    assert step.tolist() == [2.0, 1.0, 2.0]
    assert sparsity.share.tolist() == pytest.approx([94 / 150, 95 / 150, 30 / 150])
    back, step = sparsity.check(best, x0, torch.tensor([1.5, 1.5, 0.25]), 2.0)
    assert not back.any() and step.tolist() == pytest.approx([1.0, 1.0, 0.2])  # at least eps / 10
    given = Sparsity.start(best, x0, given=True)
    assert given.share.tolist() == pytest.approx([94 / 150, 95 / 150, 30 / 150])
    assert given.support.tolist() == [94, 95, 30]


# --- losses ----------------------------------------------------------------------------------------------------------

Z = torch.tensor([[3.0, 1.0, 0.0, -1.0]])


def test_golden_values():
    assert dlr(Z, torch.tensor([0])).item() == pytest.approx(-2 / 3)
    assert dlr(Z, torch.tensor([1])).item() == pytest.approx(2 / 3)
    towards = dlr_towards(Z, torch.tensor([0]), torch.tensor([1]))
    assert towards.item() == pytest.approx(-2 / 3.5)
    # Three classes: over z_(1) - z_(3); two: the margin.
    assert dlr(Z[:, :3], torch.tensor([0])).item() == pytest.approx(-2 / 3)
    assert dlr_towards(Z[:, :3], torch.tensor([0]), torch.tensor([2])).item() == pytest.approx(-1)
    assert dlr(Z[:, :2], torch.tensor([0])).item() == pytest.approx(-2)
    assert dlr(Z[:, :2], torch.tensor([1])).item() == pytest.approx(2)
    assert dlr_towards(Z[:, :2], torch.tensor([0]), torch.tensor([1])).item() == pytest.approx(-2)


@pytest.mark.parametrize("classes", [3, 4, 10])
def test_the_ratios_do_not_depend_on_shift_and_scale(classes):
    logits = torch.randn(50, classes, dtype=torch.float64)
    labels, targets = torch.randint(0, classes, (2, 50))
    for loss in (loss_of("dlr", False), loss_of("dlr", True)):
        expected = loss(logits, labels, targets)
        assert torch.allclose(loss(7.5 * logits - 3, labels, targets), expected, atol=1e-9)


def test_cross_entropy():
    labels, targets = torch.tensor([0]), torch.tensor([2])
    total = sum(math.exp(v) for v in Z[0].tolist())
    assert loss_of("ce", False)(Z, labels, targets).item() == pytest.approx(math.log(total) - 3)
    assert loss_of("ce", True)(Z, labels, targets).item() == pytest.approx(-math.log(total))
