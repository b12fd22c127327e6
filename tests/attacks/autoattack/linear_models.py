"""Linear networks that are robust to some degree, and which of their samples are: in closed form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn


def digits(classes: int = 10, low: float = 0.0, high: float = 1.0) -> tuple[Tensor, Tensor]:
    """Images [1797, 1, 8, 8] in [low, high]; two classes are the digits below 5 and the others."""
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    labels = torch.from_numpy(data.target).long()
    return low + (high - low) * images, labels if classes == 10 else (labels >= 5).long()


def trained(
    images: Tensor, labels: Tensor, classes: int, eps: float, norm: str = "linf", steps: int = 150
) -> nn.Module:
    """Trained on single steps of the attack, of which one is all that a linear model needs but for the softmax."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), classes))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(steps):
        x = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), labels, reduction="sum"), x)
        if norm == "linf":
            step = eps * gradient.sign()
        else:
            step = eps * gradient / (gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1e-12)
        optimizer.zero_grad()
        F.cross_entropy(model((images + step).clamp(0, 1)), labels).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def margins(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, norm: str = "linf"
) -> Tensor:
    """[N] float64: the smallest margin z_y - z_j that a point of the ball and the box has; above 0 is robust.

    linf: each pixel by itself goes to the end of its range that lowers the margin. l2, l1: by the dual norm, which
    takes a box that no point of the ball leaves.
    """
    layer = model[1]
    weight, bias = layer.weight.double(), layer.bias.double()
    x = images.double().flatten(1)
    logits = x @ weight.t() + bias
    found = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for other in range(len(weight)):
        u = weight[labels] - weight[other]
        margin = logits.gather(1, labels[:, None])[:, 0] - logits[:, other]
        if norm == "linf":
            low, high = (-x).clamp(min=-eps), (1 - x).clamp(max=eps)
            worst = margin + torch.minimum(low * u, high * u).sum(1)
        else:
            assert x.min() >= eps and x.max() <= 1 - eps
            dual = u.norm(dim=1) if norm == "l2" else u.abs().amax(1)
            worst = margin - eps * dual
        found = torch.where(labels == other, found, torch.minimum(found, worst))
    return found
