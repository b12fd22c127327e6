"""Tensors to pointers: the only caller of `_C`. Serves impl="cpp" on CPU tensors and impl="cuda" on CUDA tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advfast import _backend

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_NORMS = {"linf": 0, "l2": 1, "l1": 2}
_NONE = (0, 0, 0.0)


def _core() -> Any:
    core = _backend.native()
    assert core is not None  # resolve_impl has checked
    return core


def _shape(x: Tensor) -> tuple[int, int, int]:
    """(B, C, S): the channel is the second dimension."""
    channels = x.shape[1] if x.dim() > 1 else 1
    return x.shape[0], channels, x.shape[2:].numel()


def _layout(x: Tensor) -> int:
    return 0 if x.is_contiguous() else 1


def _operand(value: Any, x: Tensor) -> tuple[int, int, float]:
    """(address, mode, number); api.py has brought tensors to x's rank, dtype, device and layout."""
    if not isinstance(value, Tensor):
        return (0, 0, 0.0 if value is None else value)
    if value.numel() == 1:
        return (value.data_ptr(), 1, 0.0)
    if value.shape == x.shape:
        return (value.data_ptr(), 4, 0.0)
    return (value.data_ptr(), 2 if value.shape[0] == x.shape[0] and value.shape[0] > 1 else 3, 0.0)


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _on_device(x: Tensor) -> tuple[str, tuple[int, int] | tuple[int]]:
    """The suffix of the entry point, and its leading arguments: threads, or device and stream."""
    if x.device.type == "cpu":
        return "cpu", (torch.get_num_threads(),)
    index = x.device.index
    # Read here, inside the op: a stream number in traced Python would be the wrong one. Private, but
    # what Triton and inductor use; the public way costs 4 us.
    return "cuda", (index, torch._C._cuda_getCurrentRawStream(index))


def pgd_step_(
    x, grad, x0, *, alpha, eps, lo, hi, norm, l2_order, mask, out, scale, shift, nonfinite
) -> None:
    kind, where = _on_device(x)
    shape = _shape(x)
    scratch = None
    if kind == "cuda" and norm != "linf":
        # From torch's allocator: a CUDA graph's pool owns it.
        size = _core().pgd_scratch_bytes(shape[0], shape[1] * shape[2], _NORMS[norm])
        scratch = torch.empty(size, dtype=torch.uint8, device=x.device)
    affine = scale is not None or shift is not None
    getattr(_core(), f"pgd_step_{kind}")(
        *where, x.data_ptr(), _address(grad), x0.data_ptr(), _address(out), _address(nonfinite),
        _address(scratch), shape, _layout(x), 0 if out is None else _layout(out), _DTYPES[x.dtype],
        0 if grad is None else _DTYPES[grad.dtype], 0 if out is None else _DTYPES[out.dtype],
        _NORMS[norm], l2_order == "box-ball-box", affine,
        _operand(alpha, x), _operand(eps, x), _operand(lo, x), _operand(hi, x),
        _operand(mask, x) if mask is not None else _NONE,
        _operand(1.0 if scale is None else scale, x), _operand(shift, x),
    )  # fmt: skip


def random_start(x0, *, eps, lo, hi, norm, seed, offset, sample_ids) -> Tensor:
    kind, where = _on_device(x0)
    x = torch.empty_like(x0)
    getattr(_core(), f"random_start_{kind}")(
        *where, x.data_ptr(), x0.data_ptr(), seed.data_ptr(), _address(sample_ids), _shape(x0),
        offset, _layout(x0), _DTYPES[x0.dtype], _NORMS[norm],
        _operand(eps, x0), _operand(lo, x0), _operand(hi, x0),
    )  # fmt: skip
    return x
