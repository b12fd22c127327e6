"""Random starts of other libraries, draw for draw."""

from __future__ import annotations

import torch
from torch import Tensor

from advfast.kernels import project_
from advfast.kernels.pgd.api import Bounds, Number


def of_torchattacks(x0: Tensor, *, eps: Number, norm: str, bounds: Bounds, impl: str) -> Tensor:
    """The draws of torchattacks.PGD and PGDL2 from torch's generator, in their order."""
    if norm == "linf":
        if isinstance(eps, Tensor):
            start = x0 + torch.empty_like(x0).uniform_(-1, 1) * eps
        else:
            start = x0 + torch.empty_like(x0).uniform_(-eps, eps)
    else:
        delta = torch.empty_like(x0).normal_()
        size = delta.flatten(1).norm(p=2, dim=1).reshape(-1, *[1] * (x0.dim() - 1))
        radius = torch.zeros_like(size).uniform_(0, 1)
        start = x0 + delta * (radius / size * eps)
    return project_(start, x0, eps=eps, norm=norm, bounds=bounds, impl=impl)
