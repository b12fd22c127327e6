"""AutoAttack against pyautoattack, where that is installed; the whole comparison is benchmarks/autoattack_parity.py."""

import sys
from pathlib import Path

import pytest
import torch

from .linear_models import digits, trained

pytest.importorskip("pyautoattack")
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))

import autoattack_parity
import robust_models
from autoattack_peer import by_advfast, by_pyautoattack


def test_the_same_samples_break_in_the_same_part():
    x, y = digits()
    model = trained(x[:700], y[:700], 10, 0.1, steps=60)
    x, y = x[700:740], y[700:740]
    run = {
        "norm": "linf", "eps": 0.1, "batch_size": 15, "queries": 40,
        "attacks": ["apgd-ce", "square"],
    }  # fmt: skip
    state = torch.random.get_rng_state()
    peer = by_pyautoattack(model, x, y, **run)
    assert torch.equal(torch.random.get_rng_state(), state)
    ours = by_advfast(model, x, y, rng="upstream", fold=False, **run)
    assert list(peer.stages) == list(ours.stages) == ["clean", "apgd-ce", "square"]
    for name, right in peer.stages.items():
        assert torch.equal(right, ours.stages[name]), name
    assert ours.stages["clean"].sum() > ours.stages["square"].sum() > 0
    recipe = robust_models.RECIPES["digits-linf"]
    rows = list(autoattack_parity.rows("digits-linf", recipe, "upstream", peer, ours))
    assert [row["attack"] for row in rows] == [*peer.stages, "all"]
    assert all(row["agreement"] == 1 and row["more_robust_samples"] == "none" for row in rows)
    one = peer.stages["square"].nonzero()[0]
    peer.stages["square"][one] = False
    last = list(autoattack_parity.rows("digits-linf", recipe, "upstream", peer, ours))[-1]
    assert last["more_robust_samples"] == str(int(one)) and last["less_robust"] == 0
