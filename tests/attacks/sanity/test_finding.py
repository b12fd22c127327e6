"""Findings and sweeps go into a report and come back."""

from __future__ import annotations

import json
import math

import pytest

from advfast.attacks.sanity import Finding, Sweep


def test_finding_survives_json():
    values = {"share": 0.5, "count": 3, "loss": "ce", "worst": math.inf, "least": -math.inf}
    finding = Finding("zero-gradient", "nothing moves", "try dlr", values)
    again = Finding.from_dict(json.loads(json.dumps(finding.to_dict(), allow_nan=False)))
    assert again == finding and again.values["worst"] == math.inf
    assert str(finding) == "zero-gradient: nothing moves; try dlr"
    undefined = Finding("x", "", "", {"value": math.nan}).to_dict()
    assert math.isnan(Finding.from_dict(json.loads(json.dumps(undefined))).values["value"])
    with pytest.raises(KeyError):
        Finding.from_dict({"code": "x"})


def test_finding_is_frozen():
    with pytest.raises(AttributeError):
        Finding("x", "", "").code = "y"


def test_sweep_survives_json():
    sweep = Sweep(
        [0.0, 0.1], [1.0, 0.5], [1, 2], [0.6, 0.5], [1.5, math.inf], 128,
        (Finding("eps-flat", "m", "a", {"rise": 0.1}),), 1.0, 0.25, 0.75,
    )  # fmt: skip
    assert Sweep.from_dict(json.loads(json.dumps(sweep.to_dict(), allow_nan=False))) == sweep
    nothing = Sweep.from_dict(json.loads(json.dumps(Sweep([], [], [], [], [], 0).to_dict())))
    assert math.isnan(nothing.widest_accuracy) and math.isnan(nothing.start_loss)
