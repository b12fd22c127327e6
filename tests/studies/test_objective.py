"""The loss of a method as a function of the weights: by hand on a linear network, and how its gradient moves."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from advfast.studies.networks import conv_net
from advfast.studies.objective import Objective, gradient_changes, length
from advfast.training import methods, rng

from .test_complexity import Line

X = np.array([[0.5, 0.4], [0.6, 0.3], [0.45, 0.55]])
LABELS = torch.tensor([0, 1, 0])
EPS = 0.1


def sign_of(y):
    return 1 - 2 * y  # of s in the logit of class y


def crafted(w):
    """x' of every image: away from its class along the sign of w."""
    return np.stack(
        [x - EPS * sign_of(y) * np.sign(w) for x, y in zip(X, LABELS.numpy(), strict=True)]
    )


def gradient(w, images):
    """Of the mean of softplus(-2 (+-)s) by w, at images."""
    total = np.zeros(2)
    for x, y in zip(images, LABELS.numpy(), strict=True):
        sign = sign_of(y)
        total += -2 * sign / (1 + math.exp(2 * sign * (w @ x))) * x
    return total / len(images)


def objective(w, method, **settings):
    images = torch.tensor(X).reshape(3, 1, 1, 2)
    return Objective(
        Line(list(w)), method, images, LABELS, eps=EPS, alpha=0.2, steps=2, batch_size=2, **settings
    )


@pytest.mark.parametrize("method", ["standard", "pgd-at"])
def test_changes_of_the_gradient_by_hand(method):
    w = np.array([0.05, -1.0])  # the first weight changes its sign on the way
    lambdas = [0.0, 0.01, 0.5, -0.5]

    def images(w):
        return X if method == "standard" else crafted(w)

    start = gradient(w, images(w))
    direction = start / np.linalg.norm(start)
    found = gradient_changes(objective(w, method), lambdas)
    signs = set()
    for value, row in zip(lambdas, found, strict=True):
        other = w + value * direction
        signs.add(float(np.sign(other[0])))
        anew = np.linalg.norm(gradient(other, images(other)) - start)
        same = np.linalg.norm(gradient(other, images(w)) - start)
        assert row["lambda"] == value
        assert row["gradient"] == pytest.approx(np.linalg.norm(start))
        assert row["regenerated"] == pytest.approx(anew, abs=1e-12)
        assert row["fixed"] == pytest.approx(same, abs=1e-12)
    assert signs == {1.0, -1.0}
    assert found[0]["regenerated"] == found[0]["fixed"] == 0
    jumped = [row["regenerated"] - row["fixed"] for row in found]
    assert max(jumped) > 0.05 if method == "pgd-at" else max(map(abs, jumped)) < 1e-12


def network():
    torch.manual_seed(0)
    return conv_net((1, 4, 4), 3, (4,), (2,), batch_norm=False)


@pytest.mark.parametrize("method", ["standard", "pgd-at", "trades"])
def test_it_is_the_loss_that_the_method_trains_with(method):
    net, x, y = network(), torch.rand(12, 1, 4, 4), torch.arange(12) % 3
    own = methods.make(method, net.eval(), methods.Settings(0.1, None, 3, "linf", capture="off"))
    from advfast.data import Batch

    batch = Batch(x, y, torch.arange(12))
    with rng.seeded(5):
        images = own.craft(batch)
    loss = own.loss(images, batch).loss
    loss.backward()
    made = Objective(net, method, x, y, eps=0.1, steps=3, seed=5)
    held = made.craft()
    assert torch.equal(held[0], images)
    assert made.loss(held) == pytest.approx(float(loss.detach()))
    gradients = [p.grad for p in net.parameters()]
    for found, expected in zip(made.gradient(held), gradients, strict=True):
        torch.testing.assert_close(found, expected)
    assert length(gradients) == pytest.approx(
        math.sqrt(sum(float(g.square().sum()) for g in gradients)), rel=1e-6
    )
    parts = Objective(net, method, x, y, eps=0.1, steps=3, seed=5, batch_size=5)
    assert len(parts.craft()) == 3
    if method == "standard":
        torch.testing.assert_close(parts.gradient(parts.craft()), made.gradient(held))


def test_weights_come_back_and_the_network_is_left_alone():
    net, x, y = network().train(), torch.rand(12, 1, 4, 4), torch.arange(12) % 3
    before = {name: value.clone() for name, value in net.state_dict().items()}
    made = Objective(net, "pgd-at", x, y, eps=0.1, steps=2)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = gradient_changes(made, [0.1, 1.0])
    assert torch.equal(torch.get_rng_state(), state)
    assert gradient_changes(made, [0.1, 1.0]) == first
    assert first[0]["regenerated"] != first[0]["fixed"]
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    for name, value in made.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="no loss of its own"):
        objective([1.0, 1.0], "free", options={"m": 2})
    with pytest.raises(ValueError, match="did you mean 'trades'"):
        objective([1.0, 1.0], "trade")
    with pytest.raises(ValueError, match="lambdas must be finite"):
        gradient_changes(objective([1.0, 1.0], "standard"), [math.inf])
    assert isinstance(objective([1.0, 1.0], "standard").model, nn.Module)
