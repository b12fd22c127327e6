"""The definition, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def _flat(t: Tensor) -> Tensor:
    """[N] the values of a dense tensor in the order of memory."""
    return t.as_strided((t.numel(),), (1,))


def _weights(device: torch.device) -> Tensor:
    return torch.arange(8, device=device, dtype=torch.uint8)


def positive_bits(y: Tensor) -> Tensor:
    passes = ~(_flat(y) <= 0)
    padded = torch.nn.functional.pad(passes.to(torch.uint8), (0, -y.numel() % 8))
    shifted = padded.view(-1, 8) << _weights(y.device)
    return shifted.sum(1, dtype=torch.uint8)


def _unpacked(bits: Tensor, like: Tensor) -> Tensor:
    """The bits as a bool tensor of the shape and strides of `like`."""
    each = (bits[:, None] >> _weights(bits.device)) & 1
    return each.view(-1)[: like.numel()].bool().as_strided(like.shape, like.stride(), 0)


def _per_channel(t: Tensor, like: Tensor) -> Tensor:
    return t.view(1, -1, *[1] * (like.dim() - 2))


def relu_bits_(y: Tensor, other: Tensor | None) -> Tensor:
    if other is not None:
        y.add_(other)
    y.relu_()
    return positive_bits(y)


def affine_relu_bits(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    # In the dtype of scale and shift, which is float32 for 16-bit values.
    y = x * _per_channel(scale, x) + _per_channel(shift, x)
    result = torch.empty_like(x).copy_(y.relu_())
    return result, positive_bits(result)


def gate_(grad: Tensor, bits: Tensor, scale: Tensor | None, other: Tensor | None) -> None:
    mask = _unpacked(bits, grad)
    if scale is None:
        total = grad if other is None else grad + other
        grad.copy_(torch.where(mask, total, 0.0))
        return
    scaled = torch.where(mask, grad, 0.0) * _per_channel(scale, grad)
    grad.copy_(scaled if other is None else scaled + other)
