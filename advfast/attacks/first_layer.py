"""The input gradient of a network's first convolution, without the slow path of the library behind torch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from advfast import _backend
from advfast.kernels import conv2d_input_grad

MOST_CHANNELS = 4
"""Of the input. Beyond, oneDNN's own backward pass is the faster one."""


class _InputOnlyConvolution(torch.autograd.Function):
    """conv2d that keeps its weight for the backward pass and nothing else, and gives no weight gradient."""

    @staticmethod
    def forward(ctx, image, weight, bias, stride, padding):
        ctx.save_for_backward(weight)
        ctx.settings = tuple(image.shape[2:]), stride, padding
        return torch.conv2d(image, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        size, stride, padding = ctx.settings
        gradient = conv2d_input_grad(grad, weight, size, stride=stride, padding=padding)
        return gradient, None, None, None, None


class _Redirect(TorchFunctionMode):
    """While entered, first convolutions are `_InputOnlyConvolution`."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.conv2d:
            settings = _settings(*args, **(kwargs or {}))
            if settings is not None:
                return _InputOnlyConvolution.apply(*settings)
        return function(*args, **(kwargs or {}))


def _settings(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Any, ...] | None:
    """(image, weight, bias, stride, padding) of a convolution that the kernel is made for; None for any other."""
    if (
        input.dim() != 4
        or input.shape[1] > MOST_CHANNELS
        or not input.requires_grad
        or not torch.is_grad_enabled()
        or input.dtype != torch.float32
        or weight.dtype != torch.float32
        or groups != 1
        or isinstance(padding, str)
        or _pair(dilation) != (1, 1)
        or torch.is_autocast_enabled("cpu")
    ):
        return None
    return input, weight, bias, _pair(stride), _pair(padding)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def fast_first_layer(model: object, x: Tensor) -> AbstractContextManager:
    """Redirects the first convolution of `model` while entered, where that is faster.

    That is on a CPU with the native core. A network that torch compiles is left alone: what is traced must not depend
    on who traces it.
    """
    if x.device.type != "cpu" or x.dim() != 4 or _backend.native() is None:
        return nullcontext()
    if not isinstance(model, nn.Module):
        return nullcontext()
    modules = list(model.modules())
    if not any(isinstance(m, nn.Conv2d) and m.in_channels <= MOST_CHANNELS for m in modules):
        return nullcontext()
    # Marks of torch.compile; asking for its classes would import it.
    if any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in modules):
        return nullcontext()
    return _Redirect()
