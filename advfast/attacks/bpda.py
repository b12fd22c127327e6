"""BPDA: a gradient for a step that has none."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class _ValueOf(torch.autograd.Function):
    """The value of one tensor with the gradient of another."""

    generate_vmap_rule = True

    @staticmethod
    def forward(differentiable: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None  # autograd brings it to the dtype of `differentiable`


class BPDA(nn.Module):
    """What `bpda` makes."""

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        backward: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        for name, function in (("forward", forward), ("backward", backward)):
            if not callable(function) and not (function is None and name == "backward"):
                raise TypeError(
                    f"bpda: {name} must be a function of a tensor, got {type(function).__name__}"
                )
        self.value = forward
        self.stand_in = backward

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            value = self.value(_guarded(x))
        _check(value, "forward", x)
        if not torch.is_grad_enabled():
            return value
        differentiable = x if self.stand_in is None else self.stand_in(x)
        if self.stand_in is not None:
            _check(differentiable, "backward", x)
        if differentiable.shape != value.shape:
            other = "x" if self.stand_in is None else "backward(x)"
            raise ValueError(
                f"bpda: forward(x) must have the shape of {other}, {tuple(differentiable.shape)}, "
                f"got {tuple(value.shape)}"
                + ("; give a backward of that shape" if self.stand_in is None else "")
            )
        return _ValueOf.apply(differentiable, value)

    def extra_repr(self) -> str:
        shown = {"forward": self.value, "backward": self.stand_in}
        return ", ".join(
            f"{name}={getattr(function, '__name__', 'identity' if function is None else function)}"
            for name, function in shown.items()
            if not isinstance(function, nn.Module)
        )


def _guarded(x: Tensor) -> Tensor:
    """A copy: a function that works in place would change the caller's images."""
    return x.detach().clone()


def _check(result: object, name: str, x: Tensor) -> None:
    if not isinstance(result, Tensor):
        raise TypeError(f"bpda: {name}(x) must be a tensor, got {type(result).__name__}")
    if not result.is_floating_point():
        raise TypeError(
            f"bpda: {name}(x) must be a float tensor, got {result.dtype}; convert it back to {x.dtype}"
        )
    if result.device != x.device:
        raise ValueError(f"bpda: {name}(x) must be on {x.device} like x, got {result.device}")


def bpda(
    forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor] | None = None
) -> BPDA:
    """A module with the value of `forward` and the gradient of something else, to attack a model through a step that
    has no useful gradient: rounding, JPEG, a decoder (BPDA, Athalye et al., ICML 2018).

    It is put into the model: ``PGDAttack(nn.Sequential(advfast.bpda(quantise), net))``.

    Args:
        forward: x -> a float tensor on x's device. Runs without gradients, so that parameters in it get none; may work
            in place.
        backward: a differentiable stand-in whose result has the shape of forward(x). None: the identity
            (straight-through), for a forward that keeps the shape.

    Returns:
        An nn.Module: x [any shape] -> forward(x). Functions that are nn.Modules are its submodules.

    Raises:
        TypeError, ValueError: something else than functions; at the call, results that do not match.
    """
    return BPDA(forward, backward)
