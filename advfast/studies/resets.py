"""A network with some of its weights replaced, at the cost of what depends on them.

With a layer's weights replaced, everything that does not depend on them stays as it is. `Program` has the network as a
graph of operations (functionalised: none of them writes to its inputs), keeps of a batch what the operations behind any
layer read, and runs for a replacement those operations alone that depend on the layer; so branches beside it are not
run again, and a layer that is called twice is replaced in both calls. The operations are the network's own, on the same
tensors: a layer that is replaced by itself gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from advfast.training import rng

_AGREES = 1e-5
"""Of the largest logit: by how much a program may differ from its network before it is not used."""

_BY_VALUE = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
"""Operations whose results' shapes, or Python values, depend on values of tensors."""

Kept = Any
"""What a network keeps of a batch."""


class NotTraced(Exception):
    """The network is no fixed list of operations; the text says why."""


def layer_tensors(model: nn.Module, layer: str) -> dict[str, str]:
    """Name within a layer -> name in the model, of its weights and buffers; a tensor that two layers share has one
    name in the model, that of its first use."""
    names = {id(tensor): name for name, tensor in tensors_of(model).items()}
    return {
        own: names[id(tensor)] for own, tensor in tensors_of(model.get_submodule(layer)).items()
    }


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers, each once."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


class Plain:
    """Whole forward passes: for networks that cannot be traced.

    Random numbers, should the network draw some, are the same ones in every pass.
    """

    kept_bytes = 0

    def __init__(self, model: nn.Module, reason: str = "") -> None:
        self.model, self.reason = model, reason

    def original(self, images: Tensor) -> tuple[Tensor, Kept]:
        """(logits [B, K], what `changed` needs) of images [B, ...]."""
        return self.changed(images, "", {}), images

    def changed(self, kept: Kept, layer: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """Logits [B, K] of the images of `kept` with these tensors (name in the model -> value) of a layer."""
        with torch.no_grad(), rng.seeded(0):
            return functional_call(self.model, dict(tensors), (kept,))


class Program:
    """The network as operations, for batches of the example's shape.

    Args:
        model: in eval mode; it is neither changed nor kept.
        example: images [B, ...].
        layers: names of the modules whose tensors will be replaced.

    Attributes:
        kept_bytes: of a batch.

    Raises:
        NotTraced: control flow or shapes depend on values, or the operations do not give the network's logits again.
    """

    reason = ""

    def __init__(self, model: nn.Module, example: Tensor, layers: Iterable[str]) -> None:
        state = {name: tensor.detach() for name, tensor in tensors_of(model).items()}
        nodes, self._constants = _trace(model, state, example)
        inputs = [node for node in nodes if node.op == "placeholder"]
        self._image = inputs[0]
        self._inputs = dict(zip(state, inputs[1:], strict=True))
        self._state = {self._inputs[name]: tensor for name, tensor in state.items()}
        (self._out,) = nodes[-1].all_input_nodes
        self._all = [node for node in nodes if node.op == "call_function"]
        self._behind: dict[str, list[fx.Node]] = {}
        keep: set[fx.Node] = set()
        for layer in layers:
            dirty = {self._inputs[name] for name in layer_tensors(model, layer).values()}
            for node in self._all:
                if not dirty.isdisjoint(node.all_input_nodes):
                    dirty.add(node)
            self._behind[layer] = [node for node in self._all if node in dirty]
            keep.update(
                node for user in self._behind[layer] for node in user.all_input_nodes
                if node not in dirty
            )  # fmt: skip
        keep.add(self._out)  # a layer that the logits do not depend on leaves them as they are
        self._keep = keep
        self.kept_bytes = sum(_bytes(node) for node in keep if node.op == "call_function")
        with torch.no_grad():
            expected, found = model(example), self.original(example)[0]
        most = float(expected.abs().max())
        if not float((expected - found).abs().max()) <= _AGREES * most:
            raise NotTraced("its operations, run again, do not give its logits")

    def original(self, images: Tensor) -> tuple[Tensor, Kept]:
        """As `Plain.original`."""
        values = {**self._state, **self._constants, self._image: images}
        self._run(self._all, values)
        return values[self._out], values

    def changed(self, kept: Kept, layer: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """As `Plain.changed`."""
        values = kept | {self._inputs[name]: tensor for name, tensor in tensors.items()}
        self._run(self._behind[layer], values)
        return values[self._out]

    def share(self, layer: str) -> float:
        """The share of all operations that a replacement of this layer runs again."""
        return len(self._behind[layer]) / len(self._all)

    def _run(self, nodes: Sequence[fx.Node], values: dict[fx.Node, Any]) -> None:
        """Puts the nodes' values into `values`; those that nothing reads any more leave it."""
        last = {node: user for user in nodes for node in user.all_input_nodes}
        with torch.no_grad():
            for node in nodes:
                arguments = map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*arguments[0], **arguments[1])  # type: ignore[operator]
                for read in node.all_input_nodes:
                    if last[read] is node and read not in self._keep:
                        del values[read]


Network = Plain | Program


def network(model: nn.Module, example: Tensor, layers: Iterable[str]) -> Network:
    """A `Program`, or where there is none `Plain` with the reason."""
    try:
        return Program(model, example, layers)
    except NotTraced as error:
        return Plain(model, str(error))


def _trace(
    model: nn.Module, state: Mapping[str, Tensor], example: Tensor
) -> tuple[list[fx.Node], dict[fx.Node, Any]]:
    """The nodes in order, and the values of the constants among them."""

    def forward(images: Tensor, *tensors: Tensor) -> Tensor:
        return functional_call(model, dict(zip(state, tensors, strict=True)), (images,))

    try:
        with torch.no_grad(), rng.seeded(0):
            traced = make_fx(functionalize(forward))(example, *state.values())
    except Exception as error:  # whatever a user's forward does that a tracer cannot follow
        reason = str(error).strip().splitlines()
        raise NotTraced(reason[0] if reason else type(error).__name__) from error
    for node in traced.graph.nodes:
        if _by_value(node):
            raise NotTraced(f"the shape of what {node.target} returns depends on values")
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            raise NotTraced(f"{node.target} writes to the network's own tensors")
    traced.graph.eliminate_dead_code()
    nodes = list(traced.graph.nodes)
    constants = {node: getattr(traced, str(node.target)) for node in nodes if node.op == "get_attr"}
    return nodes, constants


def _by_value(node: fx.Node) -> bool:
    """Whether shapes, or Python values, come from the values of tensors."""
    if node.target is torch.ops.aten.index.Tensor:  # by numbers, or by a mask
        chosen = [entry.meta.get("val") for entry in node.args[1] if entry is not None]  # type: ignore[union-attr]
        return any(value is None or value.dtype in (torch.bool, torch.uint8) for value in chosen)
    return any(tag in getattr(node.target, "tags", ()) for tag in _BY_VALUE)


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
