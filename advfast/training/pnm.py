"""Positive-negative momentum: optimisers with more gradient noise at the same drift (Xie et al., ICML 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class PNM(torch.optim.Optimizer):
    """Positive-negative momentum (Xie et al., ICML 2021, Algorithm 1): the optimiser of DEAT (Sun et al., KDD 2023).

    Two averages of the gradients, one of the odd steps and one of the even ones. With P that of the step at hand, N the
    other one and g the gradient:

        w <- (1 - lr weight_decay) w                            (coupled: g <- g + weight_decay w)
        P <- b1^2 P + (1 - b1^2) g
        w <- w - lr ((1 + b2) P - b2 N) / c,   c = sqrt((1 + b2)^2 + b2^2)

    Along a constant gradient a step moves lr / c, where SGD with momentum m moves lr / (1 - m): with b2 = 1 and m = 0.9
    that is 22 times less at the same rate. The rate to give is ten times that of SGD.

    All work of a step is on the device, by torch's foreach functions, and so is the skipping of a step whose gradients
    a `GradScaler` found to be infinite: weights and averages then stay as they are, and the step still counts, so that
    the next one is of the other parity. Memory: two buffers, and a third of that size during a step.

    Args:
        params: as of every optimiser of torch; groups may have values of their own.
        lr: learning rate > 0; a float or a 0-d tensor.
        betas: (b1, b2), 0 <= b1 < 1 and b2 >= 0.
        weight_decay: >= 0.
        decoupled: False adds it to the gradient, as SGD does.

    Raises:
        ValueError: out of range.
    """

    _step_supports_amp_scaling = True
    _BETAS: tuple[str, ...] = ("b1", "b2")
    _STATE: tuple[str, ...] = ("odd", "even")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1.0,
        betas: Sequence[float] = (0.9, 1.0),
        weight_decay: float = 0.0,
        *,
        decoupled: bool = True,
    ) -> None:
        self._begin(params, lr, betas, weight_decay, decoupled)

    def _begin(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        betas: Sequence[float],
        weight_decay: float,
        decoupled: bool,
        **more: Any,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": self._checked(betas),
            "weight_decay": weight_decay,
            "decoupled": _switch("decoupled", decoupled),
            "step": 0,
        }
        if not 0 < lr < math.inf:
            raise ValueError(f"lr must be a finite number > 0, got {lr}")
        if not 0 <= weight_decay < math.inf:
            raise ValueError(f"weight_decay must be a finite number >= 0, got {weight_decay}")
        super().__init__(params, defaults | more)

    @classmethod
    def _checked(cls, betas: Sequence[float]) -> tuple[float, ...]:
        """
        Raises:
            ValueError: not so many numbers, or out of range.
        """
        kinds = (list, tuple)
        if not isinstance(betas, kinds) or len(betas) != len(cls._BETAS) or not _numbers(betas):
            raise ValueError(
                f"betas of {cls.__name__} must be {len(cls._BETAS)} numbers ({', '.join(cls._BETAS)}), got {betas!r}"
            )
        for name, beta in zip(cls._BETAS[:-1], betas, strict=False):
            if not 0 <= beta < 1:
                raise ValueError(
                    f"{name} in betas of {cls.__name__} must be at least 0 and below 1, got {beta}"
                )
        if not 0 <= betas[-1] < math.inf:
            raise ValueError(
                f"{cls._BETAS[-1]} in betas of {cls.__name__} must be a finite number >= 0, got {betas[-1]}"
            )
        return tuple(map(float, betas))

    def graph_key(self) -> Hashable:
        """Which of the two averages the next step changes, by group: a CUDA graph has it for good."""
        return tuple(group["step"] % 2 for group in self.param_groups)

    def replayed(self) -> None:
        """Counts a step that a CUDA graph has done."""
        for group in self.param_groups:
            group["step"] += 1

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure` as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["step"] += 1
            for parameter in group["params"]:
                # Of all of them at once: none may be made while a graph is recorded.
                if not self.state[parameter]:
                    self._make_state(group, parameter)
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(group, parameters)
        return loss

    def _make_state(self, group: dict[str, Any], parameter: Tensor) -> None:
        for name in self._STATE:
            self.state[parameter][name] = torch.zeros_like(parameter)

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        rate = self._rate(group, parameters[0])
        difference = self._difference(group, parameters, self._gradients(group, parameters))
        _descend(group, parameters, difference, rate)

    def _rate(self, group: dict[str, Any], like: Tensor) -> Tensor:
        """lr as a 0-d tensor on the device, so that a recorded step has the bits of any other; 0 to skip the step."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        lr = group["lr"]
        if isinstance(lr, Tensor):
            rate = lr.to(like.device, dtype)
        else:
            rate = torch.full((), lr, dtype=dtype, device=like.device)
        return self._unless_skipped(rate, torch.zeros_like(rate))

    def _gradients(self, group: dict[str, Any], parameters: list[Tensor]) -> Sequence[Tensor]:
        """Without the scale of the loss, with coupled weight decay."""
        gradients: Sequence[Any] = [parameter.grad for parameter in parameters]
        scale = getattr(self, "grad_scale", None)
        if scale is not None:
            gradients = torch._foreach_div(list(gradients), scale)
        if group["weight_decay"] and not group["decoupled"]:
            decay = group["weight_decay"]
            gradients = torch._foreach_add(list(gradients), parameters, alpha=decay)
        return gradients

    def _difference(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """(1 + b) P - b N with the last of the betas; not yet divided by c."""
        names = ("odd", "even") if group["step"] % 2 else ("even", "odd")
        p, n = ([self.state[parameter][name] for parameter in parameters] for name in names)
        self._average(p, gradients, 1 - group["betas"][0] ** 2)
        return torch._foreach_lerp(n, p, 1 + group["betas"][-1])

    def _average(self, averages: list[Tensor], values: Sequence[Tensor], weight: float) -> None:
        """averages <- (1 - weight) averages + weight values."""
        if getattr(self, "found_inf", None) is not None:
            values = list(map(self._unless_skipped, values, averages))
        torch._foreach_lerp_(averages, list(values), weight)

    def _unless_skipped(self, value: Tensor, instead: Tensor) -> Tensor:
        """`value`; what is `instead` where the gradient scaler found an infinite gradient."""
        found = getattr(self, "found_inf", None)
        return value if found is None else torch.where(found > 0, instead, value)


class AdaPNM(PNM):
    """Adaptive positive-negative momentum (Xie et al., ICML 2021, Algorithm 2; defaults as published).

    As `PNM` with betas (b1, b2, b3); with u the largest v so far (`amsgrad`), else v, and t the steps that were not
    skipped:

        v <- b2 v + (1 - b2) g^2
        w <- w - lr / (1 - b1^t) * ((1 + b3) P - b3 N) / c / (sqrt(u / (1 - b2^t)) + eps),   c = sqrt((1 + b3)^2 + b3^2)

    The first correction is that of Adam, as published. P and N are averages of every second gradient, whose own
    corrections would be 1 - b1^(t + 1) and 1 - b1^(t - 1): the first step along a constant gradient is 1.7 lr, where
    later ones are 0.45 lr. Memory: three buffers, four with `amsgrad`.

    Args:
        params, lr, weight_decay, decoupled: as of `PNM`.
        betas: (b1, b2, b3), b1 and b2 at least 0 and below 1, b3 >= 0.
        eps: > 0, added to the denominator.
        amsgrad: divide by the largest second moment so far.

    Raises:
        ValueError: out of range.
    """

    _BETAS = ("b1", "b2", "b3")
    _STATE = ("odd", "even", "square")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: Sequence[float] = (0.9, 0.999, 1.0),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        amsgrad: bool = True,
        decoupled: bool = True,
    ) -> None:
        if not _numbers([eps]) or not 0 < eps < math.inf:
            raise ValueError(f"eps of AdaPNM must be a finite number > 0, got {eps!r}")
        amsgrad = _switch("amsgrad", amsgrad)
        self._begin(params, lr, betas, weight_decay, decoupled, eps=eps, amsgrad=amsgrad)

    def _make_state(self, group: dict[str, Any], parameter: Tensor) -> None:
        super()._make_state(group, parameter)
        state = self.state[parameter]
        if group["amsgrad"]:
            state["largest"] = torch.zeros_like(parameter)
        if parameter is group["params"][0]:
            # Of the group; on the device, where a skipped step is known.
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            state["steps"] = torch.zeros((), dtype=dtype, device=parameter.device)

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        b1, b2, _ = group["betas"]
        rate = self._rate(group, parameters[0])
        gradients = self._gradients(group, parameters)
        difference = self._difference(group, parameters, gradients)
        names = ("square", "largest") if group["amsgrad"] else ("square",)
        squares, *largest = ([self.state[p][name] for p in parameters] for name in names)
        self._average(squares, torch._foreach_mul(list(gradients), list(gradients)), 1 - b2)
        if largest:
            torch._foreach_maximum_(largest[0], squares)
        steps = self.state[group["params"][0]]["steps"]
        steps.add_(self._unless_skipped(torch.ones_like(steps), torch.zeros_like(steps)))
        first, second = _correction(b1, steps), _correction(b2, steps)
        roots = torch._foreach_sqrt(largest[0] if largest else squares)
        torch._foreach_div_(roots, second.sqrt())
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_div_(list(difference), roots)
        _descend(group, parameters, difference, rate, first)


def noise_norm(group: dict[str, Any]) -> float:
    """c: a step moves lr / c along a constant gradient (of AdaPNM: along its sign), in the long run."""
    b = group["betas"][-1]
    return math.hypot(1 + b, b)


def _descend(
    group: dict[str, Any],
    parameters: list[Tensor],
    difference: Sequence[Tensor],
    rate: Tensor,
    correction: Tensor | float = 1.0,
) -> None:
    if group["weight_decay"] and group["decoupled"]:
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
    torch._foreach_mul_(list(difference), rate / noise_norm(group) / correction)
    torch._foreach_sub_(parameters, list(difference))


def _correction(beta: float, steps: Tensor) -> Tensor:
    """1 - beta^steps, precise where that is small; that of one step before the first."""
    if beta == 0:
        return torch.ones_like(steps)
    return -torch.expm1(steps.clamp(min=1) * math.log(beta))


def _numbers(values: Iterable[object]) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


def _switch(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return value
