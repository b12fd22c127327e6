"""What a captured attack is bound to: two calls with the same key may share a graph."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Hashable, Iterator, Mapping
from types import FunctionType, MethodType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .network.fingerprint import fingerprint
from .network.trace import HOOKS

if TYPE_CHECKING:
    from .pgd import PGDAttack
    from .plan import Plan

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_OF_A_CALL = ("eps", "alpha", "seed", "check", "capture", "capture_note", "launches", "nonfinite")
"""Attributes of an attack that no graph is bound to: they come in as tensors, or do not enter it."""


def graph_key(attack: PGDAttack, plan: Plan, moving: Mapping[str, Tensor | float]) -> Hashable:
    """All that a graph holds fast; what is in no key is read at each replay."""
    kinds = tuple(
        (name, *(_kind(value) if isinstance(value, Tensor) else ()))
        for name, value in moving.items()
    )
    numbers = [name for name, value in moving.items() if isinstance(value, float)]
    settings = tuple(
        _static(getattr(plan, field.name), attack)
        for field in dataclasses.fields(plan)
        if field.name != "model" and field.name not in numbers
    )
    # A subclass may read more of itself than is in the plan.
    own = tuple(
        (name, type(value).__name__, value)
        for name, value in vars(attack).items()
        if isinstance(value, _PLAIN) and name not in _OF_A_CALL
    )
    return type(attack), kinds, settings, own, _static(plan.model, attack), _of_process()


def _of_process() -> Hashable:
    """Switches of torch that choose kernels."""
    backends = torch.backends
    return (
        torch.are_deterministic_algorithms_enabled(),
        backends.cuda.matmul.fp32_precision,
        backends.cudnn.enabled,
        backends.cudnn.benchmark,
        backends.cudnn.deterministic,
        backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
    )


def _of_model(model: nn.Module) -> Iterator[Hashable]:
    """What its Python would do, and where its tensors lie."""
    yield fingerprint(model)
    stack = [model]
    while stack:  # not modules(), which costs more than all of this
        own = stack.pop().__dict__
        for tensors in (own["_parameters"], own["_buffers"], own):
            for tensor in tensors.values():
                if isinstance(tensor, Tensor):
                    yield place(tensor)
        for hooks in HOOKS:
            if own[hooks]:
                yield hooks, *own[hooks]  # handles, each given out once
        stack.extend(child for child in own["_modules"].values() if child is not None)


def place(tensor: Tensor) -> tuple[Hashable, ...]:
    """Where a tensor lies and what it is: a graph reads what is there."""
    return tensor.data_ptr(), *_kind(tensor)


def _kind(tensor: Tensor) -> tuple[Hashable, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


class _Same:
    """An object by identity, without keeping it alive; no number of an object that is gone comes back in its place."""

    def __init__(self, value: object) -> None:
        self._reference = weakref.ref(value)
        self._number = id(value)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same) or self._number != other._number:
            return False
        value = self._reference()
        return value is not None and value is other._reference()


def _static(value: object, attack: object) -> Hashable:
    """A setting as part of a key; equal settings have equal ones."""
    if isinstance(value, _PLAIN):
        return type(value).__name__, value
    if isinstance(value, Tensor):
        return place(value)
    if isinstance(value, (list, tuple)):
        return tuple(_static(part, attack) for part in value)
    if isinstance(value, MethodType):
        # Not which attack: one that is made anew for each batch has the same graphs.
        owner = value.__self__
        return value.__func__, "" if owner is attack else _static(owner, attack)
    if isinstance(value, FunctionType):
        return _Same(value.__code__), *(_shallow(part) for part in _seen_by(value))
    if isinstance(value, nn.Module):
        return _Same(value), *_of_model(value)
    return _shallow(value), *(_shallow(part) for part in getattr(value, "__dict__", {}).values())


def _seen_by(function: FunctionType) -> Iterator[object]:
    """What a function gets other than by its arguments: a graph has the numbers among it for good."""
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            yield None
    for name in function.__code__.co_names:
        yield function.__globals__.get(name)


def _shallow(value: object) -> Hashable:
    if isinstance(value, _PLAIN):
        return type(value).__name__, value
    if isinstance(value, Tensor):
        return place(value)
    try:
        return _Same(value)
    except TypeError:  # a list, a dict: no weak references, and no saying what is in it
        return type(value).__name__
