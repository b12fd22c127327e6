"""`pgd_step_` for a loop: what does not change from step to step is checked and converted once."""

from __future__ import annotations

import torch
from torch import Tensor

from .api import (
    Bounds,
    Number,
    _box,
    _check_x,
    _eps,
    _format_of,
    _next_input,
    _operand,
    _tensor_operand,
    check_norm,
)
from .ops import pgd_step_op

_OP = "pgd_step_"


class PreparedStep:
    """A PGD step on one x, in place; the arguments and errors are those of `pgd_step_`.

    x, x0, out and nonfinite are held: the step is for these very tensors.
    """

    def __init__(
        self,
        x: Tensor,  # [B, ...]
        x0: Tensor,  # [B, ...]
        *,
        alpha: Number,
        eps: Number,
        norm: str,
        bounds: Bounds,
        mask: Tensor | None,
        out: Tensor | None,
        nonfinite: Tensor,
        l2_order: str,
        impl: str,
    ) -> None:
        norm = check_norm(_OP, norm)
        _check_x(_OP, x, x0)
        step = _operand(_OP, "alpha", alpha, x, finite=True)
        radius = _eps(_OP, eps, x, norm)
        lo, hi = _box(_OP, bounds, x)
        _next_input(_OP, x, out, None, None)
        self._x = x
        self._format = _format_of(x)
        self._mask = None if mask is None else _tensor_operand(_OP, "mask", mask, x, torch.bool)
        self._numbers = (step.number, radius.number, lo.number, hi.number, norm, l2_order)
        self._tensors = (step.tensor, radius.tensor, lo.tensor, hi.tensor)
        self._x0, self._out, self._nonfinite, self._impl = x0, out, nonfinite, impl

    def __call__(self, grad: Tensor, active: Tensor | None = None) -> None:
        """
        Args:
            grad: shape of x, of a float dtype, on its device; in another layout it is copied.
            active: bool [B, 1, ...]; False: the sample counts as masked.
        """
        x = self._x
        if grad.stride() != x.stride() and not grad.is_contiguous(memory_format=self._format):
            grad = grad.contiguous(memory_format=self._format)
        mask = self._mask
        if active is not None:
            both = active if mask is None else mask & active
            mask = active if mask is None else _tensor_operand(_OP, "mask", both, x, torch.bool)
        pgd_step_op(
            x, grad, self._x0, *self._numbers, *self._tensors, mask, self._out, None, None,
            self._nonfinite, self._impl,
        )  # fmt: skip
