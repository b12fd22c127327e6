"""Batch normalisation by the statistics of all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .parallel import Group


@contextmanager
def synced(model: nn.Module, ranks: Group) -> Iterator[None]:
    """The model whose BN layers in train mode normalise by the samples of all ranks, each by its weight.

    The layers stay what they are, with their names in a state_dict; those in eval mode do not communicate. It works on
    CPUs (gloo) and under double backward, which torch.nn.SyncBatchNorm does not. Two all-reduces a layer and pass, for
    mean and variance apart: E[x^2] - E[x]^2 would lose digits.
    """
    with ExitStack() as stack:
        for module in model.modules():
            if (
                isinstance(module, _BatchNorm)
                and type(module).forward is _BatchNorm.forward
                and "forward" not in vars(module)
            ):
                module.forward = partial(_forward, module, ranks)  # type: ignore[method-assign]
                stack.callback(vars(module).pop, "forward")
        yield


class _Sum(torch.autograd.Function):
    """The sum over the ranks; its gradient is the sum of the ranks' gradients.

    A rank without samples of its own goes along, and adds nothing either way.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, ranks: Group) -> Tensor:
        ctx.ranks, ctx.counts = ranks, float(ranks.weight > 0)
        return ranks.sum_(values * ctx.counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _Sum.apply(gradients[0].contiguous(), ctx.ranks) * ctx.counts, None


def _forward(bn: _BatchNorm, ranks: Group, images: Tensor) -> Tensor:
    if not bn.training and bn.running_mean is not None:
        return type(bn).forward(bn, images)
    bn._check_input_dim(images)
    wide = images if images.dtype == torch.float64 else images.float()
    over = [0, *range(2, images.dim())]
    shape = [1, -1, *[1] * (images.dim() - 2)]
    here = wide.new_full((1,), images.numel() / images.shape[1])
    first = _Sum.apply(torch.cat([wide.sum(over), here]), ranks)
    number = first[-1].detach()
    mean = first[:-1] / number
    centred = wide - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(over), ranks) / number
    if bn.training and bn.running_mean is not None:
        _move(bn, mean.detach(), variance.detach() * number / (number - 1))
    found = centred * (variance + bn.eps).rsqrt().view(shape)
    if bn.affine:
        found = found * bn.weight.view(shape) + bn.bias.view(shape)
    return found.to(images.dtype)


@torch.no_grad()
def _move(bn: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """The running statistics by one step."""
    assert bn.running_mean is not None and bn.running_var is not None
    bn.num_batches_tracked.add_(1)  # type: ignore[union-attr]
    share: Any = bn.momentum
    if share is None:
        share = 1.0 / bn.num_batches_tracked.to(mean.dtype)  # type: ignore[union-attr]
    bn.running_mean.lerp_(mean.to(bn.running_mean.dtype), share)
    bn.running_var.lerp_(variance.to(bn.running_var.dtype), share)
