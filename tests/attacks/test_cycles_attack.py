"""Cycle detection in whole attacks: nothing of the result changes."""

from __future__ import annotations

import pytest
import torch

from advfast import PGDAttack
from advfast.attacks import engine
from advfast.attacks.cycles import Cycles

from . import networks


@pytest.fixture
def found(monkeypatch):
    """What each run found."""
    runs = []

    class Watched(Cycles):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            runs.append(self)

    monkeypatch.setattr(engine, "Cycles", Watched)
    return runs


@pytest.mark.parametrize("steps", [50, 51, 52, 53, 64, 97])
@pytest.mark.parametrize("every", [1, 5, 7])
def test_the_result_is_that_of_all_steps(found, steps, every):
    net = networks.mlp().double()
    images, labels = torch.rand(16, 20, dtype=torch.float64), torch.randint(4, (16,))
    # fold=False: the batch stays as it is, so that the bits of the network do.
    settings = {"eps": 0.1, "alpha": 0.025, "steps": steps, "seed": 1, "fold": False}
    expected = PGDAttack(net, **settings, cycles="off")(images, labels)
    assert not found
    result = PGDAttack(net, **settings, compact_every=every)(images, labels)
    assert torch.equal(result, expected)
    (cycles,) = found
    assert cycles.stats().found >= 8


def test_a_long_attack_computes_few_steps(found):
    net = networks.mlp()
    images, labels = torch.rand(16, 20), torch.randint(4, (16,))
    rows = []
    net.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    PGDAttack(net, 0.1, 0.025, steps=1000, seed=1, compile="off", fold=False)(images, labels)
    stats = found[0].stats()
    assert stats.found == 16 and stats.share > 0.8
    assert len(rows) < 500


@pytest.mark.parametrize(
    "settings",
    [
        {"cycles": "off"},
        {"norm": "l2"},
        {"momentum": 1.0},
        {"steps": 10},
        {"bn": "train"},
        {"eot": 2},
    ],
)
def test_not_looked_for_where_nothing_repeats_or_it_would_not_pay(found, settings):
    images, labels = networks.batch(4)
    PGDAttack(networks.cnn(), **{"steps": 40} | settings)(images, labels)
    assert not found
