"""What one pass through a network holds: values, parts of gradients, and the live weights it uses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

Parts = list[tuple[Tensor, bool]]


class Unfit(Exception):
    """A layer cannot be run in this way: the model runs as it is instead."""


@dataclass
class Weights:
    """The weights as they are now, and how they are wanted.

    Attributes:
        constants: values of the nodes that do not depend on the image.
        dtype: of the network's arithmetic.
        device: of the weights.
        nhwc: memory order of images.
    """

    constants: dict[fx.Node, Any]
    dtype: torch.dtype
    device: torch.device
    nhwc: bool

    def tensor(self, of: Any) -> Tensor | None:
        """A parameter, or the value of a constant node."""
        value = self.constants[of] if isinstance(of, fx.Node) else of
        return None if value is None else value.detach()

    @staticmethod
    def wide(tensor: Tensor) -> Tensor:
        """For folding: at least float32."""
        return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor

    def narrow(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype)


class Run:
    """One forward pass and, if wanted, the backward pass to the image."""

    def __init__(
        self, count: int, slots: dict[fx.Node, int], constants: dict[fx.Node, Any]
    ) -> None:
        self.values: list[Any] = [None] * count
        self._gradients: list[Parts | None] = [None] * count
        self._slots = slots
        self._constants = constants
        self.backwards = False
        self.autocast: Callable[[], AbstractContextManager] = nullcontext

    def lookup(self, node: fx.Node) -> Any:
        slot = self._slots.get(node)
        return self._constants[node] if slot is None else self.values[slot]

    def give(self, slot: int, gradient: Tensor, *, owned: bool) -> None:
        """A part of a gradient. owned: nobody else will read it, its memory may be written to."""
        parts = self._gradients[slot]
        if parts is None:
            self._gradients[slot] = [(gradient, owned)]
        else:
            parts.append((gradient, owned))

    def take(self, slot: int) -> Parts:
        parts = self._gradients[slot]
        self._gradients[slot] = None
        return parts or []

    @staticmethod
    def split(parts: Parts) -> tuple[Tensor, Tensor | None]:
        """(a tensor that may be written to, one that is still to be added to it or None)."""
        parts = sorted(parts, key=lambda part: not part[1])
        total, owned = parts[0]
        if not owned:
            total = total.clone()
        for part, _ in parts[1:-1]:
            total.add_(part)
        return total, parts[-1][0] if len(parts) > 1 else None

    def add(self, parts: Parts) -> Tensor:
        """The sum, which may be written to."""
        total, other = self.split(parts)
        return total if other is None else total.add_(other)

    def total(self, slot: int) -> Tensor | None:
        """The sum, to be read."""
        parts = self.take(slot)
        if len(parts) == 1:
            return parts[0][0]
        return self.add(parts) if parts else None

    @staticmethod
    def stand_in(like: Tensor, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
        """A tensor that is read for its shape and memory order alone."""
        return torch.empty_strided(shape, strides, dtype=like.dtype, device=like.device)
