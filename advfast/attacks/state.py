"""Leaves a model as it was found: modes of every submodule and buffers, also when the attack raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

BN_MODES = ("eval", "train", "train-update")


@contextmanager
def crafting(model: object, bn: str) -> Iterator[None]:
    """The model in the mode for crafting, and afterwards exactly as it was.

    Args:
        model: an nn.Module; any other callable is left alone.
        bn: "eval": every submodule in eval mode. "train": the modes as they are if the model is in train mode (a frozen
            BN stays frozen), else all in train mode; buffers are put back. "train-update": the same, but running
            statistics move, as in recipes that were published that way.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    modes = [(module, module.training) for module in model.modules()]
    buffers = []
    if bn == "train":
        buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
    try:
        if bn == "eval":
            if any(training for _, training in modes):
                model.eval()
        elif not model.training:
            model.train()
        yield
    finally:
        for module, training in modes:
            # Not module.train(): that would change its children too.
            module.training = training
        with torch.no_grad():
            for module, name, buffer, values in buffers:
                buffer.copy_(values)
                module._buffers[name] = buffer


def parameter_dtype(model: object) -> torch.dtype | None:
    """The dtype of the first floating-point parameter, or buffer; None without any."""
    if not isinstance(model, nn.Module):
        return None
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            if tensor.is_floating_point():
                return tensor.dtype
    return None


def model_device(model: object) -> torch.device | None:
    """The device of the first parameter or buffer; None without any."""
    if not isinstance(model, nn.Module):
        return None
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return None
