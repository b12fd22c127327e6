"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .base import Modifier


class EMA(Modifier):
    """average <- decay * average + (1 - decay) * weights after every step; the average is what is evaluated and saved.

    Early on the decay is (1 + n) / (10 + n) if that is smaller, n the number of steps, so that the initial weights do
    not linger. Floating-point buffers (running statistics of batch normalisation) are averaged alike, others copied:
    the statistics then belong to the averaged weights.

    Args:
        decay: 0 .. 1, such as 0.999.

    Raises:
        ValueError: decay out of range.
    """

    name = "ema"

    def __init__(self, decay: float) -> None:
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay < 1:
            raise ValueError(f"ema must be a decay of at least 0 and below 1, got {decay!r}")
        self.decay = float(decay)
        self.steps = 0
        self.average: dict[str, Tensor] = {}

    def begin(self, model: nn.Module) -> None:
        self.steps = 0
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        averages, values = [], []
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                averages.append(self.average[name])
                values.append(value)
            else:
                self.average[name].copy_(value)
        torch._foreach_lerp_(averages, values, weight)

    @contextmanager
    def evaluating(self, model: nn.Module) -> Iterator[None]:
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])
        with torch.no_grad():
            for name, value in state["average"].items():
                self.average[name].copy_(value)
