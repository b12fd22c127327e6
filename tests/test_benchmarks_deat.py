"""The benchmark of DEAT: what is said of rows, and whose time is taken."""

import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import deat


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows(pgd20, autoattack=None, data="digits", status="ok"):
    """Of {variant: PGD-20}, last and best."""
    found = []
    for variant, value in pgd20.items():
        attacked = (autoattack or {}).get(variant, value - 0.02)
        for which in ("best", "last"):
            row = dict.fromkeys((field.name for field in fields(deat.Row)), "1")
            row |= {
                "data": data, "variant": variant, "which": which, "status": status, "seed": "0",
                "pgd20": str(value), "pgd20_there": str(value), "autoattack": str(attacked),
            }  # fmt: skip
            found.append(row)
    return found


GOOD = {"sgd": 0.6, "pnm-rule": 0.62, "pnm-same-step": 0.61, "pnm-same-rate": 0.5}


def said(found, costs=()):
    """What was expected -> whether it held."""
    lines = deat.expectations(found, list(costs))
    return {line.rpartition(": ")[0]: line.endswith(": held") for line in lines}


def held(lines, start):
    (found,) = [value for line, value in lines.items() if line.startswith(start)]
    return found


def test_expectations_follow_the_rows():
    good = said(rows(GOOD))
    assert len(good) == 6 and all(good.values())
    bad = said(rows(GOOD | {"pnm-rule": 0.58, "pnm-same-step": 0.5, "pnm-same-rate": 0.59}))
    assert not held(bad, "digits: pnm at 10 r at most")
    assert not held(bad, "digits: pnm at r more than 0 below")
    assert not held(bad, "digits: pnm at the same effective step")
    over = said(rows(GOOD, {"pnm-same-rate": 0.65}))
    assert not held(over, "digits: AutoAttack at most PGD-20")
    assert not held(over, "digits: the same order")
    adam = GOOD | {"adamw": 0.6, "adapnm": 0.63}
    assert not held(said(rows(adam)), "digits: adapnm within")
    near = said(rows(GOOD | {"pnm-same-rate": 0.615}, data="fashion-mnist"))
    assert not held(near, "fashion-mnist: pnm at r more than 1 below")


def test_a_lost_seed_has_no_part_in_the_means():
    lost = [*rows(GOOD), *rows({"sgd": 0.1}, status="the loss became nan")]
    assert held(said(lost), "digits: pnm at 10 r at most 1 point below sgd: 62.0 against 60.0")
    assert "`sgd` (1 of 2 seeds lost: NaN)" in deat.table(lost)
    assert "| 60.0 |" in deat.table(lost)


def test_rates_of_the_variants():
    task = deat.TASKS[0]
    steps = {
        name: deat.optim.effective_step(
            deat.optim.make(optimizer, torch.nn.Linear(1, 1), lr=lr)
        )
        for name, (optimizer, lr) in task.variants().items()
    }  # fmt: skip
    assert steps["pnm-same-step"] == pytest.approx(steps["sgd"]) == pytest.approx(10 * task.lr)
    assert steps["sgd"] / steps["pnm-same-rate"] == pytest.approx(22.36, abs=0.01)
    assert steps["pnm-rule"] == pytest.approx(10 * steps["pnm-same-rate"])


def test_steps_are_timed_in_turns_and_held_to_three_percent(monkeypatch):
    monkeypatch.setitem(deat.NETWORKS, "small-cnn", ((4, 1, 8, 8), {}))
    sgd, pnm = deat.costs("small-cnn", ("sgd", "pnm"), 2, 1)
    assert (sgd.ratio_to_sgd, sgd.rounds, pnm.optimizer) == (1.0, 2, "pnm")
    assert pnm.update_ms > 0 and pnm.ms_p50 > 0
    for ratio, good in (("1.03", True), ("1.04", False)):
        row = deat.as_text(pnm) | {"ratio_to_sgd": ratio}
        assert held(said([], [row]), "a step of pnm at most 3 % over sgd on small-cnn") is good
    assert "| `pnm` |" in deat.cost_table([deat.as_text(pnm)])
