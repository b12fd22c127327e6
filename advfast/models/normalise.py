"""Normalisation as a layer, so that attacks work in pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """(x - mean) / std for each channel of [B, C, H, W].

    Args:
        mean, std: one value a channel, in pixel units of [0, 1].

    Raises:
        ValueError: different lengths, or std not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or len(mean) == 0:
            raise ValueError(
                f"mean and std must have one value a channel, got {len(mean)} and {len(std)}"
            )
        if not all(value > 0 for value in std):
            raise ValueError(f"std must be positive, got {list(std)}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


def input_layer(
    in_shape: Sequence[int],
    classes: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    *,
    multiple: int = 1,
) -> Normalise:
    """Checks what every network here is given, and makes its first layer.

    Args:
        in_shape: (C, H, W) of an image, H and W at least 4 and multiples of `multiple`.
        classes: number of logits.
        mean, std: of each channel; None for 0 and 1.

    Raises:
        ValueError: impossible shape or number of classes.
    """
    if len(in_shape) != 3 or in_shape[0] < 1 or min(in_shape[1:]) < 4:
        raise ValueError(f"in_shape must be (C, H, W) with sides of 4 or more, got {in_shape}")
    if any(side % multiple for side in in_shape[1:]):
        raise ValueError(
            f"in_shape must have sides that are multiples of {multiple}, got {in_shape}"
        )
    if classes < 2:
        raise ValueError(f"classes must be 2 or more, got {classes}")
    channels = in_shape[0]
    mean = [0.0] * channels if mean is None else mean
    std = [1.0] * channels if std is None else std
    if len(mean) != channels:
        raise ValueError(f"mean and std must have {channels} values, got {len(mean)}")
    return Normalise(mean, std)


class Normalised(nn.Module):
    """Any network that takes normalised images, as one that takes pixels: net((x - mean) / std)."""

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.normalise(x))
