"""Pre-activation ResNet-18 (He et al., ECCV 2016), in the forms that adversarial training has used."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .layers import ACTIVATIONS, PADDINGS, check_choice, conv3x3
from .normalise import input_layer

SHORTCUTS = ("activated", "raw", "raw-3x3")


class PreActBlock(nn.Module):
    """BN, activation and convolution, twice."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, activation: str, shortcut: str, padding: str
    ) -> None:
        super().__init__()
        self.activated_shortcut = shortcut == "activated"
        self.bn1 = nn.BatchNorm2d(inputs)
        self.activation1 = ACTIVATIONS[activation]()
        self.pad, self.conv1 = conv3x3(inputs, outputs, stride, padding)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.activation2 = ACTIVATIONS[activation]()
        _, self.conv2 = conv3x3(outputs, outputs)
        self.shortcut_pad: nn.Module = nn.Identity()
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or inputs != outputs:
            if shortcut == "raw-3x3":
                self.shortcut_pad, self.shortcut = conv3x3(inputs, outputs, stride, padding)
            else:
                self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation1(self.bn1(x))
        if self.shortcut is not None:
            x = self.shortcut(self.shortcut_pad(out if self.activated_shortcut else x))
        out = self.conv1(self.pad(out))
        return self.conv2(self.activation2(self.bn2(out))) + x


class PreActResNet(nn.Module):
    """PreActResNet-18 for small images: 3x3 stem, four groups of blocks of strides 1, 2, 2, 2.

    Networks of this name differ as functions. The default is that of Rice et al. (ICML 2020), 11,172,170 parameters
    for 10 classes. The one in the repository of Wong et al. (ICLR 2020) has shortcut="raw", and the file that they
    published also final_bn=False (11,171,146). That of Gowal et al. (2020) and Rebuffi et al. (2021) has
    shortcut="raw-3x3", activation="silu", padding="end". Initialisation is torch's own, as in the first two.

    Args:
        in_shape: (C, H, W) of an image, sides of 4 or more; with padding="end" multiples of 8.
        classes: number of logits.
        mean, std: of each channel, for the normalisation inside; None for 0 and 1.
        width: channels of the first group.
        shortcut: what the convolution on the shortcut of a block that changes the shape sees: "activated": the input
            after BN and activation; "raw": the input itself; "raw-3x3": the same, and it is a 3x3 convolution.
        final_bn: BN and activation before the pooling.
        activation: "relu" or "silu".
        padding: of 3x3 convolutions of stride 2: "symmetric", or "end": only the last row and column.

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
        width: int = 64,
        shortcut: str = "activated",
        final_bn: bool = True,
        activation: str = "relu",
        padding: str = "symmetric",
    ) -> None:
        super().__init__()
        check_choice("shortcut", shortcut, SHORTCUTS)
        check_choice("activation", activation, tuple(ACTIVATIONS))
        check_choice("padding", padding, PADDINGS)
        # Of an odd side the "end" padding and the symmetric one make different sizes.
        multiple = 8 if padding == "end" else 1
        self.normalise = input_layer(in_shape, classes, mean, std, multiple=multiple)
        self.shortcut, self.final_bn = shortcut, final_bn
        self.activation, self.padding = activation, padding
        _, self.conv1 = conv3x3(in_shape[0], width)
        inputs = width
        groups = []
        for group in range(4):
            outputs = width * 2**group
            layers = []
            for index in range(2):
                stride = 2 if group and not index else 1
                layers.append(PreActBlock(inputs, outputs, stride, activation, shortcut, padding))
                inputs = outputs
            groups.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = groups
        if final_bn:
            self.bn = nn.BatchNorm2d(inputs)
            self.final_activation = ACTIVATIONS[activation]()
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in [0, 1] -> logits [B, classes]."""
        x = self.conv1(self.normalise(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        if self.final_bn:
            x = self.final_activation(self.bn(x))
        return self.linear(x.mean((2, 3)))
