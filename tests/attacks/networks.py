"""Small networks and a hand-written PGD that shares no code with the library."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cnn(channels: int = 3, classes: int = 10, dropout: float = 0.3) -> nn.Sequential:
    """A network with BN and dropout for images [B, channels, 12, 12], whose BN has seen some data."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(channels, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Dropout(dropout),
        nn.Conv2d(12, 12, 3, stride=2), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(),
        nn.Linear(12 * 25, classes),
    )  # fmt: skip
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(32, channels, 12, 12))
    return net.eval()


def mlp(inputs: int = 20, classes: int = 4) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, classes)).eval()


def batch(n: int = 16, channels: int = 3, classes: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(n, channels, 12, 12, generator=generator)
    return images, torch.randint(classes, (n,), generator=generator)


def plain_pgd(
    model,
    images: Tensor,
    labels: Tensor,
    eps: float,
    alpha: float,
    steps: int,
    norm: str = "linf",
    order: str = "ball-box",
    start: Tensor | None = None,
    loss=None,
    targeted: bool = False,
) -> Tensor:
    """PGD as it is written by hand: new tensors each step, mean cross-entropy."""
    x = images.clone() if start is None else start.clone()

    def lengths(v: Tensor) -> Tensor:
        return v.flatten(1).norm(dim=1).reshape(-1, *[1] * (v.dim() - 1))

    for _ in range(steps):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = model(x)
            cost = F.cross_entropy(logits, labels) if loss is None else loss(logits, labels).mean()
            (grad,) = torch.autograd.grad(-cost if targeted else cost, x)
        x = x.detach()
        if norm == "linf":
            x = x + alpha * grad.sign()
            x = images + torch.clamp(x - images, -eps, eps)
        else:
            x = x + alpha * grad / (lengths(grad) + 1e-10)
            if order == "box-ball-box":
                x = x.clamp(0, 1)
            delta = x - images
            x = images + delta * torch.clamp(eps / lengths(delta), max=1.0)
        x = x.clamp(0, 1)
    return x.detach()
