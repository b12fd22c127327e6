"""Networks of timm and torchvision, with a normalisation layer in front."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from torch import nn

from .normalise import Normalised, input_layer

LIBRARIES = ("timm", "torchvision")
# Arguments that only say where the weights come from.
_FILLS = ("pretrained", "checkpoint_path", "weights")


def from_library(
    library: str,
    name: str,
    *,
    in_shape: Sequence[int] = (3, 224, 224),
    classes: int = 1000,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **kwargs: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """A network of another library for pixels in [0, 1], and the arguments that rebuild it without a download.

    Args:
        library: "timm" or "torchvision", which must be installed.
        name: what `timm.create_model` or `torchvision.models.get_model` calls it.
        in_shape: (C, H, W) of an image. C is set in the network; H and W are not (where a network has a fixed side,
            give the library's own argument: img_size, image_size).
        classes: number of logits.
        mean, std: of each channel; None for 0 and 1, or, with timm and pretrained=True, for what the weights were
            trained with.
        kwargs: go to the library, for example pretrained=True (timm), weights="DEFAULT" (torchvision).

    Raises:
        ImportError: the library is not installed.
        ValueError: unknown name, impossible shape, or pretrained weights of torchvision without mean and std.
    """
    input_layer(in_shape, classes, mean, std)
    package = "timm" if library == "timm" else "torchvision.models"
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        if error.name is not None and not package.startswith(error.name):
            raise
        raise ImportError(
            f"the model {library}:{name} needs {library}, which is not installed: "
            f"pip install {library}",
            name=library,
        ) from error
    made = _timm if library == "timm" else _torchvision
    given = mean is not None and std is not None
    net, own_mean, own_std = made(module, name, in_shape[0], classes, given, kwargs)
    mean = own_mean if mean is None else list(mean)
    std = own_std if std is None else list(std)
    rebuild = {key: value for key, value in kwargs.items() if key not in _FILLS}
    rebuild.update(in_shape=list(in_shape), classes=classes, mean=mean, std=std)
    return Normalised(net, mean, std), rebuild


def _timm(module, name, channels, classes, given, kwargs) -> tuple[nn.Module, list, list]:
    try:
        net = module.create_model(name, num_classes=classes, in_chans=channels, **kwargs)
    except RuntimeError as error:
        raise ValueError(f"timm cannot make {name!r}: {error}") from error
    if kwargs.get("pretrained") and not given:
        own = net.pretrained_cfg
        return net, list(own["mean"]), list(own["std"])
    return net, [0.0] * channels, [1.0] * channels


def _torchvision(module, name, channels, classes, given, kwargs) -> tuple[nn.Module, list, list]:
    pretrained = kwargs.get("weights") is not None
    if pretrained and not given:
        raise ValueError(
            f"pretrained weights of torchvision:{name} need the mean and std that they were trained with; most have "
            "mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)"
        )
    net = module.get_model(name, **{"weights": None, **kwargs, "num_classes": classes})
    if channels != 3:
        _set_channels(net, name, channels, pretrained)
    return net, [0.0] * channels, [1.0] * channels


def _set_channels(net: nn.Module, name: str, channels: int, pretrained: bool) -> None:
    """Replaces the first convolution: torchvision has no argument for it."""
    if pretrained:
        raise ValueError(
            f"pretrained weights of torchvision:{name} are for images of 3 channels, got {channels}"
        )
    for path, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            first = nn.Conv2d(
                channels,
                module.out_channels,
                module.kernel_size,  # type: ignore[arg-type]  # pairs
                stride=module.stride,  # type: ignore[arg-type]
                padding=module.padding,  # type: ignore[arg-type]
                bias=module.bias is not None,
            )
            parent, _, attribute = path.rpartition(".")
            setattr(net.get_submodule(parent), attribute, first)
            return
    raise ValueError(f"torchvision:{name} has no convolution whose channels could be set")
