"""A traced graph -> layers that know their own backward pass: BN folded, ReLU joined to what comes before it."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .trace import NotTraced

_ARITHMETIC = {
    operator.add: "+", operator.iadd: "+", torch.add: "+",
    operator.sub: "-", operator.isub: "-", torch.sub: "-",
    operator.mul: "*", operator.imul: "*", torch.mul: "*",
    operator.truediv: "/", operator.itruediv: "/", torch.div: "/", torch.true_divide: "/",
}  # fmt: skip
_METHODS = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "add_": "+", "sub_": "-", "mul_": "*", "div_": "/",
}  # fmt: skip
_RELU = {F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_"}
_RESHAPE = {"flatten", "view", "reshape", torch.flatten, torch.reshape}
_ALIAS = {"contiguous"}
_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, torch.relu_, F.relu_}


@dataclass(eq=False)
class Layer:
    """One operation, or several that have become one.

    Attributes:
        kind: "conv", "linear", "norm", "relu", "add", "shift", "scale", "reshape", "maxpool", "avgpool", "mean" or
            "other".
        node: whose value this computes.
        inputs: nodes whose values it reads and that depend on the image.
        source: node of the operation itself (its weights, its settings).
        norms: nodes of the BN layers folded into a "conv" or "linear".
        scales: (node, sign of the exponent) of constants multiplied into the weights on the input side.
        relu: ends in ReLU.
        added: node of a value added before the ReLU.
    """

    kind: str
    node: fx.Node
    inputs: list[fx.Node]
    source: fx.Node
    norms: list[fx.Node] = field(default_factory=list)
    scales: list[fx.Node] = field(default_factory=list)
    relu: bool = False
    added: fx.Node | None = None


class Graph:
    """The layers of a model in order.

    Attributes:
        nodes: of the traced graph.
        image: the input.
        result: structure of nodes that the model returns.
        varying: nodes that depend on the image and that the result depends on.
        aliases: nodes that are another node's value.
        layers: in order of execution.
        folded, norms: BN layers folded into a convolution or linear layer, and all of them.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.nodes = list(graph.nodes)
        # Not the model itself: what is kept by model would keep it alive.
        self._modules = {name: module for name, module in model.named_modules() if name}
        self.aliases: dict[fx.Node, fx.Node] = {}
        images = [node for node in self.nodes if node.op == "placeholder"]
        used = [node for node in images[1:] if node.users]
        if not images or used:
            raise NotTraced("its forward takes more than the images")
        self.image = images[0]
        (output,) = [node for node in self.nodes if node.op == "output"]
        self.result: Any = output.args[0]
        self.varying = self._find_varying(output)
        self.layers = [
            self._layer(node)
            for node in self.nodes
            if node in self.varying and node is not self.image
        ]
        self._check_in_place()
        self.norms = sum(self._is_norm(node) for node in self.varying)
        self._of = {layer.node: layer for layer in self.layers}
        self._fuse()
        self.folded = sum(len(layer.norms) for layer in self.layers)

    def module(self, node: fx.Node) -> nn.Module | None:
        return self._modules[str(node.target)] if node.op == "call_module" else None

    def _find_varying(self, output: fx.Node) -> set[fx.Node]:
        varying = {self.image}
        for node in self.nodes:
            if node is not output and any(arg in varying for arg in node.all_input_nodes):
                varying.add(node)
        # What nothing that is returned depends on is not computed.
        needed: set[fx.Node] = set(output.all_input_nodes)
        for node in reversed(self.nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        return varying & needed | {self.image}

    def _is_norm(self, node: fx.Node) -> bool:
        module = self.module(node)
        return isinstance(module, nn.modules.batchnorm._BatchNorm) or (
            node.op == "call_function" and node.target is F.batch_norm
        )

    def _layer(self, node: fx.Node) -> Layer:
        inputs = [arg for arg in node.all_input_nodes if arg in self.varying]
        return Layer(self._kind(node, inputs), node, inputs, node)

    def _kind(self, node: fx.Node, inputs: list[fx.Node]) -> str:
        if len(inputs) != 1 and not (len(inputs) == 2 and self._sign(node) == "+"):
            return "other"
        module = self.module(node)
        if module is not None:
            return _kind_of_module(module)
        target = node.target
        sign = self._sign(node)
        # const + x is x + const; everything else keeps x first.
        if (not node.args or node.args[0] not in self.varying) and sign not in ("+", "*"):
            return "other"
        if sign is not None:
            if node.kwargs or len(node.args) != 2:
                return "other"
            if len(inputs) == 2:
                return "add"
            # x*x and x/x have one input too.
            if all(arg in self.varying for arg in node.args):
                return "add" if sign == "+" else "other"
            return "shift" if sign in "+-" else "scale"
        if target in _RELU:
            return "relu"
        if target in _RESHAPE:
            return "reshape"
        if target in _ALIAS and not node.kwargs and len(node.args) == 1:
            return "alias"
        if target is F.batch_norm:
            return "norm" if _settings(node, _BATCH_NORM)["training"] is False else "other"
        if target in (F.conv2d, torch.conv2d) and _plain_conv(_settings(node, _CONV)):
            return "conv"
        if target is F.linear:
            return "linear"
        if target in ("mean", torch.mean):
            return "mean" if _over_pixels(node) else "other"
        if target is F.adaptive_avg_pool2d:
            return "mean" if _one(node.args[1] if len(node.args) > 1 else None) else "other"
        return "other"

    def constant(self, node: fx.Node) -> tuple[str, Any]:
        """Of a "shift" or "scale": what is done ("+", "-", "*", "/") and the number or node that it is done with."""
        first, second = node.args
        sign = self._sign(node)
        assert sign is not None
        return sign, second if isinstance(first, fx.Node) and first in self.varying else first

    @staticmethod
    def _sign(node: fx.Node) -> str | None:
        if node.op == "call_function":
            return _ARITHMETIC.get(node.target)  # type: ignore[arg-type]
        return _METHODS.get(str(node.target)) if node.op == "call_method" else None

    def in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self.module(node), "inplace", False))
        if node.op == "call_method":
            return str(node.target).endswith("_") and not str(node.target).startswith("__")
        return node.target in _IN_PLACE or bool(node.kwargs.get("inplace", False)) or (
            node.target in _RELU and True in node.args[1:]
        )  # fmt: skip

    def _check_in_place(self) -> None:
        """Here every operation makes a new value: one that is overwritten must not be read afterwards."""
        order = {node: index for index, node in enumerate(self.nodes)}
        for node in self.nodes:
            if node.target is operator.setitem:
                raise NotTraced("its forward assigns to parts of a tensor")
            if node.op not in ("call_module", "call_method", "call_function"):
                continue
            if self.in_place(node) and isinstance(node.args[0] if node.args else None, fx.Node):
                written = node.args[0]
                if any(order[user] > order[node] for user in written.users):
                    raise NotTraced("its forward overwrites a tensor that it reads again")

    # ---- joining -------------------------------------------------------------------------------------------------

    def _fuse(self) -> None:
        for layer in list(self.layers):
            if layer.kind == "alias":
                self._join_alias(layer)
        for layer in list(self.layers):
            if layer.kind == "norm":
                self._join_norm(layer)
        for layer in list(self.layers):
            if layer.kind == "scale":
                self._join_scale(layer)
        for layer in list(self.layers):
            if layer.kind == "add":
                self._join_add(layer)
        for layer in list(self.layers):
            if layer.kind == "relu":
                self._join_relu(layer)

    def _readers(self, node: fx.Node) -> list[Layer]:
        return [layer for layer in self.layers if node in layer.inputs or layer.added is node]

    def _alone(self, node: fx.Node) -> bool:
        """Whether one layer reads the value, once, and the model does not return it."""
        readers = self._readers(node)
        times = sum(layer.inputs.count(node) + (layer.added is node) for layer in readers)
        returned: list[fx.Node] = []
        fx.map_arg(self.result, returned.append)
        return times == 1 and node not in returned

    def _becomes(self, layer: Layer, producer: Layer) -> None:
        """`producer` computes the value of `layer`, which goes."""
        self.layers.remove(layer)
        del self._of[producer.node], self._of[layer.node]
        producer.node = layer.node
        self._of[layer.node] = producer

    def _join_alias(self, layer: Layer) -> None:
        (origin,) = layer.inputs
        returned: list[fx.Node] = []
        fx.map_arg(self.result, returned.append)
        if layer.node in returned:
            layer.kind = "other"
            return
        for reader in self._readers(layer.node):
            reader.inputs = [origin if node is layer.node else node for node in reader.inputs]
        self.layers.remove(layer)
        del self._of[layer.node]
        self.aliases[layer.node] = origin

    def _join_norm(self, layer: Layer) -> None:
        producer = self._of.get(layer.inputs[0])
        if (
            producer is not None
            and producer.kind in ("conv", "linear")
            and not producer.relu
            and self._alone(producer.node)
        ):
            producer.norms.append(layer.source)
            self._becomes(layer, producer)

    def _join_scale(self, layer: Layer) -> None:
        """A constant factor on the input of a convolution goes into its weights."""
        readers = self._readers(layer.node)
        if len(readers) == 1 and readers[0].kind == "conv" and self._alone(layer.node):
            reader = readers[0]
            reader.scales.append(layer.source)
            reader.inputs = list(layer.inputs)
            self.layers.remove(layer)
            del self._of[layer.node]

    def _join_add(self, layer: Layer) -> None:
        """conv(x) + other: the later of two convolutions takes the sum."""
        candidates = [
            self._of[node]
            for node in layer.inputs
            if node in self._of
            and self._of[node].kind == "conv"
            and not self._of[node].relu
            and self._of[node].added is None
            and self._alone(node)
        ]
        if len(layer.inputs) != 2 or not candidates:
            return
        order = {other: index for index, other in enumerate(self.layers)}
        # The other operand must exist when the convolution runs: it moves to where the sum was.
        producer = max(candidates, key=order.__getitem__)
        other = next(node for node in layer.inputs if node is not producer.node)
        at = order[layer]
        producer.added = other
        self.layers[at] = producer
        self.layers.remove(producer)  # its old place, the first one found
        del self._of[producer.node], self._of[layer.node]
        producer.node = layer.node
        self._of[layer.node] = producer

    def _join_relu(self, layer: Layer) -> None:
        producer = self._of.get(layer.inputs[0])
        if (
            producer is not None
            and producer.kind in ("conv", "linear", "norm", "add")
            and not producer.relu
            and self._alone(producer.node)
        ):
            producer.relu = True
            self._becomes(layer, producer)


def _kind_of_module(module: nn.Module) -> str:
    if "forward" in module.__dict__:
        return "other"
    forward = type(module).forward
    if isinstance(module, nn.Conv2d) and forward is nn.Conv2d.forward:
        own = "_conv_forward" in module.__dict__
        standard = type(module)._conv_forward is nn.Conv2d._conv_forward and not own
        plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return "conv" if standard and plain else "other"
    if isinstance(module, nn.Linear) and forward is nn.Linear.forward:
        return "linear"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        standard = forward is nn.modules.batchnorm._BatchNorm.forward
        fixed = not module.training and module.running_mean is not None
        if not fixed:
            raise NotTraced("a BN layer of it normalises by the batch")
        return "norm" if standard else "other"
    if type(module) is nn.ReLU:
        return "relu"
    if type(module) is nn.Flatten:
        return "reshape"
    if type(module) is nn.Identity:
        return "alias"
    if isinstance(module, nn.modules.dropout._DropoutNd) and not module.training:
        return "alias"
    if type(module) is nn.AdaptiveAvgPool2d and _one(module.output_size):
        return "mean"
    if type(module) is nn.MaxPool2d and not module.return_indices:
        return "maxpool"
    if type(module) is nn.AvgPool2d:
        return "avgpool"
    return "other"


_BATCH_NORM: dict[str, Any] = {
    "input": None, "running_mean": None, "running_var": None, "weight": None, "bias": None,
    "training": False, "momentum": 0.1, "eps": 1e-5,
}  # fmt: skip
_CONV: dict[str, Any] = {
    "input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1,
}  # fmt: skip
_LINEAR: dict[str, Any] = {"input": None, "weight": None, "bias": None}


def _settings(node: fx.Node, defaults: dict[str, Any]) -> dict[str, Any]:
    return {**defaults, **dict(zip(defaults, node.args, strict=False)), **node.kwargs}


def _plain_conv(settings: dict[str, Any]) -> bool:
    return all(
        isinstance(settings[name], int | tuple | list)
        and not any(isinstance(part, fx.Node) for part in _pair(settings[name]))
        for name in ("stride", "padding", "dilation", "groups")
    )


def _pair(value: Any) -> tuple[Any, Any]:
    values = tuple(value) if isinstance(value, tuple | list) else (value, value)
    return values if len(values) == 2 else values * 2


def _one(size: Any) -> bool:
    return size is not None and all(part == 1 for part in _pair(size))


def _over_pixels(node: fx.Node) -> bool:
    """mean over the last two of four axes."""
    settings = _settings(node, {"input": None, "dim": None, "keepdim": False})
    dim = settings["dim"]
    return isinstance(dim, tuple | list) and sorted(dim) in ([2, 3], [-2, -1])


def conv_settings(graph: Graph, node: fx.Node) -> dict[str, Any]:
    """weight and bias (tensors, nodes or None), stride, padding, dilation (pairs), groups."""
    module = graph.module(node)
    if module is not None:
        assert isinstance(module, nn.Conv2d)
        names = ("weight", "bias", "stride", "padding", "dilation", "groups")
        found = {name: getattr(module, name) for name in names}
    else:
        found = _settings(node, _CONV)
    for name in ("stride", "padding", "dilation"):
        found[name] = [int(part) for part in _pair(found[name])]
    return found


def linear_settings(graph: Graph, node: fx.Node) -> dict[str, Any]:
    module = graph.module(node)
    if module is not None:
        return {"weight": module.weight, "bias": module.bias}
    return _settings(node, _LINEAR)


def norm_settings(graph: Graph, node: fx.Node) -> dict[str, Any]:
    module = graph.module(node)
    if module is not None:
        names = ("running_mean", "running_var", "weight", "bias", "eps")
        return {name: getattr(module, name) for name in names}
    return _settings(node, _BATCH_NORM)
