"""Training methods: one file each, with the crafting of the images and the loss on them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from advfast.kernels.pgd.api import nearest

from .base import Backward as Backward
from .base import Method as Method
from .base import Settings as Settings
from .base import Step as Step
from .gradalign import GradAlign
from .mart import MART
from .pgd_at import PGDAT
from .standard import Standard
from .trades import TRADES

Maker = Callable[[nn.Module, Settings], Method]

METHODS: dict[str, Maker] = {
    "gradalign": GradAlign,
    "mart": MART,
    "pgd-at": PGDAT,
    "standard": Standard,
    "trades": TRADES,
}


def make(method: str | Maker, model: nn.Module, settings: Settings) -> Method:
    """A method for a model, by name or by one's own class.

    Raises:
        ValueError: unknown name, with the nearest one, or bad settings.
        TypeError: neither a name nor something that makes a Method.
    """
    if callable(method):
        made = method(model, settings)
        if not isinstance(made, Method):
            raise TypeError(
                "method must be a name or a subclass of advfast.training.methods.Method, got "
                f"something that makes a {type(made).__name__}"
            )
        return made
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(
            f"unknown method {method!r}; expected one of {', '.join(METHODS)}"
            f"{nearest(str(method), list(METHODS))}"
        )
    return METHODS[method](model, settings)
