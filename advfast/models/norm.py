"""Other kinds of batch normalisation in place of a network's own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .layers import check_choice

NORM_LAYERS = ("batch", "batch-no-stats", "dual-batch")
BRANCHES = ("adversarial", "clean")


class DualBatchNorm(nn.Module):
    """Batch normalisation with weights and running statistics of its own for clean and for adversarial images.

    Xie et al. (CVPR 2020, AdvProp). `branch` says which is used, see the function of that name.

    Args:
        norm: the layer that both begin as copies of.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.adversarial = copy.deepcopy(norm)
        self.clean = copy.deepcopy(norm)
        self.branch = "adversarial"

    def forward(self, images: Tensor) -> Tensor:
        return self.clean(images) if self.branch == "clean" else self.adversarial(images)

    def extra_repr(self) -> str:
        return f"branch={self.branch}"


@contextmanager
def branch(model: nn.Module, name: str) -> Iterator[None]:
    """The model with the "clean" or the "adversarial" branch of its dual layers; everywhere else it is the latter.

    Raises:
        ValueError: neither of the two.
    """
    check_choice("branch", name, BRANCHES)
    layers = [module for module in model.modules() if isinstance(module, DualBatchNorm)]
    before = [layer.branch for layer in layers]
    try:
        for layer in layers:
            layer.branch = name
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.branch = value


def use_norm_layers(model: nn.Module, kind: str) -> None:
    """Replaces every batch normalisation of a model, in place.

    Args:
        kind: "batch": as they are. "batch-no-stats": without running statistics, so that a batch is normalised by
            itself also in eval mode: what a sample gets then depends on the batch that it is in. "dual-batch": see
            `DualBatchNorm`; each branch begins with the weights and statistics that are there.

    Raises:
        ValueError: another kind, no batch normalisation to replace, or it was replaced by another kind before.
    """
    check_choice("norm_layers", kind, NORM_LAYERS)
    present = norm_layers(model)
    if kind == present:
        return
    if present != "batch":
        raise ValueError(f"norm_layers={kind!r}: the model has {present!r} already")
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()  # not named_children, which leaves out a second place
        if isinstance(child, _BatchNorm)
    ]
    if not found:
        raise ValueError(f"norm_layers={kind!r}: the model has no batch normalisation")
    made: dict[nn.Module, nn.Module] = {}  # a layer that is used twice stays one
    for parent, name, child in found:
        if child not in made:
            made[child] = DualBatchNorm(child) if kind == "dual-batch" else _without(child)
            made[child].train(child.training)
        setattr(parent, name, made[child])
    model.__dict__["_advfast_norm_layers"] = kind


def fixed_statistics(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy in eval mode whose batch normalisation has the statistics of these images, as constants.

    Each layer's mean and (biased) variance over the images [B, C, H, W], given what the layers before it make of them:
    on the images themselves it is what batch statistics give. A network without running statistics becomes a function
    of one sample. A layer that is used twice keeps the statistics of the last time.
    """
    fixed = copy.deepcopy(model).eval()

    def measured(layer: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        axes = [axis for axis in range(inputs[0].dim()) if axis != 1]
        var, mean = torch.var_mean(inputs[0], axes, correction=0)
        layer.running_mean, layer.running_var = mean, var
        layer.track_running_stats = True

    hooks = [
        layer.register_forward_pre_hook(measured)
        for layer in fixed.modules()
        if isinstance(layer, _BatchNorm)
    ]
    with torch.no_grad():
        fixed(images)
    for hook in hooks:
        hook.remove()
    fixed.__dict__.pop("_advfast_norm_layers", None)
    return fixed


def norm_layers(model: nn.Module) -> str:
    """The kind that `use_norm_layers` put in."""
    return model.__dict__.get("_advfast_norm_layers", "batch")


def _without(norm: _BatchNorm) -> _BatchNorm:
    bare = copy.deepcopy(norm)
    bare.track_running_stats = False
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        bare.register_buffer(name, None)
    return bare
