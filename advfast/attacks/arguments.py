"""The optional arguments of a call of an attack, as the loop takes them."""

from __future__ import annotations

import torch
from torch import Tensor


def _check_device(name: str, t: object, x0: Tensor) -> Tensor:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
    if t.device != x0.device:
        raise ValueError(f"{name} is on {t.device} but images are on {x0.device}")
    return t


def mask_of(mask: object, x0: Tensor) -> Tensor:
    """bool at x0's rank; True where a pixel may change."""
    mask = _check_device("mask", mask, x0)
    rank = x0.dim()
    shape = (1,) * (rank - mask.dim()) + tuple(mask.shape)
    if len(shape) != rank or any(a not in (1, b) for a, b in zip(shape, x0.shape, strict=True)):
        raise ValueError(
            f"mask must broadcast over images of shape {tuple(x0.shape)}, got shape {tuple(mask.shape)}"
        )
    return (mask if mask.dtype == torch.bool else mask != 0).reshape(shape)


def first_iterate(init: object, x0: Tensor, restarts: int) -> Tensor:
    """A copy of init in x0's dtype and layout."""
    init = _check_device("init", init, x0)
    if init.shape != x0.shape:
        raise ValueError(
            f"init must have the shape of images, {tuple(x0.shape)}, got {tuple(init.shape)}"
        )
    if not init.is_floating_point():
        raise TypeError(f"init must be a float tensor, got {init.dtype}")
    if restarts > 1:
        raise ValueError(
            f"init is one start: with restarts={restarts} every run would be the same; set restarts=1"
        )
    return torch.empty_like(x0).copy_(init.detach())


def ids_of(sample_ids: object, x0: Tensor) -> Tensor:
    sample_ids = _check_device("sample_ids", sample_ids, x0)
    if sample_ids.dtype != torch.int64 or sample_ids.shape != x0.shape[:1]:
        raise ValueError(
            f"sample_ids must be int64 of shape ({x0.shape[0]},), got {sample_ids.dtype} of shape "
            f"{tuple(sample_ids.shape)}"
        )
    return sample_ids
