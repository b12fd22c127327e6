"""Labels as what a kernel is compared with, and centring."""

from __future__ import annotations

import torch
from torch import Tensor


def one_hot(y: Tensor, classes: int | None = None, device: torch.device | None = None) -> Tensor:
    """Class indices int [N] -> float64 [N, C]."""
    if y.is_floating_point() or y.dim() != 1 or not len(y):
        raise ValueError(f"y must be class indices [N], got {y.dtype} of shape {tuple(y.shape)}")
    y = y.detach().to(device, torch.int64)
    found = int(y.max()) + 1
    if int(y.min()) < 0 or found > (classes or found):
        raise ValueError(
            f"y must be class indices 0 .. {(classes or found) - 1}, got {int(y.min())} .. {found - 1}"
        )
    return torch.nn.functional.one_hot(y, classes or found).double()


def targets(
    y: Tensor, n: int, *, classes: int | None = None, device: torch.device | None = None
) -> Tensor:
    """Labels as float64 [N, C] targets, one-hot for classes, less their mean over the samples.

    Args:
        classes: C, where it is given by the readouts.

    Raises:
        TypeError, ValueError: not N labels, not of C classes, or all the same.
    """
    if not isinstance(y, Tensor):
        raise TypeError(f"y must be a tensor of labels, got {type(y).__name__}")
    if y.dim() not in (1, 2) or len(y) != n or (y.dim() == 2 and not y.is_floating_point()):
        raise ValueError(
            f"y must be class indices [{n}] or float targets [{n}, C], got {y.dtype} of shape {tuple(y.shape)}"
        )
    if y.is_floating_point():
        t = y.detach().to(device, torch.float64).reshape(n, -1)
        if not bool(t.isfinite().all()):
            raise ValueError("y holds NaN or infinity")
    else:
        t = one_hot(y, classes, device)
    if classes is not None and t.shape[1] != classes:
        raise ValueError(
            f"y must have {classes} columns, one for each of the kernel's readouts, got {t.shape[1]}"
        )
    t = t - t.mean(0)
    if not bool(t.any()):
        raise ValueError("y must not be the same for all samples: nothing can be aligned with it")
    return t


def centred(k: Tensor, r: int = 1) -> Tensor:
    """[..., N r, N r] of Jacobians less their mean over the samples, each of the r readouts for itself."""
    blocks = k.unflatten(-1, (-1, r)).unflatten(-3, (-1, r))  # [..., N, r, N, r]
    blocks = blocks - blocks.mean(-4, keepdim=True)
    blocks = blocks - blocks.mean(-2, keepdim=True)
    return blocks.reshape(k.shape)
