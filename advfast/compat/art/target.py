"""What an attack needs of an estimator, ours or ART's: one network from pixels to logits, the box, the loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advfast.models.normalise import Normalised

Loss = str | Callable[[Tensor, Tensor], Tensor]
# Losses that take class indices; ART gives any other one one-hot rows.
INDEX_LOSSES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)
NEEDED = ("model", "loss", "nb_classes", "clip_values", "device", "preprocessing")


class Target(NamedTuple):
    """model: pixels -> logits. bounds: None, or a pair of numbers or arrays, as the estimator holds them."""

    model: nn.Module
    device: torch.device
    bounds: tuple[object, object] | None
    classes: int
    loss: Loss
    source: tuple  # see _source


class Standardised(nn.Module):
    """net((x - mean) / std) for inputs of any shape."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


class Preprocessed(nn.Module):
    """net(preprocessing(x)), with whatever differentiable steps the estimator of ART holds."""

    def __init__(self, net: nn.Module, apply: Callable) -> None:
        super().__init__()
        self.net = net
        self._apply_steps = apply

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self._apply_steps(x, y=None, fit=False, no_grad=False)[0])


def standardised(
    model: nn.Module,
    mean: np.ndarray | float,
    std: np.ndarray | float,
    input_shape: tuple[int, ...],
    channels_first: bool,
) -> nn.Module:
    """model((x - mean) / std), or the model itself for 0 and 1.

    Raises:
        ValueError: a mean or std that does not fit the inputs.
    """
    mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    if mean.shape != std.shape:
        raise ValueError(
            f"preprocessing: mean and std must have one shape, got {mean.shape} and {std.shape}"
        )
    if (mean == 0).all() and (std == 1).all():
        return model
    image = len(input_shape) == 3 and channels_first
    if image and (mean.size == 1 or mean.shape == input_shape[:1]):
        channels = input_shape[0]
        means = np.broadcast_to(mean.reshape(-1), (channels,)).tolist()
        return Normalised(model, means, np.broadcast_to(std.reshape(-1), (channels,)).tolist())
    if channels_first and len(input_shape) > 1 and mean.shape == input_shape[:1]:
        shape = (-1, *[1] * (len(input_shape) - 1))
        mean, std = mean.reshape(shape), std.reshape(shape)
    try:
        np.broadcast_shapes(mean.shape, (1, *input_shape))
    except ValueError:
        raise ValueError(
            f"preprocessing: mean and std of shape {mean.shape} do not fit inputs of shape "
            f"{tuple(input_shape)}"
        ) from None
    return Standardised(model, torch.from_numpy(mean), torch.from_numpy(std))


def per_sample_loss(loss: Callable, classes: int) -> Loss:
    """The loss of an estimator as [B] values of (logits, labels); its name where it is plain cross-entropy.

    Raises:
        NotImplementedError: a loss of one logit.
    """
    if isinstance(loss, nn.CrossEntropyLoss) and (
        loss.weight is None and loss.label_smoothing == 0 and loss.ignore_index < 0
    ):
        return "ce"
    if isinstance(loss, (nn.BCELoss, nn.BCEWithLogitsLoss)):
        raise NotImplementedError(
            f"{type(loss).__name__}: the attacks need one logit a class; give the model two outputs "
            "and use nn.CrossEntropyLoss"
        )
    if hasattr(loss, "reduction"):
        loss = copy.copy(loss)
        loss.reduction = "none"
    by_index = isinstance(loss, INDEX_LOSSES)

    def values(logits: Tensor, labels: Tensor) -> Tensor:
        if not by_index and labels.dim() == 1:
            labels = F.one_hot(labels, classes).to(logits.dtype)
        value = loss(logits, labels)
        return value.flatten(1).mean(1) if value.dim() > 1 else value

    return values


def _source(estimator) -> tuple:
    """What the network and the loss of a target are made from; compared to see whether they changed."""
    model, loss = estimator.model, estimator.loss
    if hasattr(estimator, "network"):
        return (id(model), id(loss), id(estimator.network))
    steps = estimator.preprocessing_operations
    values = [
        (id(step), np.asarray(step.mean).tobytes(), np.asarray(step.std).tobytes())
        if _standardises(step)
        else id(step)
        for step in steps
    ]
    return (id(model), id(loss), *values)


def _standardises(step: object) -> bool:
    return type(step).__name__.startswith("StandardisationMeanStd")


def _network(estimator) -> nn.Module:
    if hasattr(estimator, "network"):
        return estimator.network
    model, steps = estimator.model, estimator.preprocessing_operations
    if not steps:
        return model
    if len(steps) == 1 and _standardises(steps[0]):
        shape, first = estimator.input_shape, estimator.channels_first
        return standardised(model, steps[0].mean, steps[0].std, shape, first).to(estimator.device)
    if estimator.all_framework_preprocessing:
        return Preprocessed(model, estimator._apply_preprocessing)
    names = ", ".join(type(step).__name__ for step in steps)
    raise NotImplementedError(
        f"preprocessing without PyTorch gradients cannot be attacked here: {names}"
    )


def open_target(estimator, previous: Target | None = None) -> Target:
    """The target that an estimator describes now.

    Args:
        estimator: a PyTorchClassifier of advfast.compat.art or of art.
        previous: what an earlier call gave for it: kept as long as nothing changed, and with it what the engine
            prepared for its network.

    Raises:
        TypeError: not a classifier of a PyTorch model.
        NotImplementedError: a loss or a preprocessing that has no gradient here.
    """
    if not isinstance(getattr(estimator, "model", None), nn.Module) or not all(
        hasattr(estimator, name) for name in NEEDED
    ):
        raise TypeError(
            "estimator must be a PyTorchClassifier, of advfast.compat.art or of art, got "
            f"{type(estimator).__name__}"
            + (": wrap the model in one" if isinstance(estimator, nn.Module) else "")
        )
    source, clip = _source(estimator), estimator.clip_values
    bounds = None if clip is None else (clip[0], clip[1])
    if previous is not None and previous.source == source:
        return previous._replace(bounds=bounds)
    classes = int(estimator.nb_classes)
    return Target(
        model=_network(estimator),
        device=torch.device(estimator.device),
        bounds=bounds,
        classes=classes,
        loss=per_sample_loss(estimator.loss, classes),
        source=source,
    )
