"""The loss of a method of training as a function of the weights, and how far its gradient moves with them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from advfast.data import Batch
from advfast.training import methods, rng

Change = dict[str, float]


class Objective:
    """L(theta), the mean over images of what a method minimises, in eval mode.

    The network is copied. The method's own images are crafted at the weights of the moment; random starts are the same
    ones every time, so that images differ by the weights alone.

    Args:
        model: images [B, C, H, W] -> logits [B, K].
        method: "standard" (cross-entropy on clean images), "pgd-at", "trades" or another that is `separable`.
        images: [N, C, H, W] in [0, 1], on the device of the model.
        labels: [N] int64.
        eps, alpha, steps, norm, options: as in `advfast.train`.
        seed: of the random starts.
        batch_size: images of one pass.

    Raises:
        ValueError: unknown method, one that is not separable, or bad settings.
    """

    def __init__(
        self,
        model: nn.Module,
        method: str,
        images: Tensor,
        labels: Tensor,
        *,
        eps: float,
        alpha: float | None = None,
        steps: int | None = None,
        norm: str = "linf",
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
        batch_size: int = 250,
    ) -> None:
        self.model = copy.deepcopy(model).eval()
        settings = methods.Settings(
            eps, alpha, steps, norm, options=dict(options or {}), capture="off"
        )
        self.method = methods.make(method, self.model, settings)
        if not self.method.separable:
            raise ValueError(f"method {method!r} has no loss of its own on images that are crafted")
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.seed = seed
        numbers = torch.arange(len(labels), device=images.device)
        self._batches = [
            Batch(images[rows], labels[rows], rows) for rows in numbers.split(batch_size)
        ]
        self._count = len(labels)

    def craft(self) -> list[Tensor]:
        """The images of each batch, at the weights of the moment."""
        with rng.seeded(self.seed):
            return [self.method.craft(batch) for batch in self._batches]

    def loss(self, crafted: Sequence[Tensor]) -> float:
        """At the weights of the moment, on these images."""
        with torch.no_grad():
            losses = [
                self.method.loss(images, batch).loss.double() * len(images) / self._count
                for images, batch in zip(crafted, self._batches, strict=True)
            ]
        return float(torch.stack(losses).sum())

    def gradient(self, crafted: Sequence[Tensor]) -> list[Tensor]:
        """grad_theta L at the weights of the moment on these images, a tensor for each of `parameters`."""
        total = [torch.zeros_like(p) for p in self.parameters]
        for images, batch in zip(crafted, self._batches, strict=True):
            loss = self.method.loss(images, batch).loss * (len(images) / self._count)
            found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
            for sum_, part in zip(total, found, strict=True):
                if part is not None:
                    sum_.add_(part)
        return total

    @contextmanager
    def moved(self, by: Sequence[Tensor], factor: float = 1.0) -> Iterator[None]:
        """With the weights theta + factor * by; afterwards those from before, to the bit."""
        before = [p.detach().clone() for p in self.parameters]
        try:
            with torch.no_grad():
                for parameter, step in zip(self.parameters, by, strict=True):
                    parameter.add_(step, alpha=factor)
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, before, strict=True):
                    parameter.copy_(value)


def gradient_changes(objective: Objective, lambdas: Sequence[float]) -> list[Change]:
    """|grad L(theta + lambda d) - grad L(theta)|_2 along d = grad L(theta) / |grad L(theta)|_2 (arXiv 2106.01606).

    A change of the gradient of an adversarial loss has a part that does not go to 0 with lambda, since x' can jump to
    elsewhere in the ball: |change| <= L_tt lambda + 2 eps L_tx. So x' is made anew at theta + lambda d; with x' held
    as it was at theta that part is missing.

    Args:
        lambdas: lengths of the step in weight space, in units of the weights.

    Returns:
        For each: lambda, gradient (|grad L(theta)|), regenerated (x' made anew) and fixed (x' held).

    Raises:
        ValueError: a lambda that is no finite number.
    """
    for value in lambdas:
        if not math.isfinite(value):
            raise ValueError(f"lambdas must be finite numbers, got {value}")
    held = objective.craft()
    start = objective.gradient(held)
    norm = length(start)
    direction = [part / norm if norm > 0 else part for part in start]
    found = []
    for value in lambdas:
        with objective.moved(direction, value):
            anew = objective.gradient(objective.craft())
            same = objective.gradient(held)
        changes = (
            length([a - b for a, b in zip(other, start, strict=True)]) for other in (anew, same)
        )
        regenerated, fixed = changes
        found.append(
            {"lambda": float(value), "gradient": norm, "regenerated": regenerated, "fixed": fixed}
        )
    return found


def length(parts: Sequence[Tensor]) -> float:
    """l2 norm of all entries together."""
    squares = [part.detach().double().square().sum() for part in parts]
    return float(torch.stack(squares).sum().sqrt())
