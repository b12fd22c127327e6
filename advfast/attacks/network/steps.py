"""Layers that run without autograd: forward keeps what backward needs and no more, backward is written out.

A convolution keeps nothing (its weights are there already), a ReLU one bit a value. Gradients arrive as parts that are
added up where they are used, so that the sum at a fork, the gate of the ReLU and the copy are one pass.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from advfast.kernels.activation.ops import (
    add_relu_bits_op,
    affine_gate_op,
    affine_relu_bits_op,
    gate_op,
    positive_bits_op,
    relu_bits_op,
)

from .convolution import Convolution
from .lower import Graph, Layer, linear_settings, norm_settings
from .run import Run, Unfit, Weights

Kept = tuple[Tensor, tuple[int, ...], torch.dtype]
"""Bits of a ReLU, memory order and dtype of its value."""


def like(gradient: Tensor, strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The gradient in the memory order and dtype of the value that it belongs to."""
    if gradient.stride() == strides and gradient.dtype == dtype:
        return gradient
    result = torch.empty_strided(gradient.shape, strides, dtype=dtype, device=gradient.device)
    return result.copy_(gradient)


def packed(x: Tensor) -> Tensor:
    """x, without gaps in memory."""
    nhwc = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if nhwc or x.is_contiguous() else x.contiguous()


def gated(run: Run, slot: int, kept: Kept) -> Tensor | None:
    """The gradient of the value in `slot`, zero where its ReLU was; it may be written to."""
    bits, strides, dtype = kept
    parts = run.take(slot)
    if not parts:
        return None
    total, other = run.split(parts)
    total = like(total, strides, dtype)
    gate_op(total, bits, None if other is None else like(other, strides, dtype), "auto")
    return total


def through_relu(y: Tensor) -> Kept:
    """y <- relu(y)."""
    return relu_bits_op(y, "auto"), y.stride(), y.dtype


def affine(norm: dict[str, Any], weights: Weights) -> tuple[Tensor, Tensor]:
    """(scale, shift) of a BN layer in eval mode, [C] each, in at least float32."""
    mean, var, gamma, beta = (
        weights.tensor(norm[name]) for name in ("running_mean", "running_var", "weight", "bias")
    )
    assert mean is not None and var is not None
    scale = torch.rsqrt(weights.wide(var) + norm["eps"])
    if gamma is not None:
        scale = weights.wide(gamma) * scale
    shift = -weights.wide(mean) * scale
    return scale, shift if beta is None else shift + weights.wide(beta)


_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


class Step:
    """One layer. `forward` reads and writes slots of the run; `backward` takes the gradient of its output's slot."""

    def __init__(self, layer: Layer, slots: dict[fx.Node, int]) -> None:
        self.reads = [slots[node] for node in layer.inputs]
        self.slot = slots[layer.node]
        self.added = None if layer.added is None else slots[layer.added]
        self.relu = layer.relu
        self.dead: frozenset[int] = frozenset()
        """Slots that nothing reads after this step."""
        self.fresh: frozenset[int] = frozenset()
        """Of those, the ones whose memory may be written to."""

    def prepare(self, weights: Weights) -> Any:
        """What it needs of the live weights, once an attack."""

    def forward(self, run: Run, state: Any) -> Any:
        """Returns what `backward` needs."""
        raise NotImplementedError

    def backward(self, run: Run, state: Any, kept: Any) -> None:
        raise NotImplementedError


class ConvStep(Step):
    """conv(x) (+ other) (ReLU), with BN and input scales folded into the weights."""

    def __init__(self, layer: Layer, slots: dict[fx.Node, int], graph: Graph) -> None:
        super().__init__(layer, slots)
        self._graph = graph
        self._layer = layer

    def prepare(self, weights: Weights) -> Convolution:
        return Convolution(self._graph, self._layer, weights)

    def forward(self, run: Run, state: Convolution) -> Any:
        x = run.values[self.reads[0]]
        other = None if self.added is None else run.values[self.added]
        overwrite = self.added in self.fresh and self.added != self.reads[0]
        y = state.forward(x, other, self.relu, overwrite)
        run.values[self.slot] = y
        if not self.relu:
            return x.shape, None
        if state.fused:
            if not run.backwards:
                return None
            return x.shape, (positive_bits_op(y, "auto"), y.stride(), y.dtype)
        return x.shape, through_relu(y)

    def backward(self, run: Run, state: Convolution, kept: Any) -> None:
        shape, gate = kept
        gradient = run.total(self.slot) if gate is None else gated(run, self.slot, gate)
        if gradient is None:
            return
        run.give(self.reads[0], state.backward(gradient, shape), owned=True)
        if self.added is not None:
            run.give(self.added, gradient, owned=gate is not None)


class LinearStep(Step):
    """x W^T + b (ReLU)."""

    def __init__(self, layer: Layer, slots: dict[fx.Node, int], graph: Graph) -> None:
        super().__init__(layer, slots)
        self._graph, self._source, self._norms = graph, layer.source, layer.norms

    def prepare(self, weights: Weights) -> tuple[Tensor, Tensor | None]:
        settings = linear_settings(self._graph, self._source)
        weight, bias = weights.tensor(settings["weight"]), weights.tensor(settings["bias"])
        assert weight is not None
        if self._norms:
            weight = weights.wide(weight)
            bias = None if bias is None else weights.wide(bias)
        for node in self._norms:
            scale, shift = affine(norm_settings(self._graph, node), weights)
            weight = weight * scale[:, None]
            bias = shift if bias is None else bias * scale + shift
        return weights.narrow(weight), None if bias is None else weights.narrow(bias)

    def forward(self, run: Run, state: tuple[Tensor, Tensor | None]) -> Any:
        x = run.values[self.reads[0]]
        if self._norms and x.dim() != 2:
            raise Unfit("a BN layer follows a linear layer on more than two axes")
        y = F.linear(x.to(state[0].dtype), *state)
        run.values[self.slot] = y
        return through_relu(y) if self.relu else None

    def backward(self, run: Run, state: tuple[Tensor, Tensor | None], kept: Any) -> None:
        gradient = run.total(self.slot) if kept is None else gated(run, self.slot, kept)
        if gradient is not None:
            run.give(self.reads[0], gradient @ state[0], owned=True)


class NormStep(Step):
    """A BN layer that could not be folded: x * scale + shift (ReLU)."""

    def __init__(self, layer: Layer, slots: dict[fx.Node, int], graph: Graph) -> None:
        super().__init__(layer, slots)
        self._graph, self._source = graph, layer.source

    def prepare(self, weights: Weights) -> tuple[Tensor, Tensor, torch.dtype]:
        scale, shift = affine(norm_settings(self._graph, self._source), weights)
        wide = torch.float64 if weights.dtype == torch.float64 else torch.float32
        return scale.to(wide).contiguous(), shift.to(wide).contiguous(), weights.dtype

    def forward(self, run: Run, state: tuple[Tensor, Tensor, torch.dtype]) -> Any:
        scale, shift, dtype = state
        x = packed(run.values[self.reads[0]].to(dtype))
        if self.relu:
            run.values[self.slot], bits = affine_relu_bits_op(x, scale, shift, "auto")
            return bits, x.stride(), dtype
        view = (1, -1, *[1] * (x.dim() - 2))
        run.values[self.slot] = (x * scale.view(view)).add_(shift.view(view)).to(dtype)
        return None

    def backward(self, run: Run, state: tuple[Tensor, Tensor, torch.dtype], kept: Any) -> None:
        scale, _, dtype = state
        (source,) = self.reads
        if kept is None:
            gradient = run.total(self.slot)
            if gradient is not None:
                view = (1, -1, *[1] * (gradient.dim() - 2))
                run.give(source, (gradient * scale.view(view)).to(dtype), owned=True)
            return
        parts = run.take(self.slot)
        if not parts:
            return
        bits, strides, dtype = kept
        gradient = like(run.add(parts), strides, dtype)
        # The gradient of the skip connection that leaves before this layer has come in already.
        rest = run.take(source)
        other = like(run.add(rest), strides, dtype) if rest else None
        affine_gate_op(gradient, bits, scale, other, "auto")
        run.give(source, gradient, owned=True)


class ReluStep(Step):
    def forward(self, run: Run, state: Any) -> Any:
        x = run.values[self.reads[0]]
        y = packed(x)
        if y is x and self.reads[0] not in self.fresh:
            y = x.clone()
        run.values[self.slot] = y
        return through_relu(y)

    def backward(self, run: Run, state: Any, kept: Any) -> None:
        gradient = gated(run, self.slot, kept)
        if gradient is not None:
            run.give(self.reads[0], gradient, owned=True)


class AddStep(Step):
    """a + b (ReLU), of one shape."""

    def forward(self, run: Run, state: Any) -> Any:
        a, b = (run.values[slot] for slot in (self.reads * 2)[:2])
        if a.shape != b.shape:
            raise Unfit("it adds values of different shapes")
        written, other = (self.reads * 2)[:2]
        if written not in self.fresh or written == other:
            written, other, a, b = other, written, b, a
        in_place = written in self.fresh and written != other and a.dtype == b.dtype
        if not in_place:
            run.values[self.slot] = y = packed(a + b)
            return through_relu(y) if self.relu else None
        run.values[self.slot] = a
        if not self.relu:
            a.add_(b)
            return None
        bits = add_relu_bits_op(a, like(b, a.stride(), a.dtype), "auto")
        return bits, a.stride(), a.dtype

    def backward(self, run: Run, state: Any, kept: Any) -> None:
        gradient = run.total(self.slot) if kept is None else gated(run, self.slot, kept)
        if gradient is not None:
            for slot in (self.reads * 2)[:2]:
                run.give(slot, gradient, owned=False)


class ConstantStep(Step):
    """x + c, x - c, x * c or x / c, where c does not depend on the image."""

    def __init__(self, layer: Layer, slots: dict[fx.Node, int], graph: Graph) -> None:
        super().__init__(layer, slots)
        self._sign, self._constant = graph.constant(layer.source)

    def prepare(self, weights: Weights) -> Any:
        constant = self._constant
        if isinstance(constant, fx.Node):
            constant = weights.constants[constant]
        return constant.detach() if isinstance(constant, Tensor) else constant

    def forward(self, run: Run, state: Any) -> Any:
        x = run.values[self.reads[0]]
        if isinstance(state, Tensor):
            # The first ones see the image, in its own precision; later ones what the layers before them made.
            state = state.to(x.dtype)
        y = _OPERATIONS[self._sign](x, state)
        if y.shape != x.shape or y.dtype != x.dtype:
            raise Unfit("a constant changes the shape or the dtype of a value")
        run.values[self.slot] = y

    def backward(self, run: Run, state: Any, kept: Any) -> None:
        gradient = run.total(self.slot)
        if gradient is None:
            return
        if self._sign in "+-":
            run.give(self.reads[0], gradient, owned=False)
        else:
            if isinstance(state, Tensor):
                state = state.to(gradient.dtype)
            back = gradient * state if self._sign == "*" else gradient / state
            run.give(self.reads[0], back, owned=True)


class ReshapeStep(Step):
    """flatten, view, reshape: in logical order, whatever the memory order."""

    def __init__(self, layer: Layer, slots: dict[fx.Node, int], graph: Graph) -> None:
        super().__init__(layer, slots)
        node = layer.source
        module = graph.module(node)
        if isinstance(module, nn.Flatten):
            self._function: Any = torch.flatten
            self._arguments: tuple[Any, ...] = (module.start_dim, module.end_dim)
            self._keywords: dict[str, Any] = {}
        else:
            flatten = node.target in ("flatten", torch.flatten)
            self._function = torch.flatten if flatten else torch.Tensor.reshape
            self._arguments, self._keywords = tuple(node.args[1:]), dict(node.kwargs)

    def forward(self, run: Run, state: Any) -> Any:
        x = run.values[self.reads[0]]
        arguments = fx.map_arg((self._arguments, self._keywords), run.lookup)
        run.values[self.slot] = self._function(x, *arguments[0], **arguments[1])
        return x.shape, x.stride()

    def backward(self, run: Run, state: Any, kept: Any) -> None:
        gradient = run.total(self.slot)
        if gradient is not None:
            run.give(self.reads[0], gradient.reshape(kept[0]), owned=False)


class MeanStep(Step):
    """The mean over the pixels: AdaptiveAvgPool2d(1), mean over the last two axes."""

    def forward(self, run: Run, state: Any) -> Any:
        x = run.values[self.reads[0]]
        if x.dim() != 4:
            raise Unfit("it pools a value that is not 4-d")
        run.values[self.slot] = x.mean((2, 3), keepdim=state)
        return x.shape, x.stride()

    def __init__(self, layer: Layer, slots: dict[fx.Node, int], graph: Graph) -> None:
        super().__init__(layer, slots)
        node = layer.source
        pooled = graph.module(node) is not None or node.target is F.adaptive_avg_pool2d
        arguments = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | dict(node.kwargs)
        self._keep = pooled or bool(arguments.get("keepdim", False))

    def prepare(self, weights: Weights) -> bool:
        return self._keep

    def backward(self, run: Run, state: Any, kept: Any) -> None:
        gradient = run.total(self.slot)
        if gradient is not None:
            shape, strides = kept
            part = (gradient / (shape[2] * shape[3])).view(shape[0], shape[1], 1, 1)
            whole = torch.empty_strided(shape, strides, dtype=part.dtype, device=part.device)
            run.give(self.reads[0], whole.copy_(part), owned=True)


class MaxPoolStep(Step):
    def __init__(self, layer: Layer, slots: dict[fx.Node, int], graph: Graph) -> None:
        super().__init__(layer, slots)
        module = graph.module(layer.source)
        assert isinstance(module, nn.MaxPool2d)
        stride = module.kernel_size if module.stride is None else module.stride
        values = (module.kernel_size, stride, module.padding, module.dilation)
        self._settings = [[v, v] if isinstance(v, int) else list(v) for v in values]
        self._ceil = module.ceil_mode

    def forward(self, run: Run, state: Any) -> Any:
        x = run.values[self.reads[0]]
        y, indices = torch.ops.aten.max_pool2d_with_indices(x, *self._settings, self._ceil)
        run.values[self.slot] = y
        return x.shape, x.stride(), indices

    def backward(self, run: Run, state: Any, kept: Any) -> None:
        gradient = run.total(self.slot)
        if gradient is not None:
            shape, strides, indices = kept
            back = torch.ops.aten.max_pool2d_with_indices_backward(
                gradient,
                run.stand_in(gradient, shape, strides),
                *self._settings,
                self._ceil,
                indices,
            )
            run.give(self.reads[0], back, owned=True)


class AvgPoolStep(Step):
    def __init__(self, layer: Layer, slots: dict[fx.Node, int], graph: Graph) -> None:
        super().__init__(layer, slots)
        module = graph.module(layer.source)
        assert isinstance(module, nn.AvgPool2d)
        values = (module.kernel_size, module.stride, module.padding)
        sides = [[v, v] if isinstance(v, int) else list(v) for v in values]
        self._settings = (
            *sides, module.ceil_mode, module.count_include_pad, module.divisor_override,
        )  # fmt: skip

    def forward(self, run: Run, state: Any) -> Any:
        x = run.values[self.reads[0]]
        run.values[self.slot] = torch.ops.aten.avg_pool2d(x, *self._settings)
        return x.shape, x.stride()

    def backward(self, run: Run, state: Any, kept: Any) -> None:
        gradient = run.total(self.slot)
        if gradient is not None:
            back = torch.ops.aten.avg_pool2d_backward(
                gradient, run.stand_in(gradient, *kept), *self._settings
            )
            run.give(self.reads[0], back, owned=True)
