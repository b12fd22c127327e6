"""What every function here does first with the model and the settings that it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from advfast.attacks.state import crafting
from advfast.kernels.pgd.api import Number

from ..modes import as_called

Model = Callable[[Tensor], Tensor]
NORMS = {"l_inf": "linf", "l_2": "l2"}


class _Normalised(nn.Module):
    """model(normalize(x)) as one module, so that the engine sees what is in it."""

    def __init__(self, normalize: Model, model: Model) -> None:
        super().__init__()
        self.normalize = normalize
        self.model = model
        self.training = getattr(model, "training", False)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.normalize(x))


def opened(model: Model, normalize: Model | None, bn: str | None) -> tuple[Model, str]:
    """(model of X, bn) for PGDAttack; bn None: in the modes in which the model comes."""
    if normalize is not None:
        model = _Normalised(normalize, model)
    return as_called(model) if bn is None else (model, bn)


def per_channel(value: Number, images: Tensor) -> Tensor:
    """One value a channel, [C] or [C, 1, 1], or one for all, as [1, C, 1, 1] or [1, 1, 1, 1]."""
    return torch.as_tensor(value).to(images).reshape(1, -1, *[1] * (images.dim() - 2))


def logits_of(model: Model, images: Tensor, bn: str) -> Tensor:
    with torch.no_grad(), crafting(model, bn):
        return model(images)


def check_engine(engine: dict[str, Any]) -> None:
    """Starts are drawn as the published code draws them, so a seed for keyed ones would do nothing."""
    for name in ("seed", "start"):
        if name in engine:
            raise TypeError(
                f"{name} cannot be set: starts are drawn from torch's generator as in the published code; "
                "use torch.manual_seed"
            )
