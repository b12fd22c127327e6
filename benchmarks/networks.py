"""The networks that attacks and training are timed on.

Pixels in [0, 1] go in, logits come out, and BN has statistics as after training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from advfast import models


def small_cnn(channels: int, classes: int = 10) -> nn.Module:
    """Two strided convolutions with BN and a linear layer: the size used for MNIST-like images."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, classes),
    )  # fmt: skip


def strided_cnn(channels: int, classes: int = 10) -> nn.Module:
    """Two 4x4 convolutions of stride 2 and two linear layers, for images of 28x28: the robust MNIST networks' size."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, classes),
    )  # fmt: skip


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet18(channels: int, width: int, classes: int = 10) -> nn.Module:
    """The CIFAR form of ResNet-18 (He et al. 2016); width 64 is the usual one."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
    ]  # fmt: skip
    inputs = width
    for outputs, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
        layers += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
        inputs = outputs
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    return nn.Sequential(*layers, *pool)


def tiny(channels: int, side: int, classes: int = 10) -> nn.Module:
    """Next to no arithmetic: what is timed is the Python around it."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, classes))


def _build(name: str, channels: int, side: int) -> nn.Module:
    kind, _, width = name.partition("-w")
    shape = (channels, side, side)
    if kind == "small-cnn":
        return small_cnn(channels)
    if kind == "strided-cnn":
        return strided_cnn(channels)
    if kind == "tiny":
        return tiny(channels, side)
    if kind == "resnet18":
        return resnet18(channels, int(width))
    if kind == "preact-resnet18":
        return models.make("preact-resnet18", in_shape=shape, width=int(width))
    return models.make("small-cnn" if kind == "mnist-cnn" else kind, in_shape=shape)


def make(
    name: str,
    channels: int,
    layout: torch.memory_format = torch.contiguous_format,
    side: int = 32,
) -> nn.Module:
    """A network by name, the same weights each time.

    "small-cnn", "strided-cnn", "tiny", "resnet18-wN" (width N) are above; "preact-resnet18-wN", "mnist-cnn" (its
    small-cnn, for images of 28x28) and any other name are advfast.models'. side: of the images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _build(name, channels, side)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                # Statistics of a net in use: mean 0 and variance 1 would make BN an identity.
                assert module.running_mean is not None and module.running_var is not None
                nn.init.normal_(module.running_mean, 0.0, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
            if isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=layout)
    return model.eval()
