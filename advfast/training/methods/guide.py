"""What methods that are drawn to given predictions have in common (temporal ensembling, Dong et al., ICLR 2022)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from advfast.attacks.losses import widen
from advfast.attacks.state import crafting
from advfast.data import Batch

if TYPE_CHECKING:
    from .base import Method


def pull(logits: Tensor, batch: Batch) -> Tensor:
    """The term of the loss: guide_weight * mean over samples and classes of (softmax(logits) - guide)^2, 0-d.

    `Batch.guide` has no gradient.
    """
    assert batch.guide is not None and batch.guide_weight is not None
    apart = torch.softmax(logits, 1) - batch.guide
    return batch.guide_weight.to(apart.dtype) * apart.square().mean()


def table(target: Tensor, batch: Batch) -> Tensor:
    """[B, 2 K + 1], the labels that `objective` is given with: target [B, K], guide [B, K] and its weight."""
    assert batch.guide is not None and batch.guide_weight is not None
    weight = batch.guide_weight.to(batch.guide.dtype).expand(len(target), 1)
    return torch.cat((target.to(batch.guide.dtype), batch.guide, weight), 1)


def objective(logits: Tensor, table: Tensor) -> Tensor:
    """What the attack raises, [B]: -sum_k target_k log q_k + weight mean_k (q_k - guide_k)^2, q = softmax(logits).

    With the class as the target it is cross-entropy, with b softmax f(x) it is b KL(softmax f(x) || q) and a constant.
    """
    logits = widen(logits)
    classes = logits.shape[1]
    target, guide, weight = table.to(logits.dtype).split((classes, classes, 1), 1)
    log_q = torch.log_softmax(logits, 1)
    apart = log_q.exp() - guide
    return weight[:, 0] * apart.square().mean(1) - (target * log_q).sum(1)


def probabilities(
    method: Method, logits: Callable[[Tensor], Tensor], images: Tensor, bn: str
) -> Tensor:
    """softmax f(x) of clean images, [B, K] float32 (float64 of such logits), without gradient.

    Args:
        method: of the run; no pass has more than its `micro_batch` of samples.
        logits: `Method.logits`, or `Method.clean_logits`.
        bn: as of `PGDAttack`: "eval" leaves the model as it was.
    """
    size = method.settings.micro_batch or len(images)
    with crafting(method.model, bn), torch.no_grad():
        parts = [torch.softmax(logits(part), 1) for part in images.split(size)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
