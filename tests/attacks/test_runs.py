"""Several runs of a sample: restarts and targets as one batch give what they give one after another."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import advfast
from advfast import PGDAttack
from advfast.attacks.ranking import FAILED, STOPPED, SUCCEEDED, choose

from .networks import batch, cnn, plain_pgd
from .test_contract import assert_untouched, snapshot

EPS, ALPHA = 0.02, 0.005


def settings(**more):
    return {"eps": EPS, "alpha": ALPHA, "steps": 6, "seed": 5, **more}


def wide(n=24, **make):
    """In float64, where the size of a batch decides no sign."""
    model, (images, _) = cnn(**make).double(), batch(n)
    images = images.double()
    return model, images, model(images).argmax(1)


def worst_by_hand(model, images, labels, loss, starts, eps=EPS):
    """(images, margins) of the run of largest margin among those that succeed, or among all."""
    runs = [
        plain_pgd(model, images, labels, eps, ALPHA, 6, start=s, loss=f)
        for s, f in zip(starts, loss, strict=True)
    ]
    with torch.no_grad():
        logits = torch.stack([model(run) for run in runs])
    own = F.one_hot(labels, logits.shape[2]).bool()
    margins = logits.masked_fill(own, -torch.inf).amax(2) - logits[:, own]
    pick = margins.argmax(0)
    return torch.stack(runs)[pick, torch.arange(len(images))], pick


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize(
    "more", [{"restarts": 4}, {"targets": 3}, {"restarts": 2, "targets": 2, "loss": "dlr"}], ids=str
)
def test_one_batch_gives_what_one_run_after_another_gives(more, early_stop):
    model, images, labels = wide()
    more = settings(**more, early_stop=early_stop)
    folded = PGDAttack(model, **more)(images, labels)
    assert torch.allclose(
        folded, PGDAttack(model, **more, fold=False)(images, labels), atol=1e-12, rtol=0
    )
    for size in (1, 7, 50):
        split = PGDAttack(model, **more, batch_size=size)(images, labels)
        assert torch.allclose(folded, split, atol=1e-12, rtol=0)


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_targets_are_the_most_likely_wrong_classes_and_the_worst_is_kept(loss):
    images = batch(24)[0].double()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 40), nn.ReLU(), nn.Linear(40, 10)).double()
    labels = model(images).argmax(1)
    logits = model(images).detach()
    order = logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)

    def towards(column):
        def value(z, y):
            target = order[:, column]
            if loss == "ce":
                return -F.cross_entropy(z, target, reduction="none")
            gap = z.gather(1, target[:, None])[:, 0] - z.gather(1, y[:, None])[:, 0]
            top = z.sort(1, descending=True).values
            return gap if loss == "margin" else gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2)

        return value

    eps = 0.02
    start = advfast.kernels.random_start(images, eps=eps, seed=5)
    expected, chosen = worst_by_hand(
        model, images, labels, [towards(i) for i in range(3)], [start] * 3, eps
    )
    got = PGDAttack(model, **settings(loss=loss, targets=3, eps=eps))(images, labels)
    assert chosen.unique().numel() > 1
    assert torch.allclose(got, expected, atol=1e-9, rtol=0)


def test_targets_reach_what_the_untargeted_loss_does_not():
    model, images, labels = wide(64)
    wrong = {
        t: (
            model(
                PGDAttack(model, **settings(targets=t, eps=0.01, alpha=0.003))(images, labels)
            ).argmax(1)
            != labels
        ).sum()
        for t in (0, 9)
    }
    assert wrong[9] >= wrong[0] > 0


def test_early_stop_takes_the_first_of_the_runs_that_stop():
    model, images, labels = wide(32)
    more = settings(restarts=5, early_stop=True, steps=5)
    got = PGDAttack(model, **more)(images, labels)
    expected, open_ = torch.full_like(images, torch.nan), torch.ones(32, dtype=torch.bool)
    for restart in range(5):
        x = advfast.kernels.random_start(images, eps=EPS, seed=5, offset=restart)
        found = torch.zeros(32, dtype=torch.bool)
        for _ in range(5):
            wrong = (model(x).argmax(1) != labels) & ~found & open_
            expected[wrong], found = x[wrong], found | wrong
            x = plain_pgd(model, x, labels, 1.0, ALPHA, 1)
            x = (images + (x - images).clamp(-EPS, EPS)).clamp(0, 1)
        open_ &= ~found
    stopped = ~open_
    assert 0 < stopped.sum() < 32
    assert torch.allclose(got[stopped], expected[stopped], atol=1e-12, rtol=0)


@pytest.mark.parametrize("early_stop", [False, True])
def test_runs_that_do_not_fit_in_one_pass(monkeypatch, early_stop):
    """Two runs at a time; of those to come, samples that stopped early need none."""
    from advfast.attacks import split

    model, images, labels = wide(32)
    more = settings(restarts=5, early_stop=early_stop)
    whole = PGDAttack(model, **more)(images, labels)
    monkeypatch.setattr(split, "FOLDED_ELEMENTS", 2 * images.numel())
    sizes = []
    model.register_forward_hook(lambda _, args, out: sizes.append(len(out)))
    parts = PGDAttack(model, **more)(images, labels)
    assert torch.allclose(whole, parts, atol=1e-12, rtol=0)
    assert max(sizes) == 64 and (sum(sizes) < 5 * 7 * 32) == early_stop


def test_restarts_with_batch_statistics_run_one_after_another():
    images, labels = batch(16)
    model = cnn(dropout=0.0).train()
    sizes = []
    handle = model.register_forward_hook(lambda _, args, out: sizes.append(len(out)))
    before = snapshot(model)
    PGDAttack(model, **settings(restarts=3, bn="train"))(images, labels)
    assert_untouched(model, before)
    assert set(sizes) == {16} and len(sizes) == 3 * 7
    handle.remove()


def test_no_more_rows_than_asked_for():
    model, (images, labels) = cnn(), batch(10)
    sizes = []
    model.register_forward_hook(lambda _, args, out: sizes.append(len(out)))
    PGDAttack(model, **settings(restarts=3, targets=2, batch_size=4))(images, labels)
    assert max(sizes) <= 4
    sizes.clear()
    PGDAttack(model, **settings(restarts=3, targets=2, batch_size=13))(images, labels)
    assert max(sizes) == 12


@pytest.mark.parametrize(
    "more", [{"targets": 10}, {"targets": 1, "loss": "dlr", "classes": 3}], ids=str
)
def test_targets_need_classes(more):
    more = dict(more)
    model, (images, labels) = cnn(classes=more.pop("classes", 10)), batch(4)
    with pytest.raises(ValueError, match=r"needs (as many wrong|at least 4) classes"):
        PGDAttack(model, **more)(images, labels % 3)


def test_which_run_is_kept():
    nan, inf = torch.nan, torch.inf
    table = [
        # outcomes of three runs, their values, the one that is kept
        ([FAILED, SUCCEEDED, SUCCEEDED], [9.0, 1.0, 2.0], 2),
        ([FAILED, STOPPED, STOPPED], [9.0, 1.0, 2.0], 1),
        ([SUCCEEDED, FAILED, STOPPED], [9.0, 1.0, nan], 2),
        ([FAILED, FAILED, FAILED], [nan, 1.0, 1.0], 1),
        ([FAILED, FAILED, FAILED], [nan, nan, nan], 0),
        ([SUCCEEDED, FAILED, FAILED], [-inf, 1.0, nan], 0),
    ]
    outcome = torch.tensor([row[0] for row in table]).T
    value = torch.tensor([row[1] for row in table]).T
    assert choose(outcome, value).tolist() == [row[2] for row in table]
