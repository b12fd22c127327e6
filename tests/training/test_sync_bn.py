"""Batch normalisation over ranks, here of one rank that counts its sums; two are in test_parallel.py."""

import copy

import pytest
import torch
from torch import nn

from advfast.training.sync_bn import synced


class OneRank:
    weight = 1.0

    def __init__(self):
        self.sums = 0

    def sum_(self, values):
        self.sums += 1
        return values


def pair(kind, **settings):
    torch.manual_seed(0)
    own = kind(3, **settings).double()
    if own.affine:
        nn.init.uniform_(own.weight), nn.init.uniform_(own.bias)
    return own, copy.deepcopy(own)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [(nn.BatchNorm2d, (5, 3, 4, 6)), (nn.BatchNorm1d, (7, 3)), (nn.BatchNorm1d, (4, 3, 5))],
)
@pytest.mark.parametrize(
    "settings",
    [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.1}],
    ids=str,
)
def test_of_one_rank_it_is_that_of_torch(kind, shape, settings):
    own, torchs = pair(kind, **settings)
    ranks = OneRank()
    for step in range(3):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        y = x.detach().clone().requires_grad_()
        weights = torch.randn(shape, dtype=torch.float64)
        with synced(own, ranks):
            (own(x) * weights).sum().backward()
        (torchs(y) * weights).sum().backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-11)
        assert ranks.sums == 4 * (step + 1)  # two forward, two backward
    for (name, value), (other, wanted) in zip(
        own.state_dict().items(), torchs.state_dict().items(), strict=True
    ):
        assert name == other
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)
    for parameter, wanted in zip(own.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, wanted.grad, rtol=1e-10, atol=1e-10)


def test_gradients_of_gradients():
    own, torchs = pair(nn.BatchNorm2d)
    images = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    with synced(own, OneRank()):
        found = _penalty(own, images)
    for one, other in zip(found, _penalty(torchs, images), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def _penalty(bn, images):
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(bn(x).pow(3).sum(), x, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), [x, bn.weight])


def test_in_eval_mode_it_says_nothing_and_is_that_of_torch():
    own, torchs = pair(nn.BatchNorm2d)
    images, ranks = torch.randn(4, 3, 2, 2, dtype=torch.float64), OneRank()
    with synced(own.eval(), ranks):
        assert torch.equal(own(images), torchs.eval()(images))
    assert ranks.sums == 0


def test_the_layers_stay_what_they_are():
    class Own(nn.BatchNorm2d):
        def forward(self, images):
            return images

    net = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), Own(3))
    keys, kinds = list(net.state_dict()), [type(module) for module in net]
    with pytest.raises(RuntimeError), synced(net, OneRank()):
        assert "forward" in vars(net[0])
        assert "forward" not in vars(net[2])  # its own
        assert list(net.state_dict()) == keys
        raise RuntimeError
    assert [type(module) for module in net] == kinds
    assert all("forward" not in vars(module) for module in net)


def test_a_rank_without_samples_adds_nothing():
    own, _ = pair(nn.BatchNorm2d)
    ranks = OneRank()
    other = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    there = [other.sum((0, 2, 3)), torch.tensor([24.0], dtype=torch.float64)]
    sums = [torch.cat(there), (other - other.mean((0, 2, 3), True)).square().sum((0, 2, 3))]

    def add(values):
        return values + sums.pop(0) if sums else values

    ranks.weight, ranks.sum_ = 0.0, add
    images = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    with synced(own, ranks):
        own(images).sum()
    wanted = nn.BatchNorm2d(3).double()
    wanted(other)
    torch.testing.assert_close(own.running_mean, wanted.running_mean)
    torch.testing.assert_close(own.running_var, wanted.running_var)


def test_16_bit_images_keep_their_dtype():
    own = nn.BatchNorm2d(3)
    images = torch.randn(4, 3, 2, 2).bfloat16()
    with synced(own, OneRank()):
        assert own(images).dtype == torch.bfloat16
    assert own.running_mean.dtype == torch.float32
