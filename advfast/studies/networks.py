"""The network of the studies on small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from advfast.models.normalise import Normalised


def conv_bn_net(
    in_shape: Sequence[int],
    classes: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    width: int = 8,
) -> nn.Module:
    """Three 3x3 convolutions with batch normalisation and ReLU, and a linear layer: images [B, C, H, W] -> logits.

    Args:
        in_shape: (C, H, W) of an image.
        classes: K, number of logits.
        mean, std: of each channel, for a normalisation layer in front; None for none.
        width: channels of the first convolution; the second has twice as many, the third four times, both of stride 2.
    """
    channels, height, side = in_shape
    layers: list[nn.Module] = []
    for out, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
        layers += [
            nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
        ]
        channels, height, side = out, -(-height // stride), -(-side // stride)
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * side, classes))
    return net if mean is None or std is None else Normalised(net, mean, std)
