"""Any callable, by autograd."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from advfast.attacks import checks
from advfast.attacks.first_layer import fast_first_layer

_SIXTEEN_BIT = (torch.float16, torch.bfloat16)
_SMALL = 2.0**-64


def rescaled(gradient: Tensor) -> Tensor:
    """[B, K] each row times the power of two that brings its largest entry to between 1 and 2.

    What enters a 16-bit network: a confident sample's gradient would underflow to zero, and the sample would look
    robust. Directions do not change.
    """
    largest = gradient.abs().amax(1, keepdim=True)
    # Twice, for a denormal number: its inverse is none.
    lift = torch.where(largest < _SMALL, 1 / _SMALL, 1.0)
    gradient, largest = gradient * lift, largest * lift
    return gradient * torch.exp2(-torch.floor(torch.log2(torch.where(largest > 0, largest, 1.0))))


class PlainNetwork:
    """The loop that everybody writes: its bits are the definition."""

    memory_format: torch.memory_format | None = None

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        input_dtype: torch.dtype,
        select: Callable[[object], Tensor],
        sixteen_bit: bool,
        fold: bool,
        deterministic: bool,
        example: Tensor,
    ) -> None:
        self.input_dtype = input_dtype
        self.deterministic = deterministic
        self._model = model
        self._select = select
        self._sixteen_bit = sixteen_bit
        self._first_layer = fast_first_layer(model, example) if fold else nullcontext()

    def logits(self, model_input: Tensor) -> Tensor:
        with torch.no_grad():
            return self._select(self._model(model_input)).detach()

    def gradient(
        self, model_input: Tensor, objective: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        model_input = model_input.detach().requires_grad_()
        # Also around the backward pass: a checkpointed network computes its layers there once more.
        with self._first_layer:
            logits = self._select(self._model(model_input))
            checks.check_differentiable(logits)
            if self._sixteen_bit or logits.dtype in _SIXTEEN_BIT:
                wide = logits.detach().float().requires_grad_()
                (cotangent,) = torch.autograd.grad(objective(wide).sum(), wide)
                cotangent = rescaled(cotangent).to(logits.dtype)
                (gradient,) = torch.autograd.grad(logits, model_input, cotangent)
            else:
                (gradient,) = torch.autograd.grad(objective(logits).sum(), model_input)
        return logits.detach(), gradient
