"""The activation family: ReLU that keeps one bit a value for its backward pass, each op one pass over memory.

Values may lie in any order in memory as long as they are dense (NCHW, NHWC, ...) and all operands have the same order.
`bits` is a uint8 tensor of ceil(N / 8) bytes in that order: bit i % 8 of byte i / 8 says that value i of the output is
greater than zero, or NaN: as in torch, the forward pass keeps NaN, and the backward pass lets the gradient through
there. Every implementation gives the same bits, of `y` and `grad` too (`reference.py` is the code of the definitions).

16-bit values are computed in float32 and rounded once; their `scale` and `shift` are float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ops import (
    add_relu_bits_op,
    affine_gate_op,
    affine_relu_bits_op,
    gate_op,
    positive_bits_op,
    relu_bits_op,
)

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _is_nhwc(t: Tensor) -> bool:
    if t.dim() == 4:
        return t.is_contiguous(memory_format=torch.channels_last)
    return t.dim() == 5 and t.is_contiguous(memory_format=torch.channels_last_3d)


def _dense(t: Tensor) -> bool:
    if t.is_contiguous() or _is_nhwc(t):
        return True
    expected = 1
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _check(op: str, name: str, t: Tensor) -> None:
    if t.dtype not in _FLOATS:
        raise TypeError(f"{op}: {name} must be a float tensor, got {t.dtype}")
    if t.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{op}: {name} requires grad; pass {name}.detach() or call under no_grad")
    if not _dense(t):
        raise ValueError(
            f"{op}: {name} must be dense in memory, got shape {tuple(t.shape)} with strides "
            f"{t.stride()}; no hidden copy is made: call .contiguous() yourself"
        )


def _check_other(op: str, name: str, other: Tensor | None, x: Tensor) -> None:
    if other is None:
        return
    if other.shape != x.shape or other.dtype != x.dtype or other.device != x.device:
        raise ValueError(
            f"{op}: other must be {x.dtype} of shape {tuple(x.shape)} on {x.device} like {name}, "
            f"got {other.dtype} of shape {tuple(other.shape)} on {other.device}"
        )
    same = other.stride() == x.stride() or (
        # Strides of dimensions of size 1 mean nothing.
        (other.is_contiguous() and x.is_contiguous()) or (_is_nhwc(other) and _is_nhwc(x))
    )
    if not same:
        raise ValueError(
            f"{op}: other must have the strides {x.stride()} of {name}, got {other.stride()}; no "
            "hidden copy is made"
        )


def _check_bits(op: str, bits: Tensor, grad: Tensor) -> None:
    size = (grad.numel() + 7) // 8
    fits = bits.dtype == torch.uint8 and bits.shape == (size,) and bits.is_contiguous()
    if not fits or bits.device != grad.device:
        raise ValueError(
            f"{op}: bits must be a contiguous uint8 tensor of shape ({size},) on {grad.device}, got "
            f"{bits.dtype} of shape {tuple(bits.shape)} on {bits.device}"
        )


def _check_channels(op: str, name: str, x: Tensor, **numbers: Tensor) -> None:
    if not 2 <= x.dim() <= 5 or not (x.is_contiguous() or _is_nhwc(x)):
        raise ValueError(
            f"{op}: {name} must have 2 to 5 dimensions, contiguous or channels_last, got shape "
            f"{tuple(x.shape)} with strides {x.stride()}"
        )
    wanted = torch.float64 if x.dtype == torch.float64 else torch.float32
    for key, t in numbers.items():
        shaped = t.shape == (x.shape[1],) and t.is_contiguous()
        if not shaped or t.dtype != wanted or t.device != x.device:
            raise ValueError(
                f"{op}: {key} must be {wanted} of shape ({x.shape[1]},) on {x.device}, got "
                f"{t.dtype} of shape {tuple(t.shape)} on {t.device}"
            )
        if t.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{op}: {key} requires grad; pass {key}.detach()")


def relu_bits_(y: Tensor, *, impl: str = "auto") -> Tensor:
    """y <- relu(y) in place.

    Args:
        y: a dense float tensor.
        impl: "auto", "reference", "cpp" (CPU; not float64) or "triton" (CUDA).

    Returns:
        bits of the new y.

    Raises:
        ValueError: y is not dense, or requires grad.
        RuntimeError: `impl` cannot run here.
    """
    _check("relu_bits_", "y", y)
    return relu_bits_op(y, impl)


def positive_bits(y: Tensor, *, impl: str = "auto") -> Tensor:
    """The bits of y, for one that has been through its ReLU. Arguments and errors as in `relu_bits_`."""
    _check("positive_bits", "y", y)
    return positive_bits_op(y, impl)


def add_relu_bits_(y: Tensor, other: Tensor, *, impl: str = "auto") -> Tensor:
    """y <- relu(y + other) in place: the end of a residual block.

    Args:
        y, other: dense float tensors of one shape, dtype and order in memory; `other` may be y.
        impl: as in `relu_bits_`.

    Returns:
        bits of the new y.

    Raises:
        ValueError: y is not dense or requires grad, or `other` is not like y.
        RuntimeError: `impl` cannot run here.
    """
    _check("add_relu_bits_", "y", y)
    _check_other("add_relu_bits_", "y", other, y)
    return add_relu_bits_op(y, other, impl)


def gate_(grad: Tensor, bits: Tensor, other: Tensor | None = None, *, impl: str = "auto") -> Tensor:
    """grad <- (bit ? grad + other : 0) in place: the backward pass of a ReLU whose output went two ways.

    Where the bit is 0 the result is exactly 0, whatever the gradient is (as in torch.relu's backward pass).

    Args:
        grad: d loss / d output, dense.
        bits: of the forward pass.
        other: more of the gradient, like `grad`; None: none.
        impl: as in `relu_bits_`.

    Returns:
        grad.

    Raises:
        ValueError: operands that do not belong together.
        RuntimeError: `impl` cannot run here.
    """
    _check("gate_", "grad", grad)
    _check_bits("gate_", bits, grad)
    _check_other("gate_", "grad", other, grad)
    gate_op(grad, bits, other, impl)
    return grad


def affine_relu_bits(
    x: Tensor, scale: Tensor, shift: Tensor, *, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """relu(x * scale + shift) with one number a channel: BatchNorm in eval mode, and the ReLU behind it.

    The product is rounded before the sum (no fused multiply-add).

    Args:
        x: [B, C, ...] of 2 to 5 dimensions, contiguous or channels_last.
        scale, shift: [C], float32 (float64 for float64 values).
        impl: as in `relu_bits_`.

    Returns:
        (y, its bits); y has the memory format of x.

    Raises:
        ValueError: operands that do not belong together.
        RuntimeError: `impl` cannot run here.
    """
    _check("affine_relu_bits", "x", x)
    _check_channels("affine_relu_bits", "x", x, scale=scale, shift=shift)
    return affine_relu_bits_op(x, scale, shift, impl)


def affine_gate_(
    grad: Tensor,
    bits: Tensor,
    scale: Tensor,
    other: Tensor | None = None,
    *,
    impl: str = "auto",
) -> Tensor:
    """grad <- (bit ? grad : 0) * scale + other in place: the backward pass of `affine_relu_bits`.

    `other` is the gradient of a skip connection that leaves before it. Arguments and errors as in `gate_`; `scale` as
    in `affine_relu_bits`.
    """
    _check("affine_gate_", "grad", grad)
    _check_bits("affine_gate_", bits, grad)
    _check_channels("affine_gate_", "grad", grad, scale=scale)
    _check_other("affine_gate_", "grad", other, grad)
    affine_gate_op(grad, bits, scale, other, impl)
    return grad
