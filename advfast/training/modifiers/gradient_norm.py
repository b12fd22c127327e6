"""The squared norm of the gradient, for the history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .base import Modifier, RunInfo, StepInfo


class GradientNorm(Modifier):
    """A column gradient_norm2 of the history: the mean over the steps of an epoch of |grad_theta L|_2^2.

    Of the gradient of the whole batch, before it is clipped, without weight decay; it changes nothing. Steps whose
    gradient is not finite (in fp16 the scaler leaves them out) do not count.
    """

    name = "gradient-norm"

    def __init__(self) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64)  # of the squares, of the steps
        self._one = torch.ones(())

    def begin(self, model: nn.Module, run: RunInfo) -> None:
        device = next(model.parameters()).device
        # Tensors that stay where they are: a recorded step adds to them.
        self._sums, self._one = self._sums.to(device), self._one.to(device)

    def before_step(self, info: StepInfo) -> None:
        if info.step % info.steps_per_epoch == 0:
            self._sums.zero_()

    def gradient(self, parameters: Sequence[nn.Parameter], scaler: torch.amp.GradScaler) -> None:
        found = [p.grad for p in parameters if p.grad is not None]
        norms = torch.stack([norm.double() for norm in torch._foreach_norm(found)])
        square = (norms / scaler.scale(self._one).double()).square().sum()
        counts = square.isfinite()
        both = torch.stack((torch.where(counts, square, 0.0), counts.double()))
        self._sums.add_(both)

    def columns(self) -> dict[str, float]:
        total, steps = self._sums.tolist()
        return {"gradient_norm2": total / steps if steps else float("nan")}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums.copy_(state["sums"])
