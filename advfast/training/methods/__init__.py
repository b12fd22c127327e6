"""Training methods: one file each, with the crafting of the images and the loss on them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from advfast.kernels.pgd.api import nearest

from .base import Method as Method
from .base import Settings as Settings
from .base import Step as Step
from .pgd_at import PGDAT
from .standard import Standard

METHODS: dict[str, Callable[[nn.Module, Settings], Method]] = {
    "pgd-at": PGDAT,
    "standard": Standard,
}


def make(name: str, model: nn.Module, settings: Settings) -> Method:
    """The method `name` for a model.

    Raises:
        ValueError: unknown name, with the nearest one, or bad settings.
    """
    if name not in METHODS:
        raise ValueError(
            f"unknown method {name!r}; expected one of {', '.join(METHODS)}"
            f"{nearest(name, list(METHODS))}"
        )
    return METHODS[name](model, settings)
