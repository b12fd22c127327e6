"""Schema, fake and device implementations of the conv family. Needs torch alone; implementations load on first use."""

from __future__ import annotations

import functools
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor
from torch.library import define, impl, register_fake

from advfast import _backend

define(
    "advfast::conv2d_input_grad",
    "(Tensor grad, Tensor weight, int[] size, int[] stride, int[] padding, str impl) -> Tensor",
)

_MODULES = {"reference": "reference", "cpp": "native"}


@functools.cache
def _module(name: str) -> ModuleType:
    return import_module(f"advfast.kernels.conv.{_MODULES[name]}")


def _layout(grad: Tensor) -> torch.memory_format:
    """Of the result: NHWC only where the gradient cannot be taken for NCHW."""
    nhwc = not grad.is_contiguous() and grad.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if nhwc else torch.contiguous_format


def _conv2d_input_grad(grad, weight, size, stride, padding, impl):
    float32 = grad.dtype == weight.dtype == torch.float32
    name = _backend.resolve_impl("conv2d_input_grad", impl, grad.device, float32=float32)
    result = _module(name).conv2d_input_grad(grad, weight, size, stride, padding)
    return result.contiguous(memory_format=_layout(grad))


for _device in ("CPU", "CUDA"):
    impl("advfast::conv2d_input_grad", _device)(_conv2d_input_grad)


@register_fake("advfast::conv2d_input_grad")
def _(grad: Tensor, weight: Tensor, size, stride, padding, impl) -> Tensor:
    shape = (grad.shape[0], weight.shape[1], *size)
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=_layout(grad))


conv2d_input_grad_op = torch.ops.advfast.conv2d_input_grad.default
