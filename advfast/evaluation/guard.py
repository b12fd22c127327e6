"""Lends a model to code that is not ours, and takes it back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def lent(model: object) -> Iterator[list[str]]:
    """Afterwards modes, requires_grad, .grad and buffers are as they were, whatever the code did or raised.

    Yields:
        A list that is filled at the end with what could not be put back: writing to the weights.
    """
    found: list[str] = []
    if not isinstance(model, nn.Module):
        yield found
        return
    modes = [(module, module.training) for module in model.modules()]
    parameters = [
        (name, parameter, parameter.requires_grad, parameter.grad, parameter._version)
        for name, parameter in model.named_parameters()
    ]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    for _, parameter, *_ in parameters:
        # A backward pass adds to the tensor in .grad, and that may be somebody's.
        parameter.grad = None
    try:
        yield found
    finally:
        for module, training in modes:
            module.training = training
        for name, parameter, requires_grad, grad, version in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
            if parameter._version != version:
                found.append(name)
        with torch.no_grad():
            for module, name, buffer, values in buffers:
                buffer.copy_(values)
                module._buffers[name] = buffer
