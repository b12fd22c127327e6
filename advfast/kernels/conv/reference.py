"""What torch computes: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def conv2d_input_grad(
    grad: Tensor, weight: Tensor, size: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    # Read for its shape alone.
    shape = (grad.shape[0], weight.shape[1], *size)
    image = torch.empty((), dtype=grad.dtype, device=grad.device).expand(shape)
    result, _, _ = torch.ops.aten.convolution_backward(
        grad, image, weight, None, stride, padding, [1, 1], False, [0, 0], 1, [True, False, False]
    )
    return result
