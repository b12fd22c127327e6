"""A small network trained on adversarial digits, for tests that compare attacks on it. Trained once a process."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

TRAINING = 1300


def digits() -> tuple[Tensor, Tensor]:
    """Images [1797, 1, 8, 8] and classes."""
    data = load_digits()
    return torch.tensor(data.images / 16.0, dtype=torch.float32)[:, None], torch.tensor(data.target)


@functools.cache
def robust_cnn() -> nn.Sequential:
    """Against linf 0.1, with FGSM from random starts; trained by hand, with no code of the library."""
    images, labels = digits()
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 24, 3, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(24 * 9, 10),
        )  # fmt: skip
        optimiser = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(12):
            for rows in torch.randperm(TRAINING).split(50):
                x, y = images[rows], labels[rows]
                noisy = (x + 0.1 * (2 * torch.rand_like(x) - 1)).requires_grad_()
                (gradient,) = torch.autograd.grad(F.cross_entropy(net(noisy), y), noisy)
                moved = torch.clamp(noisy + 0.1 * gradient.sign() - x, -0.1, 0.1)
                optimiser.zero_grad()
                F.cross_entropy(net((x + moved).detach().clamp(0, 1)), y).backward()
                optimiser.step()
    return net.eval()


def held_out(count: int) -> tuple[Tensor, Tensor]:
    """Images that the network was not trained on."""
    images, labels = digits()
    return images[TRAINING:][:count], labels[TRAINING:][:count]
