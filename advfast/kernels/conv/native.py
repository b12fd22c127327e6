"""Tensors to pointers, for impl="cpp"."""

from __future__ import annotations

import torch
from torch import Tensor

from advfast import _backend


def _is_nhwc(t: Tensor) -> bool:
    return not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)


def conv2d_input_grad(
    grad: Tensor, weight: Tensor, size: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    nhwc = _is_nhwc(grad)
    if not nhwc:
        grad = grad.contiguous()
    weight = weight.contiguous()
    batch, outputs, out_h, out_w = grad.shape
    layout = torch.channels_last if nhwc else torch.contiguous_format
    shape = (batch, weight.shape[1], *size)
    result = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)
    core = _backend.native()
    assert core is not None  # resolve_impl has checked
    core.conv_input_grad_cpu(
        torch.get_num_threads(), grad.data_ptr(), weight.data_ptr(), result.data_ptr(),
        (batch, weight.shape[1], outputs), (*size, out_h, out_w), tuple(weight.shape[2:]),
        tuple(stride), tuple(padding), int(nhwc), int(nhwc),
    )  # fmt: skip
    return result
