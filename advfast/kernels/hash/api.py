"""A hash of each sample, to find an iterate that has been there before."""

from __future__ import annotations

import torch
from torch import Tensor

from .ops import row_hash_op

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _rows_are_dense(x: Tensor) -> bool:
    """Whether the rows stand one behind the other, each without gaps."""
    if x.is_contiguous() or x.numel() == 0:
        return True
    expected = 1
    for stride, size in sorted(zip(x.stride()[1:], x.shape[1:], strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return x.shape[0] == 1 or x.stride(0) == expected


def row_hash(x: Tensor, *, impl: str = "auto") -> Tensor:
    """A 64-bit number of the bits of each sample's values, in the order in which they lie in memory.

    Equal rows have equal hashes, on every implementation and device; -0.0 counts as 0.0, and a NaN as its bits. The
    hash depends on the dtype and the memory format. It is no proof of equality, and not made against an adversary.

    Args:
        x: [B, ...] float, dense, the samples one behind the other.
        impl: "auto", "reference", "cpp" (CPU) or "triton" (CUDA).

    Returns:
        int64 [B].

    Raises:
        ValueError: x has no batch dimension or is not dense.
        TypeError: x is not a float tensor.
        RuntimeError: `impl` cannot run here.
    """
    if x.dtype not in _FLOATS:
        raise TypeError(f"row_hash: x must be a float tensor, got {x.dtype}")
    if x.dim() == 0 or not _rows_are_dense(x):
        raise ValueError(
            "row_hash: x must have a batch dimension and be dense in memory, sample by sample, got "
            f"shape {tuple(x.shape)} with strides {x.stride()}; no hidden copy is made"
        )
    return row_hash_op(x, impl)
