"""Torch tensors inside; a caller who passes EagerPy tensors gets EagerPy tensors."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor


def unwrapped(value: Any, name: str = "inputs") -> tuple[Tensor, Callable[[Tensor], Any]]:
    """(the torch tensor, what turns a result into the kind of tensor that came).

    Raises:
        ValueError: neither a torch tensor nor an EagerPy tensor of one.
    """
    if isinstance(value, Tensor):
        return value, _itself
    raw = getattr(value, "raw", None)
    if isinstance(raw, Tensor):
        return raw, type(value)
    raise ValueError(
        f"{name} must be a torch tensor or an EagerPy tensor of one, got {type(value).__name__}"
    )


def _itself(tensor: Tensor) -> Tensor:
    return tensor


@cache
def eagerpy_kind() -> Callable[[Tensor], Any] | None:
    """What makes an EagerPy tensor of a torch one; None where EagerPy is not installed."""
    if importlib.util.find_spec("eagerpy") is None:
        return None
    from eagerpy import astensor

    return astensor
