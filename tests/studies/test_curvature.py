"""Curvature of the loss in the input against whole Hessians."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from advfast.studies.curvature import difference_product, exact_product, input_curvature


def smooth(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Softplus(3.0), nn.Flatten(), nn.Linear(48, 5)
    ).double()  # fmt: skip
    net(torch.rand(16, 1, 4, 4, dtype=torch.float64))  # running statistics of its own
    with torch.no_grad():
        net[-1].weight.mul_(3)
    return net.eval()


def samples(count=6):
    torch.manual_seed(1)
    return torch.rand(count, 1, 4, 4, dtype=torch.float64), torch.arange(count) % 5


def hessians(net, x, y):
    return [
        torch.autograd.functional.hessian(
            lambda z, label=label: cross_entropy(net(z[None]), label[None]), image
        ).reshape(16, 16)
        for image, label in zip(x, y, strict=True)
    ]


def test_products_are_those_of_each_samples_hessian():
    net, (x, y) = smooth(), samples()
    v = torch.randn_like(x)
    v /= v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    expected = torch.stack([h @ u.flatten() for h, u in zip(hessians(net, x, y), v, strict=True)])
    torch.testing.assert_close(exact_product(net, x, y)(v).flatten(1), expected)
    for h in (1e-3, 1e-4):  # a scale that is off by a power of h would show
        found = difference_product(net, x, y, h)(v).flatten(1)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("product", ["exact", "difference"])
def test_the_largest_eigenvalue_of_each_sample(product):
    net, (x, y) = smooth(), samples()
    expected = torch.stack([torch.linalg.eigvalsh(h)[-1] for h in hessians(net, x, y)])
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = input_curvature(net, x, y, steps=200, product=product, h=1e-4)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-4)
    assert net.training and all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    # Each sample by itself, whatever batch it is in.
    alone = input_curvature(net, x[:1], y[:1], steps=200)
    torch.testing.assert_close(alone, found[:1], rtol=1e-4, atol=1e-7)
    assert all(parameter.grad is None for parameter in net.parameters())


class Quadratic(nn.Module):
    """Logits (q(x), 0) with q = -x^T A x: the loss of class 1 is softplus(q), at 0 of the Hessian -A."""

    def __init__(self, a):
        super().__init__()
        self.a = a

    def forward(self, x):
        q = -torch.einsum("bi,ij,bj->b", x.flatten(1), self.a, x.flatten(1))
        return torch.stack((q, torch.zeros_like(q)), 1)


@pytest.mark.parametrize("values", [[5.0, 1.0, -2.0], [5.0, 1.0, 0.5], [-5.0, 1.0, 2.0]])
def test_the_largest_and_not_that_of_the_largest_magnitude(values):
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    model = Quadratic(q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T)
    x, y = torch.zeros(2, 1, 1, 3, dtype=torch.float64), torch.ones(2, dtype=torch.long)
    found = input_curvature(model, x, y, steps=200)
    torch.testing.assert_close(found, torch.full((2,), -min(values), dtype=torch.float64))


def test_a_loss_without_curvature_has_none():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    nn.init.zeros_(flat[1].weight)
    x, y = samples()
    assert input_curvature(flat, x, y % 3).abs().max() == 0
    assert input_curvature(flat.float(), x.float(), y % 3).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [({"product": "exat"}, "did you mean 'exact'"), ({"steps": 0}, "steps must be 1"), ({"h": 0.0}, "above 0")],
)  # fmt: skip
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        input_curvature(smooth(), *samples(), **change)
