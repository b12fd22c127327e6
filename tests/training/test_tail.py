"""The penalty of REAT on features against the double loop over a batch, and its gradient."""

import math

import pytest
import torch

from advfast.training.methods.tail import tail_penalty

COUNTS = [9, 4, 2]


def softmax(row):
    powers = [math.exp(float(value)) for value in row]
    return [power / sum(powers) for power in powers]


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def tail_by_hand(features, labels, tail, counts, pairwise):
    """The double loop of the released code; its KLDivLoss, with the legacy flag, gives a mean over B x D."""
    rows, labels = [softmax(row) for row in features], labels.tolist()
    value = [math.sqrt(sum(counts) / n) for n in counts]
    anchors = [i for i, y in enumerate(labels) if y in tail]
    if not anchors:
        return 0.0
    each = [0.0] * len(rows)
    for i in anchors:
        scalar = sum(divergence(rows[i], q) for q in rows) / (len(rows) * len(rows[0]))
        for j, q in enumerate(rows):
            sign = -1 if labels[i] == labels[j] else 1
            between = divergence(rows[i], q) if pairwise else scalar
            each[j] += between * sign * (value[labels[i]] + value[labels[j]])
    return sum(each) / len(each) / len(anchors)


TAIL_LABELS = {
    "mixed": [0, 1, 2, 2, 1, 0, 0, 2, 0],
    "no tail": [0, 1, 1, 0, 1, 0, 0, 1, 0],
    "tail alone": [2] * 9,
    "one class": [0] * 9,
}


@pytest.mark.parametrize("labels", TAIL_LABELS.values(), ids=TAIL_LABELS)
@pytest.mark.parametrize("pairwise", [False, True], ids=["released", "pairwise"])
@pytest.mark.parametrize("tail", [[2], [1, 2]], ids=str)
def test_tail_is_the_double_loop(labels, pairwise, tail):
    torch.manual_seed(1)
    features = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor(labels)
    is_tail = torch.tensor([number in tail for number in range(3)])
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    rarity = (counts.sum() / counts).sqrt()
    found = tail_penalty(features, labels, is_tail, rarity, pairwise=pairwise)
    expected = tail_by_hand(features.detach(), labels, tail, COUNTS, pairwise)
    assert found.item() == pytest.approx(expected, rel=1e-10, abs=1e-15)
    assert (expected == 0) == (not any(y in tail for y in labels.tolist()))
    (gradient,) = torch.autograd.grad(found, features)
    # The anchors are constants: differences move the other side alone.
    anchors = features.detach().clone(), labels

    def at(row, column, change):
        moved = features.detach().clone()
        moved[row, column] += change
        return tail_penalty(
            moved, labels, is_tail, rarity, pairwise=pairwise, anchors=anchors
        ).item()

    for row, column in ((0, 0), (2, 3), (8, 4)):
        slope = (at(row, column, 1e-5) - at(row, column, -1e-5)) / 2e-5
        assert float(gradient[row, column]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("pairwise", [False, True])
def test_tail_of_parts_with_the_anchors_of_all_is_that_of_the_whole(pairwise):
    torch.manual_seed(1)
    features, labels = torch.randn(9, 5, dtype=torch.float64), torch.tensor(TAIL_LABELS["mixed"])
    is_tail, rarity = torch.tensor([False, True, True]), torch.tensor([1.2, 1.9, 2.7]).double()

    def of(rows):
        return tail_penalty(
            features[rows], labels[rows], is_tail, rarity,
            pairwise=pairwise, anchors=(features, labels),
        )  # fmt: skip

    whole = tail_penalty(features, labels, is_tail, rarity, pairwise=pairwise)
    assert whole.item() == pytest.approx(
        (5 * of(slice(0, 5)) + 4 * of(slice(5, 9))).item() / 9, rel=1e-12
    )


def test_tail_is_finite_in_sixteen_bits():
    features = (60 * torch.randn(8, 6)).to(torch.bfloat16).requires_grad_()
    labels = torch.arange(8) % 3
    found = tail_penalty(
        features, labels, torch.tensor([False, False, True]), torch.ones(3), pairwise=True
    )
    found.backward()
    assert found.dtype == torch.float32 and found.isfinite() and features.grad.isfinite().all()
