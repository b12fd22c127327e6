"""Optimisers by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from advfast.kernels.pgd.api import nearest

from .pnm import PNM, AdaPNM, noise_norm

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adamw": torch.optim.AdamW,
    "pnm": PNM,
    "adapnm": AdaPNM,
}

DEFAULT_LR = 0.1
"""Of SGD."""

OF_SGD = {"pnm": 10.0, "adapnm": 0.01}
"""Optimiser -> its rate in place of a rate of 1 for SGD; of the others it is the same."""

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
)

_IMPLEMENTATIONS = {"fused", "foreach", "differentiable", "capturable"}
"""Options of which one at most can be had."""

Maker = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def rate(lr: float | None, optimizer: object) -> float:
    """`lr`, or the default of the optimiser."""
    return DEFAULT_LR * _of_sgd(optimizer) if lr is None else lr


def fitted(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`defaults`, arguments of `train`, with an `lr` for the optimiser that is given in place of theirs.

    A rate for SGD would make steps of PNM that are 22 times shorter.
    """
    own = defaults.get("optimizer", "sgd")
    optimizer = given.get("optimizer", own)
    factor = _of_sgd(optimizer) / _of_sgd(own)
    if "lr" not in defaults or "lr" in given or factor == 1:
        return dict(defaults)
    return {**defaults, "lr": defaults["lr"] * factor}


def _of_sgd(optimizer: object) -> float:
    return OF_SGD.get(optimizer, 1.0) if isinstance(optimizer, str) else 1.0


def effective_step(optimizer: torch.optim.Optimizer) -> float | None:
    """What a step of the first group moves along a constant gradient, in the long run, without weight decay.

    In units of the gradient; of Adam, AdamW and AdaPNM in units of its sign. None where it is not known.
    """
    group = optimizer.param_groups[0]
    lr = float(group["lr"])
    if isinstance(optimizer, PNM):
        return lr / noise_norm(group)
    if isinstance(optimizer, torch.optim.SGD):
        return lr * (1 - group["dampening"] if group["momentum"] else 1) / (1 - group["momentum"])
    if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        return lr
    return None


def told(optimizer: torch.optim.Optimizer, momentum: float) -> str:
    """Of positive-negative momentum: its effective step next to that of what it replaces; "" of others."""
    if not isinstance(optimizer, PNM):
        return ""
    lr, step = float(optimizer.param_groups[0]["lr"]), effective_step(optimizer)
    if isinstance(optimizer, AdaPNM):
        beside = f"AdamW: {lr:.4g} at that rate"
    else:
        rates = lr / OF_SGD["pnm"], lr
        sgd = ", ".join(f"{rate / (1 - momentum):.4g} at rate {rate:.4g}" for rate in rates)
        beside = f"SGD with momentum {momentum:g}: {sgd}"
    return f"effective step {step:.4g} at learning rate {lr:.4g} ({beside})"


def make(
    optimizer: str | Maker,
    model: nn.Module,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    norm_decay: bool = True,
    options: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """An optimiser over all parameters that require gradients.

    Args:
        optimizer: "sgd", "adamw", "pnm", "adapnm", or a function of the parameters that makes one.
        momentum: of SGD.
        weight_decay: on every parameter, as in most published recipes of adversarial training.
        norm_decay: False for none on the parameters of normalisation layers.
        options: further keyword arguments of the class, such as nesterov or betas. Unless they choose another
            implementation of SGD or AdamW it is torch's fused one: a third of the time of the plain one on a CPU, with
            the same arithmetic but for some fused multiply-adds; on a GPU it is what a CUDA graph can hold.

    Raises:
        ValueError, TypeError: unknown name or option, value out of range.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not isinstance(optimizer, str):
        made = optimizer(parameters) if callable(optimizer) else optimizer
        if not isinstance(made, torch.optim.Optimizer):
            raise TypeError(
                "optimizer must be a name or a function of the parameters that returns a "
                f"torch.optim.Optimizer, got {type(made).__name__}"
            )
        return made
    if optimizer not in OPTIMIZERS:
        raise ValueError(
            f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}"
            f"{nearest(optimizer, list(OPTIMIZERS))}"
        )
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be a finite number > 0, got {lr}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be at least 0 and below 1, got {momentum}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be a finite number >= 0, got {weight_decay}")
    kind = OPTIMIZERS[optimizer]
    given: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, **(options or {})}
    if optimizer == "sgd":
        given.setdefault("momentum", momentum)
    known = [key for key in inspect.signature(kind).parameters if key not in ("self", "params")]
    if "fused" in known and not _IMPLEMENTATIONS & given.keys():
        given["fused"] = True
    for key in given:
        if key not in known:
            raise ValueError(
                f"optimizer {optimizer!r} has no option {key!r}{nearest(key, known)}; it has "
                + ", ".join(known)
            )
    if norm_decay or not weight_decay:
        return kind(parameters, **given)
    norms = {
        parameter
        for module in model.modules()
        if isinstance(module, _NORMS)
        for parameter in module.parameters(recurse=False)
    }
    decayed = [parameter for parameter in parameters if parameter not in norms]
    rest = [parameter for parameter in parameters if parameter in norms]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    return kind([group for group in groups if group["params"]], **given)
