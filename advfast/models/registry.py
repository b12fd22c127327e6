"""Models by name, so that a checkpoint can say what to rebuild."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from advfast.kernels.pgd.api import nearest

from .cosine import cosine_head as head_of
from .cosine import use_cosine_head
from .external import LIBRARIES, from_library
from .norm import norm_layers, use_norm_layers
from .preact_resnet import PreActResNet
from .resnet import resnet18, resnet50
from .small_cnn import SmallCNN
from .vit import vit_small, vit_tiny
from .wide_resnet import WideResNet, wrn

MODELS: dict[str, Callable[..., nn.Module]] = {
    "small-cnn": SmallCNN,
    "resnet18": resnet18,
    "preact-resnet18": PreActResNet,
    "wide-resnet": WideResNet,
    "wrn-28-10": wrn(28, 10),
    "wrn-34-10": wrn(34, 10),
    "wrn-34-20": wrn(34, 20),
    "wrn-70-16": wrn(70, 16),
    "vit-tiny": vit_tiny,
    "vit-small": vit_small,
    "resnet50": resnet50,
}


def make(
    name: str, *, norm_layers: str = "batch", cosine_head: float | None = None, **kwargs: Any
) -> nn.Module:
    """A model by name, for example ``make("small-cnn", in_shape=(1, 28, 28), classes=10)``.

    ``"timm:NAME"`` and ``"torchvision:NAME"`` are made by that library, see `from_library`. The model remembers its
    name and arguments (see `spec`). `norm_layers` is the kind of its batch normalisation, see `use_norm_layers`;
    `cosine_head` the scale of a cosine classifier in place of its last layer, see `use_cosine_head`.

    Raises:
        ValueError: unknown name, with the nearest one; or bad arguments.
        TypeError: arguments that the model does not have.
        ImportError: the library is not installed.
    """
    library, _, own_name = name.partition(":")
    if library in LIBRARIES and own_name:
        model, kwargs = from_library(library, own_name, **kwargs)
    elif name in MODELS:
        model = MODELS[name](**kwargs)
    else:
        raise ValueError(
            f"unknown model {name!r}; expected one of {', '.join(MODELS)}, "
            f"{', '.join(f'{library}:NAME' for library in LIBRARIES)}{nearest(name, list(MODELS))}"
        )
    model.__dict__["_advfast_spec"] = {"name": name, "kwargs": kwargs}
    use_norm_layers(model, norm_layers)
    if cosine_head is not None:
        use_cosine_head(model, cosine_head)
    return model


def spec(model: nn.Module) -> dict[str, Any] | None:
    """{"name", "kwargs"} of a model that `make` made; None for any other."""
    made = getattr(model, "_advfast_spec", None)
    changed = changes(model)
    if made is None or not changed:
        return made
    return {**made, "kwargs": {**made["kwargs"], **changed}}


def changes(model: nn.Module) -> dict[str, Any]:
    """What was put in place of layers of a model: the arguments of `make` that are not the network's own."""
    kind, scale = norm_layers(model), head_of(model)
    found: dict[str, Any] = {} if kind == "batch" else {"norm_layers": kind}
    return found if scale is None else {**found, "cosine_head": scale}
