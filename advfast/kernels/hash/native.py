"""Tensors to pointers, for impl="cpp"."""

from __future__ import annotations

import torch
from torch import Tensor

from advfast import _backend

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def row_hash(x: Tensor) -> Tensor:
    rows = x.shape[0]
    out = torch.empty(rows, dtype=torch.int64)
    core = _backend.native()
    assert core is not None  # resolve_impl has checked
    core.row_hash_cpu(
        torch.get_num_threads(), x.data_ptr(), out.data_ptr(), rows, x.shape[1:].numel(),
        _DTYPES[x.dtype],
    )  # fmt: skip
    return out
