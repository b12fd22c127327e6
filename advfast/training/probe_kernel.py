"""The kernel of some training images under attack, and what it depends on in the images."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from advfast.attacks import PGDAttack
from advfast.attacks.state import crafting

from . import rng

if TYPE_CHECKING:
    from .loop import Batches


def first_images(batches: Batches, count: int) -> tuple[Tensor, Tensor]:
    """The first samples of the first epoch, augmented as there: images [N, C, H, W], classes [N], N <= count."""
    images, labels = [], []
    with closing(batches.batches(1)) as found:  # type: ignore[type-var]
        for batch in found:
            images.append(batch.images)
            labels.append(batch.labels)
            if sum(map(len, labels)) >= count:
                break
    return torch.cat(images)[:count].clone(), torch.cat(labels)[:count].clone()


def attacked(model: nn.Module, images: Tensor, labels: Tensor, eps: float, norm: str) -> Tensor:
    """PGD-10 (steps of eps/4) in eval mode, the same random start each time."""
    if not eps:
        return images
    return PGDAttack(model, eps, eps / 4, 10, True, norm=norm, seed=0, check=False)(images, labels)


def trace_kernel(model: nn.Module, images: Tensor, *, check: bool = False) -> Tensor:
    """K = sum_c J_c J_c^T, float64 [N, N], J_c the gradients of logit c to the weights; see `advfast.ntk.ntk`.

    Nothing is divided by the number of classes: what is read off this kernel does not change with a factor.
    """
    # Not before it is used: advfast.ntk itself imports from here.
    from advfast.ntk import metrics, ntk

    before = rng.state()
    try:
        return metrics.matrix(ntk(model, images, readout="trace", check=check))
    finally:
        rng.set_state(before)


def input_saliency(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, norm: str
) -> Tensor:
    """The input saliency of the largest eigenvalue of the kernel K' of attacked images.

    v [N] is the leading eigenvector of the trace kernel K' on x' = PGD-10(x), in eval mode. The saliency is the mean
    over images i and logits c of |v_i d f_c(x'_i) / d x|, over its own mean: what each pixel does to the logits, images
    counted by their part in the eigenvector. (Our reading of a remedy that is published without its definition. Each
    logit by itself, as K' is the sum of their kernels; the gradient of the sum of the logits is what cross-entropy
    does not see.)

    Args:
        images: [N, C, H, W] in the box.
        labels: classes [N].
        eps, norm: of the attack.

    Returns:
        s [C, H, W], 0 or more, of mean 1; 1 everywhere where no pixel has an influence.
    """
    x = attacked(model, images, labels, eps, norm).detach()
    _, vectors = torch.linalg.eigh(trace_kernel(model, x))
    weight = vectors[:, -1].abs().to(x).view(-1, *[1] * (x.dim() - 1))
    total = torch.zeros_like(x[0])
    with crafting(model, "eval"), torch.enable_grad():
        x = x.requires_grad_()
        logits = model(x)
        for column in range(logits.shape[1]):
            (gradient,) = torch.autograd.grad(logits[:, column].sum(), x, retain_graph=True)
            total += (weight * gradient.abs()).sum(0)
    mean = total.mean()
    return total / mean if mean > 0 else torch.ones_like(total)
