"""Tensors to pointers, for impl="cpp"."""

from __future__ import annotations

import torch
from torch import Tensor

from advfast import _backend

_DTYPES = {torch.float32: 0, torch.float64: 1}
_NORMS = {"linf": 0, "l2": 1, "l1": 2}


def hyperplane_project(points: Tensor, w: Tensor, b: Tensor, norm: str) -> Tensor:
    out = torch.empty_like(points)
    core = _backend.native()
    assert core is not None  # resolve_impl has checked
    core.hyperplane_project_cpu(
        torch.get_num_threads(), points.data_ptr(), w.data_ptr(), b.data_ptr(), out.data_ptr(),
        points.shape[0], points.shape[1:].numel(), _DTYPES[points.dtype], _NORMS[norm],
    )  # fmt: skip
    return out
