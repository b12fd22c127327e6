"""Layers without a rule of ours, one after another: by autograd, from their inputs to their outputs."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from .lower import Graph, Layer
from .run import Run
from .steps import Step

_LOGICAL = {"view": "reshape", "view_as": "reshape_as"}
"""Of a value that is in another memory order than in the user's own run, a view may not exist."""


class SegmentStep(Step):
    """Autograd keeps here what it always keeps; the weights get no gradient."""

    def __init__(
        self, layers: list[Layer], slots: dict[fx.Node, int], graph: Graph, returned: set[fx.Node]
    ) -> None:
        inside = {layer.node for layer in layers}
        outside = [layer for layer in graph.layers if layer.node not in inside]
        read = {node for layer in outside for node in (*layer.inputs, layer.added)}
        self._nodes = [layer.node for layer in layers]
        self._graph = graph
        self._inputs = list(
            dict.fromkeys(node for layer in layers for node in layer.inputs if node not in inside)
        )
        self._outputs = [node for node in self._nodes if node in read or node in returned]
        self._slots = slots
        self.reads = [slots[node] for node in self._inputs]
        self.writes = [slots[node] for node in self._outputs]
        self.slot = self.writes[-1]
        self.added = None
        self.relu = False
        self.dead = self.fresh = frozenset()

    def forward(self, run: Run, state: Any) -> Any:
        values: dict[fx.Node, Any] = {}
        inputs: list[Tensor | None] = []

        def lookup(node: fx.Node) -> Any:
            node = self._graph.aliases.get(node, node)
            return values[node] if node in values else run.lookup(node)

        with torch.set_grad_enabled(run.backwards), run.autocast():
            for node, slot in zip(self._inputs, self.reads, strict=True):
                value = run.values[slot]
                leaf = None
                if run.backwards and isinstance(value, Tensor) and value.is_floating_point():
                    leaf = value.detach().requires_grad_()
                    value = leaf
                inputs.append(leaf)
                # An operation in place may write neither to a leaf nor to what another layer still reads.
                values[node] = value.clone() if self._writes(node) else value
            for node in self._nodes:
                args, kwargs = fx.map_arg((node.args, node.kwargs), lookup)
                values[node] = self._call(node, args, kwargs)
        outputs = [values[node] for node in self._outputs]
        for slot, output in zip(self.writes, outputs, strict=True):
            run.values[slot] = output.detach() if isinstance(output, Tensor) else output
        return (inputs, outputs) if run.backwards else None

    def _writes(self, node: fx.Node) -> bool:
        return any(
            self._graph.in_place(user) and user.args and user.args[0] is node
            for user in self._nodes
        )

    def _call(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node.op == "call_module":
            module = self._graph.module(node)
            assert module is not None
            return module(*args, **kwargs)
        if node.op == "call_method":
            name = str(node.target)
            return getattr(args[0], _LOGICAL.get(name, name))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def backward(self, run: Run, state: Any, kept: Any) -> None:
        inputs, outputs = kept
        reached, gradients = [], []
        for slot, output in zip(self.writes, outputs, strict=True):
            gradient = run.total(slot)
            if gradient is not None and isinstance(output, Tensor) and output.requires_grad:
                reached.append(output)
                gradients.append(gradient.to(output.dtype))
        wanted = [
            (slot, leaf) for slot, leaf in zip(self.reads, inputs, strict=True) if leaf is not None
        ]
        if not reached or not wanted:
            return
        found = torch.autograd.grad(
            reached, [leaf for _, leaf in wanted], gradients, allow_unused=True
        )
        for (slot, _), gradient in zip(wanted, found, strict=True):
            if gradient is not None:
                # Autograd may hand the same tensor to two inputs.
                run.give(slot, gradient, owned=False)


def constants_of(graph: Graph, model: torch.nn.Module) -> dict[fx.Node, Any]:
    """Values of what does not depend on the image, from the live weights."""
    wanted: set[fx.Node] = set()
    for layer in graph.layers:
        wanted.update(layer.source.all_input_nodes)
        for node in (*layer.norms, *layer.scales):
            wanted.update(node.all_input_nodes)
    fx.map_arg(graph.result, wanted.add)
    for node in reversed(graph.nodes):
        if node in wanted and node not in graph.varying:
            wanted.update(node.all_input_nodes)
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node not in wanted or node in graph.varying:
            continue
        if node.op == "get_attr":
            values[node] = operator.attrgetter(str(node.target))(model)
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        if node.op == "call_module":
            values[node] = model.get_submodule(str(node.target))(*args, **kwargs)
        elif node.op == "call_method":
            values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        elif node.op == "call_function":
            assert callable(node.target)
            values[node] = node.target(*args, **kwargs)
    return values
