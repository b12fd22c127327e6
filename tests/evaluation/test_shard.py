"""Parts of an evaluation add up to the whole."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advfast.evaluation import evaluate
from advfast.evaluation.inputs import batches, inputs


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(1)
    return torch.rand(50, 1, 8, 8), torch.arange(50) % 3


def counts(report):
    return {name: (found.correct, found.total) for name, found in report.results.items()}


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("loader", [False, True])
@pytest.mark.parametrize("limit", [None, 33])
def test_counts_add_up_to_those_of_the_whole(net, data, world, loader, limit):
    given = DataLoader(TensorDataset(*data), batch_size=20) if loader else data
    settings = {"attacks": ("clean", "pgd-3"), "eps": 0.02, "batch_size": 16, "limit": limit}
    whole = counts(evaluate(net, given, **settings))
    assert 0 < whole["pgd-3"][0] < whole["clean"][0] < whole["clean"][1]
    parts = [
        counts(evaluate(net, given, shard=(number, world), **settings)) for number in range(world)
    ]
    for name, wanted in whole.items():
        assert tuple(map(sum, zip(*(part[name] for part in parts), strict=True))) == wanted


def test_samples_keep_their_numbers(net, data):
    seen = {}
    for shard in (None, (0, 2), (1, 2)):
        of = inputs(data, "test", None, None, shard)
        for images, _, numbers in batches(of, 7, None, net):
            for number, image in zip(numbers.tolist(), images, strict=True):
                seen.setdefault(number, []).append(image)
    assert sorted(seen) == list(range(50))
    assert all(len(found) == 2 and torch.equal(*found) for found in seen.values())


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0,), [0, 2], 1, (0.0, 2), (True, 2)])
def test_what_is_no_shard_is_refused(net, data, shard):
    with pytest.raises(ValueError, match="shard must be"):
        evaluate(net, data, shard=shard)


def test_an_empty_part_has_no_samples(net, data):
    with pytest.raises(ValueError, match="no samples"):
        evaluate(net, (data[0][:1], data[1][:1]), shard=(0, 2))
