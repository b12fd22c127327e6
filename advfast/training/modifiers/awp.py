"""Adversarial weight perturbation (Wu, Xia and Wang, NeurIPS 2020)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .base import Modifier, RunInfo, StepInfo, Update


class AWP(Modifier):
    """The step is taken from the gradient at weights that were moved up the loss.

    v = gamma * |w| / (|g| + 1e-20) * g for each weight tensor w, g its gradient on the batch in train mode; then
    w += v, gradient and optimiser's step, w -= v. Only tensors of two or more axes whose name ends in "weight" are
    moved. The running statistics of the pass that finds g are put back, those of the step's own pass, with moved
    weights, stay: as in the published code. What is not finite in v is 0.

    Args:
        gamma: size of v in units of |w|, 0 or more: 0.01 is published for PGD-AT, 0.005 for TRADES.
        warmup: epochs at the beginning without it: 0 is published for PGD-AT, 10 for TRADES.

    Raises:
        ValueError: either out of range.
    """

    name = "awp"

    needs_separable = True

    def __init__(self, gamma: float = 0.01, warmup: float = 0) -> None:
        for word, value in (("gamma", gamma), ("warmup", warmup)):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value < math.inf:
                raise ValueError(f"awp: {word} must be a finite number >= 0, got {value!r}")
        self.gamma, self.warmup = float(gamma), float(warmup)
        self.active = False
        self._places: list[int] = []
        self._weights: list[Tensor] = []
        self._moves: list[Tensor] = []

    def begin(self, model: nn.Module, run: RunInfo) -> None:
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._places = [
            place
            for place, (name, p) in enumerate(trained)
            if p.dim() > 1 and name.endswith("weight")
        ]
        self._weights = [trained[place][1].detach() for place in self._places]
        self._moves = [torch.zeros_like(weight) for weight in self._weights]

    def before_step(self, info: StepInfo) -> None:
        # A gamma of 0 is no second pass, which would draw dropout's random numbers too.
        self.active = self.gamma > 0 and info.done >= self.warmup

    def graph_key(self) -> Hashable:
        return self.active

    def extra_passes(self) -> float:
        return 3.0 if self.gamma else 0.0

    @contextmanager
    def updating(self, update: Update) -> Iterator[None]:
        if not self.active or not self._weights:
            yield
            return
        self._find(update.gradients())
        torch._foreach_add_(self._weights, self._moves)
        try:
            yield
        finally:
            torch._foreach_sub_(self._weights, self._moves)

    @torch.no_grad()
    def _find(self, gradients: list[Tensor | None]) -> None:
        """Fills `_moves`."""
        chosen = [gradients[place] for place in self._places]
        for move, gradient in zip(self._moves, chosen, strict=True):
            move.zero_() if gradient is None else move.copy_(gradient)
        sizes = torch._foreach_norm(self._weights)
        lengths = torch._foreach_norm(self._moves)
        torch._foreach_add_(lengths, 1e-20)
        scales = torch._foreach_div(sizes, lengths)
        torch._foreach_mul_(scales, self.gamma)
        torch._foreach_mul_(self._moves, list(scales))
        for move in self._moves:
            torch.nan_to_num_(move, nan=0.0, posinf=0.0, neginf=0.0)
