"""Exponential moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .base import Modifier, RunInfo, StepInfo

BUFFERS = ("average", "copy")


class EMA(Modifier):
    """average <- decay * average + (1 - decay) * weights after every step; the average is what is evaluated and saved.

    Early on the decay is (1 + n) / (10 + n) if that is smaller, n the number of steps since the warm-up, so that the
    initial weights do not linger. During the warm-up it is 0 (Rebuffi et al. 2021; Wang et al., ICML 2023, who take
    decay 0.995 and a warm-up of 0.025 of the run, and copy the buffers).

    Args:
        decay: 0 .. 1, such as 0.999.
        warmup: below 1 a share of the run, from 1 on a number of epochs.
        buffers: "average": floating-point buffers (running statistics of batch normalisation) are averaged alike, so
            that they belong to the averaged weights, others copied. "copy": all are those of the model.

    Raises:
        ValueError: one of them out of range.
    """

    name = "ema"

    averages = True

    def __init__(self, decay: float = 0.995, warmup: float = 0.0, buffers: str = "average") -> None:
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay < 1:
            raise ValueError(f"ema must be a decay of at least 0 and below 1, got {decay!r}")
        number = isinstance(warmup, (int, float)) and not isinstance(warmup, bool)
        if not number or not 0 <= warmup < math.inf:
            raise ValueError(f"ema: warmup must be a finite number >= 0, got {warmup!r}")
        if buffers not in BUFFERS:
            raise ValueError(f"ema: buffers must be one of {', '.join(BUFFERS)}, got {buffers!r}")
        self.decay, self.warmup, self.buffers = float(decay), float(warmup), buffers
        self.average: dict[str, Tensor] = {}
        self._copied: set[str] = set()
        self._weight = torch.ones((), dtype=torch.float64)

    def begin(self, model: nn.Module, run: RunInfo) -> None:
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self._copied = {
            name
            for name, value in self.average.items()
            if not value.is_floating_point() or (self.buffers == "copy" and name not in parameters)
        }
        # A tensor that stays where it is: a recorded step reads it.
        device = next(model.parameters()).device
        self._weight = torch.ones((), dtype=torch.float64, device=device)

    def before_step(self, info: StepInfo) -> None:
        epochs = self.warmup if self.warmup >= 1 else self.warmup * info.epochs
        step = info.step - math.ceil(epochs * info.steps_per_epoch)
        self._weight.fill_(1 - min(self.decay, (1 + step) / (10 + step)) if step >= 0 else 1)

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        averages, values = [], []
        for name, value in model.state_dict().items():
            if name in self._copied:
                self.average[name].copy_(value)
            else:
                averages.append(self.average[name])
                values.append(value)
        weights = {value.dtype: self._weight.to(value.dtype) for value in values}
        torch._foreach_lerp_(averages, values, [weights[value.dtype] for value in values])

    @contextmanager
    def evaluating(self, model: nn.Module) -> Iterator[None]:
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, value in state["average"].items():
                self.average[name].copy_(value)
