"""A model by torch.compile, for what it fuses and the engine does not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .plain import PlainNetwork

_compiled: WeakKeyDictionary[nn.Module, Callable[..., Any]] = WeakKeyDictionary()


def compiled_call(model: nn.Module) -> Callable[[Tensor], Any]:
    """images -> what `model` returns, compiled; the weights are read at each call and get no gradient.

    Compilation, of the forward and of the backward pass, happens in the first calls: tens of seconds.
    """
    if model not in _compiled:
        # A function for each model: what torch.compile keeps of one must not be dropped for another's sake.
        def call(of: nn.Module, tensors: dict[str, Tensor], images: Tensor) -> Any:
            return torch.func.functional_call(of, tensors, (images,))

        with warnings.catch_warnings():
            # torch's own modules, imported now, warn of torch.jit.
            warnings.simplefilter("ignore", DeprecationWarning)
            _compiled[model] = torch.compile(call, dynamic=False)
    function = _compiled[model]

    def run(images: Tensor) -> Any:
        tensors = {name: p.detach() for name, p in model.named_parameters()}
        tensors |= {name: b.detach() for name, b in model.named_buffers()}
        return function(model, tensors, images)

    return run


def compiled_network(model: nn.Module, *args: Any) -> PlainNetwork:
    """Arguments as of PlainNetwork after its model."""
    return PlainNetwork(compiled_call(model), *args)
