"""Lends a model to the checks, so that nothing they do to it, or it does to itself, stays."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from advfast.attacks.state import crafting


@contextmanager
def generators(device: torch.device, seed: int) -> Iterator[None]:
    """The global generators of torch (CPU and `device`), numpy and Python, seeded, and afterwards as they were."""
    cuda = device.type == "cuda"
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if cuda else []):
        # Not torch.manual_seed: it would move the generators of other devices too.
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


def states(device: torch.device) -> list[Tensor]:
    """Of torch's generators: whether a model draws from them shows in these."""
    found = [torch.get_rng_state()]
    if device.type == "cuda":
        found.append(torch.cuda.get_rng_state(device))
    return found


@dataclass
class _Kept:
    """A parameter or buffer, and what it was."""

    owner: nn.Module
    name: str
    tensor: Tensor
    values: Tensor
    requires_grad: bool
    grad: Tensor | None

    @property
    def place(self) -> dict:
        place = self.owner._parameters
        return place if self.name in place else self.owner._buffers

    def changed(self) -> bool:
        now = self.place.get(self.name)
        if not isinstance(now, Tensor) or now.shape != self.values.shape:
            return True
        now = now.detach()
        # NaN equals itself here.
        return not bool(
            ((now == self.values) | ((now != now) & (self.values != self.values))).all()
        )

    def restore(self) -> None:
        with torch.no_grad():
            if self.changed() or self.place.get(self.name) is not self.tensor:
                self.tensor.copy_(self.values)
                self.place[self.name] = self.tensor
        if self.tensor.is_leaf:
            self.tensor.requires_grad_(self.requires_grad)
        self.tensor.grad = self.grad


@dataclass
class Borrowed:
    """Parameters and buffers of a model as they were; none for a callable that is no nn.Module."""

    kept: list[_Kept] = field(default_factory=list)

    def changed(self) -> list[str]:
        """Names of parameters and buffers that have other values now."""
        return [kept.name for kept in self.kept if kept.changed()]

    def restore(self) -> None:
        for kept in self.kept:
            kept.restore()


@contextmanager
def kept(model: object) -> Iterator[Borrowed]:
    """Afterwards weights, buffers, requires_grad and .grad are as they were."""
    held = Borrowed()
    if isinstance(model, nn.Module):
        seen: set[int] = set()
        for module in model.modules():
            for place in (module._parameters, module._buffers):
                for name, tensor in place.items():
                    if tensor is not None and id(tensor) not in seen:
                        seen.add(id(tensor))
                        held.kept.append(_keep(module, name, tensor))
    try:
        yield held
    finally:
        held.restore()


def _keep(module: nn.Module, name: str, tensor: Tensor) -> _Kept:
    grad = tensor.grad if tensor.is_leaf else None
    found = _Kept(module, name, tensor, tensor.detach().clone(), tensor.requires_grad, grad)
    if tensor.is_leaf:
        tensor.grad = None  # a backward pass would add to what may be somebody's
    return found


@contextmanager
def borrowed(model: object) -> Iterator[Borrowed]:
    """The same, and in eval mode meanwhile."""
    with crafting(model, "eval"), kept(model) as held:
        yield held
