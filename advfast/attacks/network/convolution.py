"""One convolution as it is run: weights folded from the live ones, in the order and packing that is fastest here."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, fx

from advfast.attacks.first_layer import MOST_CHANNELS
from advfast.kernels.conv.ops import conv2d_input_grad_op

from .lower import Graph, Layer, conv_settings, norm_settings
from .run import Unfit, Weights

_FEW_PIXELS = 4096
"""Of all outputs of a layer. Below, the library's reordering of the weights shows beside the arithmetic."""
_REORDERINGS = 4
"""What packing for the backward pass costs, in reorderings."""


@functools.cache
def _onednn() -> bool:
    """Whether torch's packed convolutions with what follows them fused are there; torch.compile uses them too."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        x, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, [1, 1], [1, 1], [1, 1], 1)
        y = _packed_forward(x, packed, None, ([1, 1], [1, 1], [1, 1], 1), "relu")
        z = _packed_add_(
            torch.ones(1, 1, 3, 3), x, packed, None, ([1, 1], [1, 1], [1, 1], 1), "relu"
        )
        return float(y[0, 0, 1, 1]) == 9.0 and float(z[0, 0, 0, 0]) == 5.0
    except (AttributeError, RuntimeError, TypeError):  # private names of torch: they may change
        return False


def _packed_forward(x, packed, bias, settings, after):
    return torch.ops.mkldnn._convolution_pointwise.default(
        x, packed, bias, *settings, after, [], ""
    )


def _packed_add_(other, x, packed, bias, settings, after):
    return torch.ops.mkldnn._convolution_pointwise_.binary(
        other, x, packed, bias, *settings, "add", 1.0, after, [], ""
    )


class Convolution:
    """Weights of one convolution for the length of one attack.

    Attributes:
        fused: the ReLU and the sum are done by the convolution itself.
    """

    def __init__(self, graph: Graph, layer: Layer, weights: Weights) -> None:
        from .steps import affine  # steps imports this module

        settings = conv_settings(graph, layer.source)
        weight = weights.tensor(settings["weight"])
        bias = weights.tensor(settings["bias"])
        assert weight is not None
        norms = [norm_settings(graph, node) for node in layer.norms]
        self._layout = torch.channels_last if weights.nhwc else torch.contiguous_format
        factors: list[Tensor | float] = []
        if norms or layer.scales:
            weight = weights.wide(weight)
            bias = None if bias is None else weights.wide(bias)
        for norm in norms:
            scale, shift = affine(norm, weights)
            factors.append(scale.view(-1, 1, 1, 1))
            bias = shift if bias is None else bias * scale + shift
        for node in layer.scales:
            factors.append(_factor(weight, *graph.constant(node), weights, settings["groups"]))
        if factors:
            # One pass over the weights, to the order in memory that is wanted.
            folded = torch.empty_like(weight, memory_format=self._layout)
            weight = torch.mul(weight, math.prod(factors[1:], start=factors[0]), out=folded)
        self._weight = weights.narrow(weight).contiguous(memory_format=self._layout)
        self._bias = None if bias is None else weights.narrow(bias)
        self._stride, self._padding = settings["stride"], settings["padding"]
        self._dilation, self._groups = settings["dilation"], settings["groups"]
        self._settings = (self._padding, self._stride, self._dilation, self._groups)
        self._first = (
            weights.device.type == "cpu"
            and weights.dtype == torch.float32
            and self._weight.shape[1] <= MOST_CHANNELS
            and self._groups == 1
            and self._dilation == [1, 1]
        )
        self.fused = (
            weights.nhwc
            and weights.device.type == "cpu"
            and weights.dtype == torch.float32
            and torch.backends.mkldnn.enabled
            and _onednn()
        )
        self._passes = weights.passes
        self._packed: Tensor | None = None
        self._turned: Tensor | None = None
        self._decided = False

    def forward(self, x: Tensor, other: Tensor | None, relu: bool, overwrite: bool) -> Tensor:
        """`overwrite`: `other` may be written to. The ReLU is applied only if `fused`."""
        x = x.to(self._weight.dtype)
        if not self.fused:
            y = torch.conv2d(
                x,
                self._weight,
                self._bias,
                self._stride,
                self._padding,
                self._dilation,
                self._groups,
            )
            if other is not None:
                _check_shapes(y, other)
                y.add_(other)
            return y
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(
                self._weight, *self._settings, list(x.shape)
            )
        if other is None:
            after = "relu" if relu else "none"
            return _packed_forward(x, self._packed, self._bias, self._settings, after)
        if not overwrite or not other.is_contiguous(memory_format=torch.channels_last):
            other = other.clone(memory_format=torch.channels_last)
        # Writing into a value of another shape would be wrong without a word.
        _check_shapes_of(self._out_shape(x), other)
        return _packed_add_(
            other, x, self._packed, self._bias, self._settings, "relu" if relu else None
        )

    def _out_shape(self, x: Tensor) -> tuple[int, ...]:
        sides = [
            (side + 2 * pad - step * (kernel - 1) - 1) // stride + 1
            for side, pad, step, kernel, stride in zip(
                x.shape[2:], self._padding, self._dilation, self._weight.shape[2:], self._stride,
                strict=True,
            )
        ]  # fmt: skip
        return (x.shape[0], self._weight.shape[0], *sides)

    def backward(self, gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
        """d loss / d x, for x of `shape`."""
        if self._first:
            return conv2d_input_grad_op(
                gradient, self._weight, list(shape[2:]), self._stride, self._padding, "auto"
            )
        if not self._decided:
            self._decided = True
            self._turned = self._turn(gradient)
        if self._turned is not None:
            side = [kernel - 1 - pad for kernel, pad in zip(
                self._weight.shape[2:], self._padding, strict=True
            )]  # fmt: skip
            return _packed_forward(gradient, self._turned, None, (side, [1, 1], [1, 1], 1), "none")
        # Read for its shape alone, but in any other memory order it would be copied.
        image = torch.empty(
            shape, dtype=gradient.dtype, device=gradient.device, memory_format=self._layout
        )
        result, _, _ = torch.ops.aten.convolution_backward(
            gradient, image, self._weight, None, self._stride, self._padding, self._dilation, False,
            [0, 0], self._groups, [True, False, False],
        )  # fmt: skip
        return result

    def _turn(self, gradient: Tensor) -> Tensor | None:
        """Weights of the convolution that the backward pass is, packed; None where that does not pay."""
        weight = self._weight
        kernel = weight.shape[2:]
        pixels = gradient.shape[0] * gradient.shape[2] * gradient.shape[3]
        if (
            not self.fused
            or self._stride != [1, 1]
            or self._dilation != [1, 1]
            or self._groups != 1
            or any(pad > side - 1 for pad, side in zip(self._padding, kernel, strict=True))
            or pixels > _FEW_PIXELS
            or self._passes <= _REORDERINGS
        ):
            return None
        turned = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
        sides = [side - 1 - pad for side, pad in zip(kernel, self._padding, strict=True)]
        return torch.ops.mkldnn._reorder_convolution_weight(
            turned, sides, [1, 1], [1, 1], 1, list(gradient.shape)
        )


def _factor(
    weight: Tensor, sign: str, constant: Any, weights: Weights, groups: int
) -> Tensor | float:
    """What the weight is multiplied with, for a constant factor of its input channels."""
    if isinstance(constant, fx.Node):
        constant = weights.constants[constant]
    if isinstance(constant, Tensor):
        constant = weights.wide(constant.detach()).to(weight.dtype)
        if constant.numel() > 1:
            channels = weight.shape[1]
            shape = tuple(constant.shape)
            if groups > 1 or shape not in ((channels, 1, 1), (1, channels, 1, 1)):
                raise Unfit("a factor before a convolution is not one a channel")
            constant = constant.reshape(1, -1, 1, 1)
    return 1 / constant if sign == "/" else constant


def _check_shapes(y: Tensor, other: Tensor) -> None:
    _check_shapes_of(tuple(y.shape), other)


def _check_shapes_of(shape: tuple[int, ...], other: Tensor) -> None:
    if shape != tuple(other.shape):
        raise Unfit("it adds values of different shapes")
