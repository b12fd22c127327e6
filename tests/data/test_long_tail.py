"""Long-tailed parts of balanced data: the published counts, whose samples, names and errors."""

import sys

import pytest
import torch

from advfast.data import (
    TensorSource,
    load,
    long_tail,
    long_tail_counts,
    long_tail_groups,
    long_tail_split,
    readers,
)
from advfast.data.splits import Splits
from advfast.training.presets import PRESETS, preset

CIFAR10 = {
    0.1: [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500],
    0.05: [5000, 3584, 2569, 1842, 1320, 946, 678, 486, 348, 250],
    0.02: [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100],
    0.01: [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50],
}
CIFAR100 = {0.1: (50, 19573), 0.05: (25, 15907), 0.02: (10, 12608), 0.01: (5, 10847)}


@pytest.mark.parametrize("imbalance", CIFAR10)
def test_counts_are_the_published_ones(imbalance):
    labels = torch.arange(50000) % 10
    kept, _ = long_tail_split(labels, imbalance)
    assert labels[kept].bincount().tolist() == CIFAR10[imbalance]
    last, total = CIFAR100[imbalance]
    counts = long_tail_counts(100, 500, imbalance)
    assert (counts[0], counts[-1], sum(counts)) == (500, last, total)


def test_digits_of_the_specification():
    assert long_tail_counts(10, 122, 0.05) == [122, 87, 62, 44, 32, 23, 16, 11, 8, 6]
    splits = load("digits-lt:0.05:122")
    assert len(splits.train) == 411 and splits.name == "digits-lt-0.05-122"
    # 126 training images of the smallest class.
    assert load("Digits-LT:0.05").train.labels.bincount()[0] == 126


def test_a_split_is_a_part_of_each_class_by_the_seed_alone():
    labels = torch.randint(0, 5, (3000,), generator=torch.Generator().manual_seed(1))
    kept, rest = long_tail_split(labels, 0.1, head=400)
    assert torch.equal(torch.cat([kept, rest]).sort().values, torch.arange(3000))
    assert labels[kept].bincount().tolist() == long_tail_counts(5, 400, 0.1)
    assert torch.equal(long_tail_split(labels, 0.1, head=400)[0], kept)
    other = long_tail_split(labels, 0.1, head=400, seed=1)[0]
    assert len(other) == len(kept) and not torch.equal(other, kept)
    # Not the first ones of each class, and the smaller part is in the larger one.
    assert not torch.equal(kept[labels[kept] == 0], (labels == 0).nonzero()[:400, 0])
    assert set(long_tail_split(labels, 0.05, head=400)[0].tolist()) < set(kept.tolist())
    # In another order of the samples of other classes a class gives the same.
    moved = torch.cat([labels[labels != 2], labels[labels == 2]])
    number = torch.cat([(labels != 2).nonzero()[:, 0], (labels == 2).nonzero()[:, 0]])
    again = number[long_tail_split(moved, 0.1, head=400)[0]]
    assert torch.equal(again.sort().values, kept)


def test_no_imbalance_is_balanced():
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    kept, rest = long_tail_split(labels, 1)
    assert labels[kept].bincount().tolist() == [2, 2, 2] and len(rest) == 1


def test_images_go_with_their_labels():
    images = torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1)
    source = long_tail((images, torch.arange(60) % 3), 0.2)
    assert isinstance(source, TensorSource)
    assert source.labels.bincount().tolist() == [20, 8, 4]
    assert torch.equal(source.images.flatten().long() % 3, source.labels)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (range(10, 0, -1), ((0, 1, 2), (3, 4, 5, 6), (7, 8, 9))),
        ([4, 9, 1, 4], ((1,), (0, 3), (2,))),
        ([5, 5, 5], ((0,), (1,), (2,))),
        ([2, 7], ((), (1,), (0,))),
    ],
)
def test_groups(counts, expected):
    assert long_tail_groups(list(counts)) == expected
    assert long_tail_groups(torch.tensor(list(counts))) == expected


def test_the_tail_of_a_hundred_is_that_of_reat():
    groups = long_tail_groups(long_tail_counts(100, 500, 0.02))
    assert groups.tail == tuple(range(67, 100)) and len(groups.head) == 33


def balanced(each):
    def read(root):
        labels = torch.arange(each * 4) % 4
        images = torch.arange(each * 4, dtype=torch.uint8).view(-1, 1, 1, 1)
        source = TensorSource(images, labels)
        return Splits("whole", source, source, ("a", "b", "c", "d"))

    return read


def test_the_test_set_stays_and_what_is_left_over_is_held_out(monkeypatch):
    monkeypatch.setitem(readers.READERS, "digits", balanced(60))
    splits = load("digits-lt:0.1:45")
    assert splits.train.labels.bincount().tolist() == [45, 20, 9, 4]
    assert splits.test.labels.bincount().tolist() == [60] * 4 and splits.class_names == tuple(
        "abcd"
    )
    assert splits.val.labels.bincount().tolist() == [15] * 4
    trained, held_out = (set(part.images.flatten().tolist()) for part in (splits.train, splits.val))
    assert not trained & held_out
    assert load("digits-lt:0.1:51").val is None  # 9 are left of class 0
    assert load("digits-lt:0.1").val is None


def test_not_more_is_held_out_than_is_of_use(monkeypatch):
    monkeypatch.setattr(sys.modules["advfast.data.long_tail"], "MOST_HELD_OUT", 48)
    monkeypatch.setitem(readers.READERS, "digits", balanced(60))
    assert load("digits-lt:0.1:20").val.labels.bincount().tolist() == [12] * 4


def test_presets_are_those_of_the_base():
    for name in ("digits-lt:0.05", "Digits-LT:0.1:100"):
        assert preset(name) is PRESETS["digits"]
    assert preset("cifar10") is PRESETS["cifar10"] and preset("mine-lt:0.1") == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits-lt:1.5", "must be above 0 and at most 1, got 1.5"),
        ("digits-lt:0", "must be above 0 and at most 1, got 0"),
        ("digits-lt:nan", "must be above 0 and at most 1, got nan"),
        ("digits-lt:0.001", "imbalance=0.001 leaves class 7 without a sample: of 126"),
        ("digits-lt", "'digits-lt' must be digits-lt:IMBALANCE, such as digits-lt:0.05"),
        ("digits-lt:much", "must be digits-lt:IMBALANCE"),
        ("digits-lt:0.1:", "must be digits-lt:IMBALANCE"),
        ("digits-lt:0.1:0", "head must be an integer >= 1, got 0"),
        ("digits-lt:0.5:129", "head=129 asks for 129 samples of class 0, which has 128"),
        ("digit-lt:0.1", "unknown data set 'digit-lt:0.1'"),
    ],
)
def test_errors_of_names(name, message):
    with pytest.raises(ValueError, match=message):
        load(name)


def test_errors_of_labels():
    with pytest.raises(ValueError, match="class 1 has no sample"):
        long_tail_split(torch.tensor([0, 2, 2]), 0.5)
    with pytest.raises(ValueError, match="at least 2 classes, the data have 1"):
        long_tail_split(torch.tensor([0, 0]), 0.5)
    with pytest.raises(ValueError, match="above 0 and at most 1, got True"):
        long_tail_counts(3, 10, True)
