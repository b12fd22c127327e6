import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advfast.data import stratified_split


@settings(max_examples=200)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.data())
def test_split_is_a_partition_in_proportion(labels, data):
    labels = torch.tensor(labels)
    count = data.draw(st.integers(1, len(labels) - 1))
    seed = data.draw(st.integers(0, 2**32))
    first, second = stratified_split(labels, count, seed=seed)
    assert len(second) == count
    assert sorted(first.tolist() + second.tolist()) == list(range(len(labels)))
    for label in labels.unique():
        expected = count * (labels == label).sum() / len(labels)
        assert abs((labels[second] == label).sum() - expected) < 1


def test_split_depends_on_the_seed_alone():
    labels = torch.arange(100) % 5
    one, again, other = (stratified_split(labels, 20, seed=seed)[1] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    torch.manual_seed(9)
    assert torch.equal(one, stratified_split(labels, 20, seed=1)[1])


@pytest.mark.parametrize("count", [0, 5, -1])
def test_count_out_of_range(count):
    with pytest.raises(ValueError, match=r"1 \.\. 4"):
        stratified_split(torch.zeros(5), count, seed=0)
