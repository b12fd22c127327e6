"""The input gradient of a network's first convolution, without the slow path of the library behind torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

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


class _Redirect:
    """While entered, the given convolutions are `_InputOnlyConvolution`.

    By an attribute of each instance: only these few calls cost anything, and leaving takes it away again.
    """

    def __init__(self, convolutions: list[nn.Conv2d]) -> None:
        self._forwards = [(module.__dict__, _forward_of(module)) for module in convolutions]

    def __enter__(self) -> None:
        for attributes, forward in self._forwards:
            attributes["_conv_forward"] = forward

    def __exit__(self, *exc: object) -> None:
        for attributes, _ in self._forwards:
            attributes.pop("_conv_forward", None)


def _forward_of(module: nn.Conv2d) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """What stands in for nn.Conv2d._conv_forward."""
    own = module._conv_forward
    stride, padding = module.stride, module.padding

    def forward(image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if (
            image.dim() == 4
            and image.requires_grad
            and torch.is_grad_enabled()
            and image.dtype == weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
        ):
            return _InputOnlyConvolution.apply(image, weight, bias, stride, padding)
        return own(image, weight, bias)

    return forward


def _is_meant(module: nn.Conv2d) -> bool:
    """A convolution of few channels that computes as nn.Conv2d does, of the kind that the kernel is made for."""
    return (
        type(module).forward is nn.Conv2d.forward
        and type(module)._conv_forward is nn.Conv2d._conv_forward
        and "_conv_forward" not in module.__dict__
        and module.in_channels <= MOST_CHANNELS
        and module.groups == 1
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def fast_first_layer(model: object, x: Tensor) -> AbstractContextManager:
    """The first convolution of `model` computes its input gradient by our kernel while this is entered.

    On a CPU with the native core; elsewhere, and for other layers, nothing changes. While it is entered, no gradient
    reaches the weights of that convolution. A network that torch compiles is left alone: what is traced must not depend
    on who traces it.
    """
    if x.device.type != "cpu" or x.dim() != 4 or _backend.native() is None:
        return nullcontext()
    if not isinstance(model, nn.Module):
        return nullcontext()
    modules = list(model.modules())
    # Marks of torch.compile; asking for its classes would import it.
    if any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in modules):
        return nullcontext()
    meant = [m for m in modules if isinstance(m, nn.Conv2d) and _is_meant(m)]
    return _Redirect(meant) if meant else nullcontext()
