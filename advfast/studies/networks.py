"""The networks of the studies on small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from advfast.models.normalise import Normalised


def conv_net(
    in_shape: Sequence[int],
    classes: int,
    widths: Sequence[int],
    strides: Sequence[int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    *,
    batch_norm: bool = True,
) -> nn.Module:
    """3x3 convolutions with ReLU (and batch normalisation), and a linear layer: images [B, C, H, W] -> logits [B, K].

    Args:
        in_shape: (C, H, W) of an image.
        classes: K, number of logits.
        widths, strides: of each convolution: channels that it makes, and stride.
        mean, std: of each channel, for a normalisation layer in front; None for none.
        batch_norm: after each convolution, which then has no bias.
    """
    channels, height, side = in_shape
    layers: list[nn.Module] = []
    for out, stride in zip(widths, strides, strict=True):
        layers.append(nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=not batch_norm))
        layers += [nn.BatchNorm2d(out), nn.ReLU()] if batch_norm else [nn.ReLU()]
        channels, height, side = out, -(-height // stride), -(-side // stride)
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * side, classes))
    return net if mean is None or std is None else Normalised(net, mean, std)


def conv_bn_net(
    in_shape: Sequence[int],
    classes: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    width: int = 8,
) -> nn.Module:
    """`conv_net` of three layers: `width` channels, then twice and four times as many, both of stride 2."""
    return conv_net(in_shape, classes, (width, 2 * width, 4 * width), (1, 2, 2), mean, std)
