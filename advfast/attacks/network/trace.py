"""A model's operations as a graph, or the reason why they cannot be had as one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode

_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class NotTraced(Exception):
    """Why a model runs as it is instead."""


class _NoArithmetic(TorchDispatchMode):
    """What is computed while tracing would be a constant ever after: of random numbers, of weights, of a counter."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise NotTraced(f"its forward computes {func} from tensors that are not its input")


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            known = any(a is buffer for buffer in self.root.buffers())
            if not known:
                # fx would hang it on the user's model as an attribute.
                raise NotTraced("its forward uses a tensor that is neither parameter nor buffer")
        return super().create_arg(a)


def has_hooks(model: nn.Module) -> bool:
    if any(getattr(torch_module, name) for name in _GLOBAL_HOOKS):
        return True
    return any(getattr(module, name) for module in model.modules() for name in HOOKS)


def trace(model: nn.Module) -> fx.Graph:
    """The operations of `model` on one image batch, leaves being modules of torch.nn.

    Raises:
        NotTraced: hooks, compiled or scripted parts, control flow that depends on values, tensors made on the way.
    """
    if has_hooks(model):
        raise NotTraced("it has hooks, which must see every pass")
    for name, module in model.named_modules():
        compiled = hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        if compiled or isinstance(module, torch.jit.ScriptModule | fx.GraphModule):
            raise NotTraced(f"{name or 'it'} is compiled or scripted")
    if type(model).__module__.startswith("torch.nn") and not isinstance(
        model, nn.Sequential | nn.ModuleList
    ):
        raise NotTraced("it is a single layer")
    try:
        with _NoArithmetic():
            return _Tracer().trace(model)
    except NotTraced:
        raise
    except Exception as error:  # the user's code meets a stand-in for a tensor: anything may come
        raise NotTraced(
            f"its forward cannot be followed: {type(error).__name__}: {error}"
        ) from None
