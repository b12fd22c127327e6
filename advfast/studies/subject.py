"""What a study trains on and looks at: data, networks for them, and a balanced probe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from advfast import models
from advfast.data import Source, Splits, pixel_statistics
from advfast.models.normalise import Normalise, Normalised
from advfast.ntk import balanced_probe
from advfast.training import rng
from advfast.training.methods import METHODS
from advfast.training.presets import PRESETS
from advfast.userfile import is_user_object, load_object

from .networks import conv_bn_net

Maker = Callable[[], nn.Module]
REFERENCE = 500
DIGITS = {"eps": 0.2, "steps": 7, "epochs": 12, "batch_size": 64, "lr": 0.1}
_TAKEN = (
    "model", "data", "method", "seed", "val", "test", "callbacks", "out", "overwrite", "resume", "progress", "ema",
    "threads", "recipe",
)  # fmt: skip
"""Arguments of `train` that a study sets itself, or that would change what it measures."""


class Subject:
    """
    Args:
        splits: data with test images.
        model: name of a network, "file.py:make", a function that makes one, or None for `conv_bn_net`.
        size: test images of the probe, as many of each class as can be; which ones is the same for all seeds.

    Attributes:
        train, test: their sources.
        images, labels: the probe, [size, C, H, W] and [size].
        reference: [R, C, H, W], training images, as many of each class as can be; R = 500 or all.

    Raises:
        ValueError: no test images, or more asked for than there are.
    """

    def __init__(self, splits: Splits, model: str | Maker | None, size: int) -> None:
        self.model = model
        self.train, self.test = known_part(splits, "train"), known_part(splits, "test")
        chosen = balanced_probe(self.test.labels, size)
        self.images, self.labels = self.test.batch(chosen)
        self.reference, _ = self.train.batch(
            balanced_probe(self.train.labels, min(REFERENCE, len(self.train)))
        )
        self.classes = max(int(self.train.labels.max()) + 1, 2)
        self._pixels = pixel_statistics(self.train)

    def network(self, seed: int, normalised: bool) -> nn.Module:
        """The same weights for a seed, with a normalisation layer in front and without.

        Raises:
            ValueError, TypeError: no such network; one of the user's that has such a layer already.
        """
        mean, std = self._pixels if normalised else (None, None)
        with rng.seeded(seed):
            net = self._own(mean, std) if self._makes() else self._named(mean, std)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.images, self.labels = self.images.to(device), self.labels.to(device)
        self.reference = self.reference.to(device)
        return net.to(device)

    def _makes(self) -> bool:
        return callable(self.model) or is_user_object(self.model)

    def _named(self, mean: list[float] | None, std: list[float] | None) -> nn.Module:
        shape = list(self.images.shape[1:])
        if self.model is None:
            return conv_bn_net(shape, self.classes, mean, std)
        assert isinstance(self.model, str)
        return models.make(self.model, in_shape=shape, classes=self.classes, mean=mean, std=std)

    def _own(self, mean: list[float] | None, std: list[float] | None) -> nn.Module:
        net = load_object(self.model)() if isinstance(self.model, str) else self.model()  # type: ignore[misc]
        if not isinstance(net, nn.Module):
            raise TypeError(f"model must make an nn.Module, got {type(net).__name__}")
        if any(isinstance(module, Normalise) for module in net.modules()):
            raise ValueError(
                "the model has an input normalisation of its own, which the study puts in front: make it without"
            )
        return net if mean is None or std is None else Normalised(net, mean, std)


def known_part(splits: Splits, name: str) -> Source:
    part: Source | DataLoader | None = getattr(splits, name)
    if part is None or isinstance(part, DataLoader):
        got = "none" if part is None else "a DataLoader"
        raise ValueError(f"the study needs {name} images whose labels are known, got {got}")
    return part


def training_arguments(
    data: object, method: str, given: Mapping[str, Any], taken: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Arguments of `advfast.train`: those given, and for the rest what suits the data.

    Args:
        taken: names that the study sets, besides those that every study does.

    Raises:
        ValueError: one of those was given.
    """
    for name in given:
        if name in (*_TAKEN, *taken):
            raise ValueError(f"{name} is set by the study, and cannot be given for its runs")
    preset: dict[str, Any] = {}
    if isinstance(data, str):
        preset = DIGITS if data == "digits" else PRESETS.get(data, {})
    left_out = {"model", "threads"}
    if getattr(METHODS.get(method), "defaults", {}).get("steps") == 1:
        left_out.add("steps")
    return {name: value for name, value in preset.items() if name not in left_out} | dict(given)
