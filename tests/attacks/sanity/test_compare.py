"""Attacks that should not have been stronger than others."""

from __future__ import annotations

import pytest

from advfast.attacks.sanity import compare

STAGES = {"clean": 0.9, "apgd-ce": 0.6, "apgd-t": 0.55, "fab-t": 0.55, "square": 0.549}


def codes(*arguments, **named) -> list[str]:
    return [finding.code for finding in compare(*arguments, **named)]


def test_an_ordinary_run_says_nothing():
    assert codes(STAGES) == []
    alone = {
        "clean": 0.9,
        "fgsm": 0.7,
        "pgd-20": 0.61,
        "pgd-50": 0.6,
        "apgd-ce": 0.6,
        "square": 0.65,
    }
    assert codes(STAGES, alone, samples=1000) == []
    assert codes({}) == codes({}, {}) == []


@pytest.mark.parametrize(
    ("after", "said"), [(0.5482, []), (0.5478, ["square-wins"]), (0.3, ["square-wins"])]
)
def test_square_wins_by_more_than_a_fifth_of_a_point(after, said):
    assert codes({**STAGES, "square": after}, samples=10_000) == said


def test_square_wins_counts_only_after_attacks_by_gradients():
    assert codes({"clean": 0.9, "square": 0.5}) == []
    assert codes({"square": 0.5, "apgd-ce": 0.1}) == []
    # In version plus Square is in the middle.
    plus = {"clean": 0.9, "apgd-ce": 0.6, "square": 0.5, "apgd-t": 0.3}
    (finding,) = compare(plus)
    assert finding.values == {"before": 0.6, "after": 0.5, "fell": pytest.approx(0.1)}
    assert "bpda" in finding.advice


def test_two_samples_are_noise():
    assert codes({"apgd-ce": 0.5, "square": 0.48}, samples=100) == []
    assert codes({"apgd-ce": 0.5, "square": 0.47}, samples=100) == ["square-wins"]


def test_black_box_stronger():
    alone = {"clean": 0.9, "pgd-20": 0.8, "apgd-ce": 0.7, "square": 0.2}
    (finding,) = compare({}, alone)
    assert finding.code == "black-box-stronger"
    assert finding.values == {"black_box": 0.2, "white_box": 0.7}
    assert codes({}, {**alone, "fab-t": 0.2}) == []
    assert codes({}, {"clean": 0.9, "square": 0.2}) == []
    # What holds Square itself is no attack by gradients alone.
    assert codes({}, {"autoattack": 0.3, "square": 0.2}) == []


def test_pgd_stronger_than_apgd():
    assert codes({}, {"pgd-20": 0.5, "apgd-ce": 0.6}) == ["pgd-stronger-than-apgd"]
    assert codes({}, {"pgd-20": 0.5, "apgd-ce": 0.6, "apgd-t": 0.5}) == []
    assert codes({}, {"pgd-20": 0.599, "apgd-ce": 0.6}) == []
    assert codes({}, {"cw-40": 0.3, "apgd-ce": 0.6}) == []  # another loss
    assert codes({}, {"fgsm-rs": 0.3, "apgd-dlr": 0.6}) == ["pgd-stronger-than-apgd"]


def test_order():
    (finding,) = compare({}, {"pgd-50": 0.6, "pgd-20": 0.5, "pgd-100": 0.61, "bim-10": 0.4})[:1]
    assert finding.code == "order" and finding.values["fewer_steps"] == 20
    assert codes({}, {"pgd-20": 0.5, "pgd-50": 0.504}) == []
    assert codes({}, {"pgd-20": 0.5, "pgd-50": 0.53}, samples=50) == []
    assert codes({}, {"pgd-20": 0.5, "bim-50": 0.9}) == []


def test_refuses_per_cent():
    with pytest.raises(ValueError, match="'pgd-20' must be within 0 and 1, got 54"):
        compare({}, {"pgd-20": 54.0})
