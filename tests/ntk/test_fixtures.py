"""Kernels that neural-tangents computed, stored by benchmarks/ntk_fixtures.py, against ours: float64, own weights."""

from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advfast.ntk import ntk

FIXTURES = Path(__file__).parent / "fixtures"


def mlp():
    return nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 9), nn.ReLU(), nn.Linear(9, 3))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 5, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(5, 4, (1, 3), padding=(0, 1))
        self.linear = nn.Linear(80, 3)

    def forward(self, x):
        return self.linear(torch.tanh(self.conv2(torch.relu(self.conv1(x)))).flatten(1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.linear = nn.Linear(6, 4)

    def forward(self, x):
        x = self.conv1(x)
        return self.linear((x + self.conv2(torch.relu(self.bn(x)))).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.empty(5, 6))
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.query, self.key, self.value, self.projection = (nn.Linear(6, 6) for _ in range(4))
        self.mlp1, self.mlp2, self.linear = nn.Linear(6, 10), nn.Linear(10, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = x + self.positions
        normal = self.norm1(x)
        mixed = F.scaled_dot_product_attention(
            self.query(normal), self.key(normal), self.value(normal)
        )
        x = x + self.projection(mixed)
        x = x + self.mlp2(torch.tanh(self.mlp1(self.norm2(x))))
        return self.linear(x.mean(1))


NETWORKS = {
    "mlp": mlp, "convolutions": Convolutions, "residual": Residual, "attention": Attention,
}  # fmt: skip


def load(name):
    """(network with the stored weights, images, the stored kernel)."""
    stored = dict(numpy.load(FIXTURES / f"{name}.npz"))
    assert str(stored.pop("made_by")).startswith("neural-tangents")
    tensors = {key: torch.from_numpy(value) for key, value in stored.items()}
    images, expected = tensors.pop("images"), tensors.pop("kernel")
    model = NETWORKS[name]().double().eval()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)
    return model, images, expected


@pytest.mark.parametrize("method", ["auto", "M", "C", "G"])
@pytest.mark.parametrize("name", NETWORKS)
def test_kernel_is_that_of_neural_tangents(name, method):
    model, images, expected = load(name)
    got = ntk(model, images, method=method).tensor
    assert got.dtype == torch.float64 and got.shape == expected.shape
    assert (got - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("name", NETWORKS)
def test_two_sets_of_images_and_the_sum_of_the_logits(name):
    model, images, expected = load(name)
    n = len(images)
    got = ntk(model, images[: n - 1], images[1:], readout="sum").tensor
    wanted = expected.sum((2, 3))[: n - 1, 1:]
    assert got.shape == (n - 1, n - 1, 1, 1)
    assert (got[..., 0, 0] - wanted).norm() <= 1e-10 * wanted.norm()


def test_fixtures_are_small_and_all_used():
    files = sorted(path.stem for path in FIXTURES.glob("*"))
    assert files == sorted(NETWORKS)
    assert all(path.stat().st_size < 100_000 for path in FIXTURES.glob("*"))
