"""Networks on digits, trained in a second, and steps that make them look robust."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import advfast
from advfast import data

EPS = 0.1
SAMPLES = 200


@functools.cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, and the first test images and labels."""
    found = data.load("digits")
    test = found.test
    return found.train.images, found.train.labels, test.images[:SAMPLES], test.labels[:SAMPLES]


def _mlp(classes: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, classes))


def _bn_cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Flatten(), nn.Linear(12 * 16, 10),
    )  # fmt: skip


def trained(make, epochs: int, *, eps: float = 0.0, classes: int = 10) -> nn.Sequential:
    """By Adam; with eps above 0 adversarially, by PGD-3. In eval mode."""
    images, labels, _, _ = digits()
    labels = labels % classes
    torch.manual_seed(0)
    net = make()
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    attack = advfast.PGDAttack(net, eps, max(eps, 0.1) / 2, 3, seed=0)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=order).split(64):
            x = attack(images[rows], labels[rows]) if eps else images[rows]
            net.train()
            loss = F.cross_entropy(net(x), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval()


@functools.cache
def undefended() -> nn.Sequential:
    return trained(_mlp, 10).requires_grad_(False)


@functools.cache
def with_bn() -> nn.Sequential:
    return trained(_bn_cnn, 4).requires_grad_(False)


@functools.cache
def adversarially_trained() -> nn.Sequential:
    return trained(_mlp, 6, eps=0.1).requires_grad_(False)


@functools.cache
def two_classes() -> nn.Sequential:
    return trained(functools.partial(_mlp, 2), 4, classes=2).requires_grad_(False)


class Round(nn.Module):
    """Input quantisation, to `levels` grey levels."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.last = levels - 1

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x * self.last) / self.last


class Scale(nn.Module):
    """Logits of a temperature of 1 / factor: the predictions stay."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Threshold(nn.Module):
    """Activations in steps: what lies between two thresholds is moved to the lower one."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return torch.floor(F.relu(x) / self.step) * self.step


class MeanSparse(nn.Module):
    """Activations close to their mean are set to it (Amini et al., 2024)."""

    def __init__(self, mean: Tensor, width: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("width", width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where((x - self.mean).abs() <= self.width, self.mean.expand_as(x), x)


class Ripple(nn.Module):
    """Adds a wave of a random phase: small in value, steep in slope, and of mean 0 in both."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.02 * torch.sin(300 * x + 2 * torch.pi * torch.rand_like(x))


class ThroughNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().cpu().numpy() ** 1.0).to(x)


class Saturated(nn.Module):
    """A sigmoid so steep that float32 has no slope for it away from the middle."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(1000 * (x - 0.47))


@functools.cache
def behind_saturated() -> nn.Sequential:
    return nn.Sequential(Saturated(), trained(lambda: nn.Sequential(Saturated(), *_mlp()), 6)[1:])


def accuracy(model, images: Tensor, passes: int = 1) -> float:
    """Of the first test images' labels; of a random model the mean of the logits decides."""
    with torch.no_grad():
        logits = sum(model(images) for _ in range(passes))
    return float((logits.argmax(1) == digits()[3]).double().mean())


def robust(model, *, eps: float = EPS, passes: int = 1, steps: int = 20, **options) -> float:
    """Accuracy under PGD with steps of eps / 4."""
    _, _, images, labels = digits()
    attack = advfast.PGDAttack(model, eps, eps / 4, steps, seed=0, **options)
    return accuracy(model, attack(images, labels), passes)
