"""Libraries that never touch the mode of a model, on an engine that sets it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


def as_called(model: Callable) -> tuple[Callable, str]:
    """(model, `bn` of `PGDAttack`) with which the attack sees every submodule in the mode that the caller left it in.

    A model that is wholly in eval mode gives "eval". One in train mode gives "train": batch statistics and dropout as
    in training, running statistics put back. Where only some submodules of a model in eval mode are in train mode
    (dropout at test time), it is hidden in a function, which the engine calls as it is.
    """
    if not isinstance(model, nn.Module) or not any(part.training for part in model.modules()):
        return model, "eval"
    if model.training:
        return model, "train"
    return (lambda images: model(images)), "eval"


@contextmanager
def statistics_kept(model: Callable) -> Iterator[None]:
    """Puts the buffers of such a hidden model back; where the engine sees the modules it does so itself."""
    hidden = isinstance(model, nn.Module) and as_called(model)[0] is not model
    buffers = [(b, b.detach().clone()) for b in model.buffers()] if hidden else []  # type: ignore[attr-defined]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def separates_samples(model: Callable, bn: str) -> bool:
    """Whether a sample's result does not depend on its batch, as far as the modes tell."""
    return bn == "eval" and isinstance(model, nn.Module)
