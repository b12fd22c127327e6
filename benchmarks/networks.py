"""The networks that attacks and training are timed on.

Pixels in [0, 1] go in, logits come out, and BN has statistics as after training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def small_cnn(channels: int, classes: int = 10) -> nn.Module:
    """Two strided convolutions with BN and a linear layer: the size used for MNIST-like images."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, classes),
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


def make(
    name: str, channels: int, layout: torch.memory_format = torch.contiguous_format
) -> nn.Module:
    """A network by name, "small-cnn" or "resnet18-wN" (width N), the same weights each time."""
    kind, _, width = name.partition("-w")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = small_cnn(channels) if kind == "small-cnn" else resnet18(channels, int(width))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                # Statistics of a net in use: mean 0 and variance 1 would make BN an identity.
                assert module.running_mean is not None and module.running_var is not None
                nn.init.normal_(module.running_mean, 0.0, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
            if isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=layout)
    return model.eval()
