"""ResNet (He et al., CVPR 2016): ResNet-18 as it is used on CIFAR, ResNet-50 as on ImageNet."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .layers import check_choice, initialise_he
from .normalise import input_layer


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Nothing where the block keeps the shape (an empty Sequential is the identity)."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = _shortcut(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(out)) + self.shortcut(x)).relu()


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1; the stride is in the 3x3 ("v1.5": torchvision, timm), not in the first 1x1 as in the paper."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.shortcut = _shortcut(inputs, 4 * planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)).relu()
        return (self.bn3(self.conv3(out)) + self.shortcut(x)).relu()


class ResNet(nn.Module):
    """Four groups of blocks, strides 1, 2, 2, 2, then global average pooling and a linear layer.

    Initialisation: with the "cifar" stem torch's own, as in pytorch-cifar, from which the adversarial-training papers
    took the network; with the "imagenet" stem He normal (fan-out) convolutions, as in torchvision.

    Args:
        in_shape: (C, H, W) of an image, sides of 4 or more.
        classes: number of logits.
        mean, std: of each channel, for the normalisation inside; None for 0 and 1.
        blocks: number of blocks in each group.
        bottleneck: blocks of three convolutions and four times the channels.
        stem: "cifar": one 3x3 convolution. "imagenet": 7x7 of stride 2 and a 3x3 max-pool of stride 2.
        width: channels of the first group.

    Raises:
        ValueError: impossible shape, number of classes or option.
    """

    def __init__(
        self,
        in_shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *,
        blocks: Sequence[int] = (2, 2, 2, 2),
        bottleneck: bool = False,
        stem: str = "cifar",
        width: int = 64,
    ) -> None:
        super().__init__()
        check_choice("stem", stem, ("cifar", "imagenet"))
        self.normalise = input_layer(in_shape, classes, mean, std)
        self.stem = stem
        if stem == "cifar":
            self.conv1 = nn.Conv2d(in_shape[0], width, 3, padding=1, bias=False)
            self.pool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(in_shape[0], width, 7, stride=2, padding=3, bias=False)
            self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        block = Bottleneck if bottleneck else BasicBlock
        inputs = width
        groups = []
        for group, count in enumerate(blocks):
            planes = width * 2**group
            layers = []
            for index in range(count):
                layers.append(block(inputs, planes, 2 if group and not index else 1))
                inputs = planes * block.expansion
            groups.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = groups
        self.linear = nn.Linear(inputs, classes)
        if stem == "imagenet":
            initialise_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in [0, 1] -> logits [B, classes]."""
        x = self.pool(self.bn1(self.conv1(self.normalise(x))).relu())
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))


def resnet18(
    in_shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    *,
    width: int = 64,
) -> ResNet:
    """ResNet-18 for small images: 3x3 stem, no max-pool; 11,173,962 parameters for 10 classes."""
    return ResNet(in_shape, classes, mean, std, width=width)


def resnet50(
    in_shape: Sequence[int] = (3, 224, 224),
    classes: int = 1000,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    *,
    width: int = 64,
) -> ResNet:
    """ResNet-50 for ImageNet, v1.5; 25,557,032 parameters for 1000 classes."""
    return ResNet(
        in_shape,
        classes,
        mean,
        std,
        blocks=(3, 4, 6, 3),
        bottleneck=True,
        stem="imagenet",
        width=width,
    )
