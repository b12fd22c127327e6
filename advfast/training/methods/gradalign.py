"""FGSM with gradient alignment (Andriushchenko & Flammarion, NeurIPS 2020)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from advfast.data import Batch
from advfast.kernels import random_start

from .base import Method, Settings, Step

if TYPE_CHECKING:
    from ..loop import Batches

POINTS = ("clean", "adversarial")
FITTED_TO = 16
"""The largest radius, in 1/255, that the published weights are of."""


class GradAlign(Method):
    """CE(f(x'), y) + lam (1 - mean cos(g(x), g(x + u))), g the gradient of the cross-entropy to the input (eq. 4).

    x' is FGSM from x itself with a step of 1.25 eps, projected; u is uniform in the ball, not clamped to the box. As in
    the authors' code the first gradient is detached, so that weights learn through g(x + u) by double
    backpropagation, and samples with a gradient of zero have no part in the mean. All passes of the loss are in train
    mode. `steps` is always 1, whatever is given. Options:

    * lam: None is the published exp(eps 255 ln(10) / 8 + ln 0.02) of linf: 0.2 at 8/255, 2 from 16/255 on;
    * at: where the first gradient is taken, "clean" as published, or "adversarial": at x', in the pass of the loss.

    Raises:
        ValueError: an option out of range, or no `lam` in another norm than linf.
    """

    options = ("lam", "at")
    defaults: ClassVar[dict[str, Any]] = {"alpha_of_eps": 1.25, "steps": 1}

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        self.at = self.option("at", "clean")
        if self.at not in POINTS:
            raise ValueError(f"at must be one of {', '.join(POINTS)}, got {self.at!r}")
        if self.option("lam", None) is not None:
            self.lam = self.number("lam", 0.0)
        elif settings.norm.lower() == "linf":
            self.lam = published(self.eps)
        else:
            raise ValueError(f"norm {settings.norm!r} has no published weight: give lam")
        self.steps = 1
        self.fgsm = self.attack(random_start=False)
        self._seed = torch.zeros(1, dtype=torch.int64)

    def begin(self, batches: Batches, images: Tensor) -> None:
        self._seed = self._seed.to(images.device)

    def craft(self, batch: Batch) -> Tensor:
        # Here and not in the loss, so that all parts of a batch draw from one seed.
        self._seed.copy_(torch.randint(2**63 - 1, (1,), device=batch.images.device))
        return self.fgsm(batch.images, batch.labels, sample_ids=batch.indices)

    def loss(self, images: Tensor, batch: Batch) -> Step:
        near = random_start(
            batch.images.detach(),
            eps=self.eps,
            norm=self.settings.norm,
            bounds=None,
            seed=self._seed,
            sample_ids=batch.indices,
        )
        if self.at == "clean":
            first = self._gradient(batch.images, batch.labels)
            logits = self.logits(images)
        else:
            images = images.detach().requires_grad_()
            logits = self.logits(images)
            first = _to_input(logits, batch.labels, images, retain_graph=True)
        second = self._gradient(near, batch.labels, create_graph=True)
        apart = misalignment(first.detach(), second)
        return Step(self.cross_entropy(logits, batch.labels) + self.lam * apart, logits)

    def strength(self, eps: float, alpha: float, steps: int) -> None:
        super().strength(eps, alpha, 1)

    def _gradient(self, images: Tensor, labels: Tensor, *, create_graph: bool = False) -> Tensor:
        images = images.detach().requires_grad_()
        return _to_input(self.logits(images), labels, images, create_graph=create_graph)

    def passes(self) -> float:
        first = 2 if self.at == "clean" else 1
        # The second gradient: two passes to make it, four to go back through both.
        return 2 + first + 3 + 6


def published(eps: float) -> float:
    """lam of a radius in pixel units: the authors' formula, fitted to their best values at 1/255 .. 16/255.

    Above that it is held: exponential as it is, it would ask for 1206 at 0.15, and training diverges.
    """
    return 0.02 * math.exp(min(eps * 255, FITTED_TO) * math.log(10) / 8)


def misalignment(first: Tensor, second: Tensor) -> Tensor:
    """1 - mean cosine of the samples of two tensors [B, ...]; a sample of zeros has no part in it."""
    first, second = first.flatten(1), second.flatten(1)
    sizes = (first * first).sum(1), (second * second).sum(1)
    seen = (sizes[0] > 0) & (sizes[1] > 0)
    # Before the root, whose derivative at zero is infinite.
    norms = [torch.where(seen, size, 1.0).sqrt() for size in sizes]
    cosine = (first * second).sum(1) / (norms[0] * norms[1])
    return torch.where(seen, 1 - cosine, 0.0).sum() / seen.sum().clamp(min=1)


def _to_input(
    logits: Tensor,
    labels: Tensor,
    images: Tensor,
    *,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> Tensor:
    loss = cross_entropy(logits, labels, reduction="sum")
    (gradient,) = torch.autograd.grad(
        loss, images, retain_graph=retain_graph or create_graph, create_graph=create_graph
    )
    return gradient
