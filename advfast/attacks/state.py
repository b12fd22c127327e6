"""Leaves a model as it was found: modes of every submodule and buffers, also when the attack raises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

BN_MODES = ("eval", "train", "train-update")
_SYNCED = ("require_backward_grad_sync", "require_forward_param_sync")
"""Attributes of DistributedDataParallel that let it talk to the other ranks."""


def bare_model(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The module inside DistributedDataParallel or DataParallel; anything else as it is.

    An attack takes no weight gradient, so that nothing is to be reduced; what the wrapper prepares for its own backward
    pass would be left waiting for it, and ranks that take different numbers of steps would wait for each other.
    """
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    return model


@contextmanager
def crafting(model: object, bn: str) -> Iterator[None]:
    """The model in the mode for crafting, and afterwards exactly as it was; no rank waits for another meanwhile.

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
    # Those within a larger module, which `bare_model` does not see.
    wrapped = [
        (module, name, getattr(module, name))
        for module, _ in modes
        if isinstance(module, nn.parallel.DistributedDataParallel)
        for name in _SYNCED
    ]
    buffers = []
    if bn == "train":
        buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
    try:
        for wrapper, name, _ in wrapped:
            setattr(wrapper, name, False)
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
        for wrapper, name, value in wrapped:
            setattr(wrapper, name, value)
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
