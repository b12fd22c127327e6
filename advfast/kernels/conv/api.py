"""Gradient of a convolution with respect to its input: what callers see, with its checks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .ops import conv2d_input_grad_op


def conv2d_input_grad(
    grad: Tensor,
    weight: Tensor,
    size: Sequence[int],
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    impl: str = "auto",
) -> Tensor:
    """d loss / d input of ``conv2d(input, weight, stride=stride, padding=padding)``.

    Made for the first convolution of a network: of 1 or 3 input channels, where the libraries behind torch take several
    times as long as for the forward pass. On a GPU the reference, which is cuDNN's, serves.

    Args:
        grad: [B, O, H', W'] d loss / d output.
        weight: [O, C, kH, kW].
        size: (H, W) of the input.
        stride, padding: of the convolution, (vertical, horizontal); one group, dilation 1.
        impl: "auto", "reference" (torch's) or "cpp" (CPU, float32).

    Returns:
        [B, C, H, W] in the memory format of `grad` (NCHW where it is both). The sum over O is in order: the same bits
        for any number of threads and instruction set; they differ from the reference's by rounding.

    Raises:
        ValueError: shapes that do not belong together.
        RuntimeError: `impl` cannot run here.
    """
    if grad.dim() != 4 or weight.dim() != 4 or grad.shape[1] != weight.shape[0]:
        raise ValueError(
            "conv2d_input_grad: grad must be [B, O, H', W'] and weight [O, C, kH, kW], got "
            f"{tuple(grad.shape)} and {tuple(weight.shape)}"
        )
    for name, pair, least in (("size", size, 1), ("stride", stride, 1), ("padding", padding, 0)):
        if len(pair) != 2 or min(pair) < least:
            raise ValueError(
                f"conv2d_input_grad: {name} must be two integers >= {least}, got {pair}"
            )
    out = [
        (side + 2 * pad - kernel) // step + 1
        for side, pad, kernel, step in zip(size, padding, weight.shape[2:], stride, strict=True)
    ]
    if list(grad.shape[2:]) != out:
        raise ValueError(
            f"conv2d_input_grad: an input of {tuple(size)} gives outputs of {tuple(out)}, grad has "
            f"{tuple(grad.shape[2:])}"
        )
    return conv2d_input_grad_op(grad, weight, list(size), list(stride), list(padding), impl)
