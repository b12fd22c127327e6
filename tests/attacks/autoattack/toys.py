"""A linear model, and attacks of a few lines, so that the driver can be looked at by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advfast.attacks.search.base import Found, SearchAttack


def linear(classes: int = 4, inputs: int = 12) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes)).eval()


def samples(model: nn.Module, n: int = 40, shape: tuple[int, ...] = (3, 2, 2)):
    """Images, and labels that the model has right but for every seventh."""
    images = torch.rand(n, *shape, generator=torch.Generator().manual_seed(2))
    labels = model(images).argmax(1)
    labels[::7] = (labels[::7] + 1) % 4
    return images, labels


CALLS: list[tuple[str, list[int]]] = []
"""(attack, numbers of the samples) of every call."""


class Corners(SearchAttack):
    """Some corners of the ball, drawn by sample number."""

    tries = 2

    def search(self, oracle, points, watch=None):
        CALLS.append((type(self).__name__, points.ids.tolist()))
        x, success = points.x.clone(), torch.zeros_like(points.labels, dtype=torch.bool)
        for step in range(self.tries):
            signs = torch.stack([self._signs(int(i), step, x[0]) for i in points.ids])
            found = (points.x + self.eps * signs.to(x)).clamp(0, 1)
            hit = (oracle.logits(found).argmax(1) != points.labels) & ~success
            x[hit], success = found[hit], success | hit
            if watch is not None:
                watch((step + 1) / self.tries)
        return Found(x, success)

    def _signs(self, number: int, step: int, like: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1000 * number + step)
        return torch.randint(2, like.shape, generator=generator) * 2 - 1


class MoreCorners(Corners):
    tries = 30


class Stops(MoreCorners):
    """Raises at its call of a given number."""

    left = 10**9
    error: BaseException = KeyboardInterrupt()

    def search(self, oracle, points, watch=None):
        type(self).left -= 1
        if self.left <= 0:
            raise self.error
        return super().search(oracle, points, watch)
