"""APGD against pyautoattack: the same starts, the same iterates, bit for bit."""

import pytest
import torch

from advfast.attacks import APGD, APGDT

from .digits import images, robust_network

published = pytest.importorskip("pyautoattack.autopgd_base")

NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}
EPS = {"linf": 0.1, "l2": 0.7, "l1": 2.0}
CASES = [
    ("linf", {"loss": "ce"}),
    ("linf", {"loss": "dlr", "steps": 41, "restarts": 2}),
    ("linf", {"loss": "dlr", "targets": 3, "steps": 30, "restarts": 2}),
    ("linf", {"loss": "ce", "steps": 3}),
    ("linf", {"loss": "ce", "steps": 1}),
    ("linf", {"loss": "ce", "rho": 0.3, "steps": 40}),
    ("l2", {"loss": "ce"}),
    ("l2", {"loss": "dlr", "steps": 33}),
    ("l2", {"loss": "dlr", "targets": 2, "steps": 30}),
]
L1_CASES = [
    {"loss": "ce", "steps": 50},
    {"loss": "dlr", "steps": 50},
    {"loss": "ce", "restarts": 2, "steps": 33, "large_eps": True},
    {"loss": "dlr", "targets": 2, "steps": 30, "large_eps": True},
]


def theirs(network, norm, x, y, *, seed, loss, steps=100, restarts=1, targets=0, **settings):
    settings["use_largereps"] = settings.pop("large_eps", False)
    common = {
        "norm": NAMES[norm], "eps": EPS[norm], "n_iter": steps, "n_restarts": restarts, "seed": seed,
    }  # fmt: skip
    if targets:
        attack = published.APGDAttack_targeted(
            network, n_target_classes=targets, **common, **settings
        )
    else:
        attack = published.APGDAttack(network, loss=loss, **common, **settings)
    state = torch.random.get_rng_state()
    try:
        return attack.perturb(x.clone(), y.clone())
    finally:
        torch.random.set_rng_state(state)


@pytest.mark.parametrize(("norm", "settings"), CASES, ids=str)
def test_the_same_bits(norm, settings):
    network, (x, y) = robust_network(), images(64)
    expected = theirs(network, norm, x, y, seed=5, **settings)
    assert not torch.equal(expected, x)
    ours = APGD(network, EPS[norm], norm=norm, seed=5, rng="upstream", fold=False, **settings)
    assert torch.equal(ours(x, y), expected)
    ours.fold = True  # finished rows leave, and the first adversarial iterate counts: not the last
    found = ours(x, y)
    right = network(found).argmax(1) == y
    assert torch.equal(right, network(expected).argmax(1) == y)
    assert torch.equal(found[right], x[right])


@pytest.mark.parametrize("settings", L1_CASES, ids=str)
def test_the_same_bits_in_l1(settings):
    network, (x, y) = robust_network(), images(64)
    expected = theirs(network, "l1", x, y, seed=5, **settings)
    broken = network(expected).argmax(1) != y
    assert 0 < broken.sum() < len(y)
    ours = APGD(network, EPS["l1"], norm="l1", seed=5, rng="upstream", fold=False, **settings)
    assert torch.equal(ours(x, y), expected)
    ours.fold = True
    # Which pixels move is a comparison that rounding may decide, and a run of 50 steps in l1 depends on it.
    assert ((network(ours(x, y)).argmax(1) != y) != broken).sum() <= 3


def test_labels_that_are_not_given_are_the_predictions():
    network, (x, _) = robust_network(), images(32)
    y = network(x).argmax(1)
    expected = theirs(network, "linf", x, y, seed=0, loss="dlr", targets=2, steps=20)
    ours = APGDT(network, 0.1, targets=2, steps=20, rng="upstream", fold=False)
    assert torch.equal(ours(x), expected)


def test_the_global_generator_is_not_moved():
    network, (x, y) = robust_network(), images(8)
    before = torch.random.get_rng_state()
    for rng in ("upstream", "philox"):
        APGD(network, 0.1, rng=rng, steps=2)(x, y)
    assert torch.equal(torch.random.get_rng_state(), before)
