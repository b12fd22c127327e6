"""Samples that need no further step: early stop, cycles, and how they leave the batch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advfast import PGDAttack

from .networks import batch, cnn, plain_pgd
from .test_contract import assert_untouched, snapshot

EPS, ALPHA = 0.02, 0.005


def wide(n=32):
    model, (images, _) = cnn().double(), batch(n)
    images = images.double()
    return model, images, model(images).argmax(1)


def stopped_by_hand(model, images, labels, steps, targeted=False):
    """(images, how many stopped): the first iterate of 0 .. steps - 1 that succeeds, else iterate `steps`."""
    result = plain_pgd(model, images, labels, EPS, ALPHA, steps, targeted=targeted)
    found = torch.zeros(len(images), dtype=torch.bool)
    for k in range(steps):
        x = plain_pgd(model, images, labels, EPS, ALPHA, k, targeted=targeted)
        success = ((model(x).argmax(1) == labels) == targeted) & ~found
        result[success], found = x[success], found | success
    return result, int(found.sum())


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("compact_every", [1, 2, 5, 100])
@pytest.mark.parametrize("fold", [True, False])
def test_early_stop_keeps_the_first_iterate_that_succeeds(compact_every, targeted, fold):
    model, images, labels = wide()
    if targeted:
        labels = model(images).argsort(1)[:, -2]
    expected, count = stopped_by_hand(model, images, labels, 8, targeted)
    assert 4 < count < 32
    attack = PGDAttack(
        model,
        EPS,
        ALPHA,
        8,
        False,
        early_stop=True,
        targeted=targeted,
        compact_every=compact_every,
        fold=fold,
    )
    assert torch.allclose(attack(images, labels), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_early_stop_does_not_depend_on_compaction(norm, momentum):
    model, images, labels = wide()
    results = [
        PGDAttack(
            model,
            0.4,
            0.1,
            9,
            norm=norm,
            seed=1,
            momentum=momentum,
            early_stop=True,
            compact_every=m,
        )(images, labels)
        for m in (1, 4, 50)
    ]
    assert (model(results[0]).argmax(1) != labels).any()
    for result in results[1:]:
        assert torch.allclose(result, results[0], atol=1e-9, rtol=0)


def test_finished_samples_leave_with_all_that_belongs_to_them():
    """Own eps, alpha, mask and labels of each sample: a mix-up at compaction would show."""
    model, images, labels = wide()
    generator = torch.Generator().manual_seed(8)
    eps = torch.rand(32, 1, 1, 1, generator=generator, dtype=torch.float64) * 0.04
    mask = torch.rand(images.shape, generator=generator) < 0.7
    make = lambda m: PGDAttack(model, eps, None, 12, seed=2, early_stop=True, compact_every=m)  # noqa: E731
    sizes = []
    model.register_forward_hook(lambda _, args, out: sizes.append(len(out)))
    together = make(2)(images, labels, mask=mask)
    assert len(set(sizes)) > 2
    for i in range(0, 32, 5):
        ids = torch.tensor([i])
        alone = PGDAttack(model, eps[i : i + 1], None, 12, seed=2, early_stop=True)(
            images[i : i + 1], labels[i : i + 1], mask=mask[i : i + 1], sample_ids=ids
        )
        assert torch.allclose(alone[0], together[i], atol=1e-12, rtol=0)
    assert torch.equal(together[~mask], images[~mask])


def test_a_batch_that_is_done_ends_the_run():
    model, (images, _) = cnn(), batch(16)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    wrong = (model(images).argmax(1) + 1) % 10
    calls.clear()
    result = PGDAttack(model, EPS, ALPHA, 40, False, early_stop=True)(images, wrong)
    assert len(calls) == 5 and torch.equal(result, images)


def test_a_loss_that_couples_the_samples_keeps_them_together():
    model, images, labels = wide()
    sizes = []
    model.register_forward_hook(lambda _, args, out: sizes.append(len(out)))
    attack = PGDAttack(model, EPS, ALPHA, 12, False, early_stop=True, loss=nn.CrossEntropyLoss())
    coupled = attack(images, labels)
    assert set(sizes) == {32}
    named = PGDAttack(model, EPS, ALPHA, 12, False, early_stop=True)(images, labels)
    assert torch.allclose(coupled, named, atol=1e-12, rtol=0)


def test_batch_statistics_keep_the_samples_together():
    model, (images, _) = cnn(dropout=0.0).train(), batch(16)
    labels = model(images).argmax(1)
    labels[:4] = (labels[:4] + 1) % 10  # done from the start
    sizes = []
    model.register_forward_hook(lambda _, args, out: sizes.append(len(out)))
    PGDAttack(model, 0.002, None, 12, False, early_stop=True, bn="train")(images, labels)
    assert sizes == [16] * 12


def test_a_users_loss_follows_the_rows():
    model, images, labels = wide()
    results = [
        PGDAttack(model, EPS, ALPHA, 12, False, early_stop=True, loss=loss, compact_every=1)(
            images, labels
        )
        for loss in (lambda z, y: F.cross_entropy(z, y, reduction="none"), "ce")
    ]
    assert torch.allclose(*results, atol=1e-12, rtol=0)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
@pytest.mark.parametrize("compact_every", [1, 100])
def test_early_stop_counts_no_gradient_after_success(compact_every, momentum):
    """Sample 0 succeeds from the start; sample 1 never does, with one NaN in the gradient of each of 3 steps."""

    def model(x):
        broken = (x[:, 0] - 1).sqrt() * 0  # NaN
        return torch.stack((x[:, 1], x[:, 2] + torch.where(broken.isnan(), 0.0, broken)), 1)

    images = torch.tensor([[0.5, 0.1, 0.9], [0.5, 0.9, 0.1]])
    attack = PGDAttack(
        model, 0.01, 0.01, 3, False, early_stop=True, compact_every=compact_every, momentum=momentum
    )
    with pytest.warns(RuntimeWarning, match="3 gradient entries"):
        result = attack(images, torch.tensor([0, 0]))
    assert attack.nonfinite.item() == 3
    assert torch.equal(result[0], images[0])
    assert torch.allclose(result[1], torch.tensor([0.5, 0.89, 0.11]))


@pytest.mark.parametrize("steps", [40, 53])
@pytest.mark.parametrize("compact_every", [1, 5, 7])
@pytest.mark.parametrize("fold", [True, False])
def test_cycles_change_no_bit(steps, compact_every, fold):
    model, images, labels = wide(12)
    calls = []
    model.register_forward_hook(lambda _, args, out: calls.append(len(out)))
    results, work = [], []
    for cycles in ("off", "auto"):
        calls.clear()
        attack = PGDAttack(
            model, EPS, ALPHA, steps, seed=3, cycles=cycles, compact_every=compact_every, fold=fold
        )
        results.append(attack(images, labels))
        work.append(sum(calls))
    assert torch.equal(*results)
    assert work[1] < work[0] if fold else work[1] <= work[0]


class Noisy(nn.Module):
    """A model that draws, in eval mode as well."""

    def __init__(self, size=1e-3):
        super().__init__()
        self.net, self.size = cnn(dropout=0.0), size

    def forward(self, x):
        return self.net(x + self.size * torch.randn_like(x))


def test_a_model_that_draws_is_not_taken_for_periodic():
    model, (images, labels) = Noisy(0.0), batch(8)
    steps = []
    model.net.register_forward_hook(lambda _, args, out: steps.append(len(out)))
    PGDAttack(model, EPS, ALPHA, 60, False)(images, labels)
    assert sum(steps) == 60 * 8


@pytest.mark.parametrize(
    "more",
    [{"norm": "l2", "eps": 0.4}, {"momentum": 1.0}, {"eot": 2}, {"bn": "train"}, {"cycles": "off"}],
    ids=str,
)
def test_cycles_are_looked_for_only_where_iterates_can_repeat(more, monkeypatch):
    from advfast.attacks import engine

    monkeypatch.setattr(engine, "Cycles", None)
    model, (images, labels) = cnn(), batch(4)
    PGDAttack(model, **{"eps": EPS, "alpha": None, "steps": 33, **more})(images, labels)
    with pytest.raises(TypeError):
        PGDAttack(model, EPS, None, 33)(images, labels)


@pytest.mark.parametrize(
    "more",
    [{"early_stop": True}, {"steps": 40}, {"early_stop": True, "restarts": 3, "targets": 2}],
    ids=str,
)
def test_the_model_is_left_as_found(more):
    model, (images, labels) = cnn().train(), batch(16)
    before = snapshot(model)
    result = PGDAttack(model, **{"steps": 8, **more})(images, labels)
    assert_untouched(model, before)
    assert not result.requires_grad
