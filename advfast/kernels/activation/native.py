"""Tensors to pointers, for impl="cpp"."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advfast import _backend

_DTYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 3}


def _core() -> Any:
    core = _backend.native()
    assert core is not None  # resolve_impl has checked
    return core


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _channels(x: Tensor) -> tuple[int, int, int]:
    """Channels, positions and layout (0: NCHW)."""
    return x.shape[1], x.shape[2:].numel(), int(not x.is_contiguous())


def _bits(x: Tensor) -> Tensor:
    return torch.empty((x.numel() + 7) // 8, dtype=torch.uint8)


def positive_bits(y: Tensor) -> Tensor:
    bits = _bits(y)
    _core().relu_bits_cpu(
        torch.get_num_threads(), y.data_ptr(), 0, 0, 0, 0, bits.data_ptr(), y.numel(), 1, 1, 0,
        _DTYPES[y.dtype],
    )  # fmt: skip
    return bits


def relu_bits_(y: Tensor, other: Tensor | None) -> Tensor:
    bits, at = _bits(y), y.data_ptr()
    _core().relu_bits_cpu(
        torch.get_num_threads(), at, _address(other), 0, 0, at, bits.data_ptr(), y.numel(), 1, 1, 0,
        _DTYPES[y.dtype],
    )  # fmt: skip
    return bits


def affine_relu_bits(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    y, bits = torch.empty_like(x), _bits(x)
    _core().relu_bits_cpu(
        torch.get_num_threads(), x.data_ptr(), 0, scale.data_ptr(), shift.data_ptr(), y.data_ptr(),
        bits.data_ptr(), x.numel(), *_channels(x), _DTYPES[x.dtype],
    )  # fmt: skip
    return y, bits


def gate_(grad: Tensor, bits: Tensor, scale: Tensor | None, other: Tensor | None) -> None:
    at = grad.data_ptr()
    channels = (1, 1, 0) if scale is None else _channels(grad)
    _core().gate_cpu(
        torch.get_num_threads(), at, _address(other), _address(scale), 0, at, bits.data_ptr(),
        grad.numel(), *channels, _DTYPES[grad.dtype],
    )  # fmt: skip
