"""The one inner loop: forward, gradient with respect to the input alone, fused step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from advfast.graphs import nvtx_range
from advfast.kernels import pgd_step_, project_
from advfast.kernels.pgd.api import Bounds, Number

_SIXTEEN_BIT = (torch.float16, torch.bfloat16)


def _rescaled_gradient(
    logits: Tensor, model_input: Tensor, loss: Callable[[Tensor], Tensor]
) -> Tensor:
    """The input gradient through a 16-bit network, each sample's scaled by a power of two.

    Loss and softmax are taken in float32, and what enters the network is brought to about 1: a confident sample's
    gradient would underflow to zero, and the sample would look robust. Directions do not change.
    """
    wide = logits.detach().float().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(wide).sum(), wide)
    largest = gradient.abs().amax(1, keepdim=True)
    scale = torch.exp2(-torch.floor(torch.log2(torch.where(largest > 0, largest, 1.0))))
    (result,) = torch.autograd.grad(logits, model_input, (gradient * scale).to(logits.dtype))
    return result


def input_gradient(
    logits: Tensor, model_input: Tensor, loss: Callable[[Tensor], Tensor], sixteen_bit: bool
) -> Tensor:
    """d loss / d input, [B, ...]; no parameter gradient is computed and no .grad is touched."""
    if sixteen_bit or logits.dtype in _SIXTEEN_BIT:
        return _rescaled_gradient(logits, model_input, loss)
    (gradient,) = torch.autograd.grad(loss(logits).sum(), model_input)
    return gradient


def _in_layout_of(x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient as the fused step takes it; a network may hand it back in another memory format."""
    if gradient.stride() == x.stride() or (x.is_contiguous() and gradient.is_contiguous()):
        return gradient
    return torch.empty_like(x, dtype=gradient.dtype).copy_(gradient)


def ascend(
    forward: Callable[[Tensor], Tensor],
    x: Tensor,  # [B, ...] start, float32 | float64; changed in place
    x0: Tensor,  # [B, ...] like x
    loss: Callable[[Tensor], Tensor],
    *,
    steps: int,
    alpha: Number,
    eps: Number,
    norm: str,
    bounds: Bounds,
    l2_order: str,
    input_dtype: torch.dtype,
    sixteen_bit: bool,
    nonfinite: Tensor,
    impl: str,
) -> Tensor:
    """`steps` PGD steps on x; needs grad mode on.

    Args:
        forward: model input of `input_dtype` -> logits [B, K].
        loss: logits -> [B] or a scalar, to be raised.
        input_dtype: dtype that the model takes; another one than x's is written by the fused step.
        sixteen_bit: the network computes in 16 bits (autocast); also assumed from the logits.
        nonfinite: int64, counts non-finite gradient entries.

    Returns:
        x.
    """
    separate = None if input_dtype == x.dtype else torch.empty_like(x, dtype=input_dtype)
    if separate is not None and steps:
        project_(x, x0, eps=eps, norm=norm, bounds=bounds, out=separate, impl=impl)
    for _ in range(steps):
        with nvtx_range("advfast.step"):
            model_input = (x if separate is None else separate).detach().requires_grad_()
            logits = forward(model_input)
            gradient = input_gradient(logits, model_input, loss, sixteen_bit)
            del model_input, logits
            pgd_step_(
                x,
                _in_layout_of(x, gradient),
                x0,
                alpha=alpha,
                eps=eps,
                norm=norm,
                bounds=bounds,
                out=separate,
                nonfinite=nonfinite,
                l2_order=l2_order,
                impl=impl,
            )
    return x
