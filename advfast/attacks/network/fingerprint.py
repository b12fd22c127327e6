"""Whether a model is still the one that was traced: everything that its forward could branch on."""

from __future__ import annotations

import builtins
import types
from collections.abc import Hashable, Iterator
from typing import Any

from torch import Tensor, nn

from .trace import HOOKS

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_OWN = frozenset(vars(nn.Module()))
"""Attributes of every module."""
_DEPTH = 4


def _value(value: Any, depth: int = _DEPTH) -> Hashable:
    """What can be compared of a value: numbers and texts, also inside containers and simple objects."""
    if isinstance(value, _PLAIN):
        return value
    if depth == 0 or isinstance(value, Tensor | nn.Module | types.ModuleType):
        return id(value)
    if isinstance(value, list | tuple | set | frozenset):
        return type(value).__name__, tuple(_value(item, depth - 1) for item in value)
    if isinstance(value, dict):
        items = tuple((str(key), _value(item, depth - 1)) for key, item in value.items())
        return "dict", items
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict) and not isinstance(value, type | types.FunctionType):
        items = tuple((name, _value(item, depth - 1)) for name, item in attributes.items())
        return id(value), items
    return id(value)


def _globals(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals(constant)


def _surroundings(function: Any, seen: set[int], depth: int = _DEPTH) -> Iterator[Hashable]:
    """Values of the globals and of the closure that a function of the user's reads."""
    function = getattr(function, "__func__", function)
    if not isinstance(function, types.FunctionType) or id(function) in seen or depth == 0:
        return
    if (function.__module__ or "").startswith(("torch.", "advfast.")):
        return
    seen.add(id(function))
    found = [cell.cell_contents for cell in function.__closure__ or () if _is_set(cell)]
    for name in _globals(function.__code__):
        if name in function.__globals__ and not hasattr(builtins, name):
            found.append(function.__globals__[name])
    yield id(function.__code__)
    for value in found:
        if isinstance(value, types.FunctionType):
            yield from _surroundings(value, seen, depth - 1)
        elif not isinstance(value, types.ModuleType):
            yield _value(value)


def _is_set(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def fingerprint(model: nn.Module) -> Hashable:
    """Equal as long as tracing `model` would give the same graph.

    Modules by identity, their modes, attributes, hooks, which parameters there are and their shapes; and the globals
    and closures that the methods of the user's classes read. Values of parameters and buffers are not part of it.
    """
    parts: list[Hashable] = []
    seen: set[int] = set()
    classes: set[type] = set()
    for name, module in model.named_modules():
        attributes = module.__dict__
        own = [
            (key, _value(value))
            for key, value in attributes.items()
            if key not in _OWN and key != "training"
        ]
        tensors = [
            (key, None if tensor is None else (tensor.shape, tensor.dtype))
            for kind in ("_parameters", "_buffers")
            for key, tensor in attributes[kind].items()
        ]
        hooks = any(attributes[key] for key in HOOKS)
        parts.append((name, id(module), module.training, hooks, tuple(own), tuple(tensors)))
        classes.add(type(module))
    for kind in sorted(classes, key=lambda kind: (kind.__module__, kind.__qualname__)):
        if kind.__module__.startswith(("torch.nn.", "advfast.")):
            continue
        for base in kind.__mro__:
            if base.__module__.startswith("torch.nn."):
                break
            for method in vars(base).values():
                parts.extend(_surroundings(method, seen))
    return tuple(parts)
