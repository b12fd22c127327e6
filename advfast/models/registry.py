"""Models by name, so that a checkpoint can say what to rebuild."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from advfast.kernels.pgd.api import nearest

from .small_cnn import SmallCNN

MODELS: dict[str, Callable[..., nn.Module]] = {"small-cnn": SmallCNN}


def make(name: str, **kwargs: Any) -> nn.Module:
    """A model by name, for example ``make("small-cnn", in_shape=(1, 28, 28), classes=10)``.

    The model remembers its name and arguments (see `spec`).

    Raises:
        ValueError: unknown name, with the nearest one; or bad arguments.
        TypeError: arguments that the model does not have.
    """
    if name not in MODELS:
        raise ValueError(
            f"unknown model {name!r}; expected one of {', '.join(MODELS)}{nearest(name, list(MODELS))}"
        )
    model = MODELS[name](**kwargs)
    model.__dict__["_advfast_spec"] = {"name": name, "kwargs": kwargs}
    return model


def spec(model: nn.Module) -> dict[str, Any] | None:
    """{"name", "kwargs"} of a model that `make` made; None for any other."""
    return getattr(model, "_advfast_spec", None)
