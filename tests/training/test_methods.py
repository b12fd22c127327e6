from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advfast.attacks import PGDAttack
from advfast.data import Batch
from advfast.training import methods

SETTINGS = methods.Settings(eps=0.1, alpha=None, steps=3, norm="linf")


@pytest.fixture
def batch():
    return Batch(torch.rand(16, 1, 8, 8), torch.arange(16) % 3, torch.arange(16))


def step(method, batch):
    return method.loss(method.craft(batch), batch)


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def test_standard_is_cross_entropy_on_the_images(batch):
    model = network()
    loss, logits = step(methods.make("standard", model, SETTINGS), batch)
    expected = F.cross_entropy(network_logits := model(batch[0]), batch[1])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits, network_logits)


def test_pgd_at_trains_on_harder_images_inside_the_ball(batch, monkeypatch):
    seen = []

    call = PGDAttack.__call__

    def spy(self, *args, **kwargs):
        seen.append(call(self, *args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(PGDAttack, "__call__", spy)
    model = network()
    images, labels = batch[:2]
    loss, logits = step(methods.make("pgd-at", model, SETTINGS), batch)
    (adversarial,) = seen
    assert 0.09 < (adversarial - images).abs().max() <= 0.1 + 1e-7
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    torch.testing.assert_close(loss, F.cross_entropy(model(adversarial), labels))
    assert loss > F.cross_entropy(model(images), labels)
    assert loss.requires_grad
    assert logits.shape == (16, 3)


@pytest.mark.parametrize(("bn", "updates"), [("eval", 1), ("train", 1), ("train-update", 4)])
def test_pgd_at_batch_norm_policy(batch, bn, updates):
    model = network()
    step(methods.make("pgd-at", model, replace(SETTINGS, bn=bn)), batch)
    assert (
        model[2].num_batches_tracked == updates
    )  # one for the weights; train-update: 3 steps more
    assert model.training


@pytest.mark.parametrize("name", ["pgd-at", "standard"])
def test_weight_gradient_is_that_of_the_loss_alone(batch, name):
    model = network()
    loss, _ = step(methods.make(name, model, SETTINGS), batch)
    assert all(parameter.grad is None for parameter in model.parameters())
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_unknown_method():
    with pytest.raises(ValueError, match="did you mean 'standard'"):
        methods.make("standart", network(), SETTINGS)
