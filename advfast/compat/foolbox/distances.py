"""How far a perturbed input is from its reference."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .tensors import unwrapped


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, ...], at the rank of x."""
    return values.reshape(-1, *[1] * (x.dim() - 1))


def within(delta: Tensor, p: float, size: float) -> Tensor:
    """delta [B, ...] with the p-norm of each sample at most `size`: clamped for p = inf, else scaled."""
    if p == math.inf:
        return delta.clamp(-size, size)
    norms = torch.linalg.vector_norm(delta.flatten(1), p, dim=1).clamp(min=1e-12)
    return delta * per_sample((size / norms).clamp(max=1.0), delta)


class LpDistance:
    """The p-norm of the perturbation, over all dimensions but the first."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __repr__(self) -> str:
        return f"LpDistance({self.p})"

    def __str__(self) -> str:
        return f"L{self.p} distance"

    def __call__(self, references: Any, perturbed: Any) -> Any:
        """[B]."""
        x, restore = unwrapped(references, "references")
        y, _ = unwrapped(perturbed, "perturbed")
        return restore(torch.linalg.vector_norm((y - x).flatten(1), self.p, dim=1))

    def clip_perturbation(self, references: Any, perturbed: Any, epsilon: float) -> Any:
        """`perturbed`, moved towards its reference until it is within epsilon: clamped for linf, else scaled."""
        x, restore = unwrapped(references, "references")
        y, _ = unwrapped(perturbed, "perturbed")
        if self.p == 0:
            if bool((self(x, y) <= epsilon).all()):
                return perturbed
            raise NotImplementedError("an l0 perturbation cannot be clipped to epsilon by scaling")
        return restore(x + within(y - x, self.p, epsilon))


l0 = LpDistance(0)
l1 = LpDistance(1)
l2 = LpDistance(2)
linf = LpDistance(math.inf)
