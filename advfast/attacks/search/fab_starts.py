"""Where FAB's runs begin: at the image, and for restarts half-way out in the ball."""

from __future__ import annotations

import torch
from torch import Tensor

from advfast.kernels import random_start


def keyed(x0: Tensor, eps: float, norm: str, *, seed: int, stream: int, ids: Tensor) -> Tensor:
    """A random point of the ball of radius eps / 2, keyed by (seed, sample id, stream)."""
    return random_start(x0, eps=eps / 2, norm=norm, seed=seed, offset=stream, sample_ids=ids)


def published(x0: Tensor, eps: float, norm: str, generator: torch.Generator) -> Tensor:
    """The draws of the published implementation on a CPU, for a batch as a whole: at a distance of eps / 2."""
    if norm == "linf":
        t = 2 * torch.rand(x0.shape, generator=generator) - 1
        size = t.flatten(1).abs().amax(1)
    else:
        t = torch.randn(x0.shape, generator=generator)
        size = (t**2).flatten(1).sum(1).sqrt() if norm == "l2" else t.flatten(1).abs().sum(1)
    delta = eps * t / size.view(-1, *[1] * (t.dim() - 1)) * 0.5
    return torch.empty_like(x0).copy_((x0 + delta.to(x0)).clamp(0.0, 1.0))
