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


@functools.cache
def _onednn(dtype: torch.dtype) -> bool:
    """Whether torch's packed convolutions with what follows them fused are there; torch.compile uses them too."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        x = weight = torch.ones(1, 1, 3, 3, dtype=dtype)
        settings = ([1, 1], [1, 1], [1, 1], 1)
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *settings)
        y = _packed_forward(x, packed, None, settings, "relu")
        z = _packed_add_(x.clone(), x, packed, None, settings, "relu")
        back = ([1, 1], [0, 0], [1, 1], [1, 1], 1)
        turned = torch.ops.mkldnn._reorder_convolution_transpose_weight(weight, *back)
        t = _packed_transposed(x, turned, back)
        return [float(v[0, 0, 0, 0]) for v in (y, z, t)] == [4.0, 5.0, 4.0]
    except (AttributeError, RuntimeError, TypeError):  # private names of torch: they may change
        return False


def _packed_forward(x, packed, bias, settings, after):
    return torch.ops.mkldnn._convolution_pointwise.default(
        x, packed, bias, *settings, after, [], ""
    )


def _packed_transposed(gradient, packed, settings):
    return torch.ops.mkldnn._convolution_transpose_pointwise.default(
        gradient, packed, None, *settings, "none", [], ""
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
        self._weight: Tensor = weights.narrow(weight).contiguous(memory_format=self._layout)
        self._outputs, self._kernel = self._weight.shape[0], self._weight.shape[2:]
        self._bias = None if bias is None else weights.narrow(bias)
        self._stride, self._padding = settings["stride"], settings["padding"]
        self._dilation, self._groups = settings["dilation"], settings["groups"]
        self._settings = (self._padding, self._stride, self._dilation, self._groups)
        # Of the first layer; in float32 also where the network has 16 bits.
        self._narrow: Tensor | None = None
        if (
            weights.device.type == "cpu"
            and weights.dtype != torch.float64
            and self._weight.shape[1] <= MOST_CHANNELS
            and self._groups == 1
            and self._dilation == [1, 1]
        ):
            self._narrow = self._weight.float()
        self.fused = (
            weights.nhwc
            and weights.device.type == "cpu"
            and torch.backends.mkldnn.enabled
            and _onednn(weights.dtype)
        )
        self._dtype = weights.dtype
        self._packed: Tensor | None = None
        self._turned: Tensor | None = None
        self._rest: list[int] | None = None
        """Rows and columns of the image that no output of a strided convolution sees."""

    def forward(self, x: Tensor, other: Tensor | None, relu: bool, overwrite: bool) -> Tensor:
        """`overwrite`: `other` may be written to. The ReLU is applied only if `fused`."""
        x = x.to(self._dtype)
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
                x.shape[2:], self._padding, self._dilation, self._kernel, self._stride,
                strict=True,
            )
        ]  # fmt: skip
        return (x.shape[0], self._outputs, *sides)

    def backward(self, gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
        """d loss / d x, for x of `shape`."""
        if self._narrow is not None:
            return conv2d_input_grad_op(
                gradient.float(), self._narrow, list(shape[2:]), self._stride, self._padding, "auto"
            )
        if self.fused and self._groups == 1:
            return self._packed_backward(gradient, shape)
        # Read for its shape alone, but in any other memory order it would be copied.
        image = torch.empty(
            shape, dtype=gradient.dtype, device=gradient.device, memory_format=self._layout
        )
        result, _, _ = torch.ops.aten.convolution_backward(
            gradient, image, self._weight, None, self._stride, self._padding, self._dilation, False,
            [0, 0], self._groups, [True, False, False],
        )  # fmt: skip
        return result

    def _packed_backward(self, gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The same as the transposed convolution that it is, with its weights packed once."""
        if self._rest is None:
            self._rest = [
                side - ((out - 1) * stride - 2 * pad + step * (kernel - 1) + 1)
                for side, out, stride, pad, step, kernel in zip(
                    shape[2:], gradient.shape[2:], self._stride, self._padding, self._dilation,
                    self._kernel, strict=True,
                )
            ]  # fmt: skip
        settings = (self._padding, self._rest, self._stride, self._dilation, self._groups)
        if self._turned is None:
            self._turned = torch.ops.mkldnn._reorder_convolution_transpose_weight(
                self._weight, *settings, list(gradient.shape)
            )
            # Both forms of it are there now.
            del self._weight
        return _packed_transposed(gradient, self._turned, settings)


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
