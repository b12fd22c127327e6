"""Wide ResNet (Zagoruyko & Komodakis, BMVC 2016), with what Gowal et al. (2020) changed as options."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from .layers import ACTIVATIONS, PADDINGS, check_choice, conv3x3, initialise_he
from .normalise import input_layer


class WideBlock(nn.Module):
    """BN, activation and convolution, twice; a shortcut with a convolution sees the activated input."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, dropout: float, activation: str, padding: str
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.activation1 = ACTIVATIONS[activation]()
        self.pad, self.conv1 = conv3x3(inputs, outputs, stride, padding)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.activation2 = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        _, self.conv2 = conv3x3(outputs, outputs)
        self.shortcut: nn.Conv2d | None = None
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation1(self.bn1(x))
        if self.shortcut is not None:
            x = self.shortcut(out)
        out = self.activation2(self.bn2(self.conv1(self.pad(out))))
        return self.conv2(self.dropout(out)) + x


class WideResNet(nn.Module):
    """WRN-depth-width for small images: 3x3 stem, three groups of (depth - 4) / 6 blocks of strides 1, 2, 2.

    WRN-28-10 has 36,479,194 parameters and WRN-34-10 46,160,474, for 10 classes. The default is the network of TRADES
    (Zhang et al., ICML 2019), with its initialisation: He normal (fan-out) convolutions, zero bias. That of Gowal
    et al. (2020), Rebuffi et al. (2021) and Wang et al. (2023) has activation="silu" and padding="end".

    Args:
        in_shape: (C, H, W) of an image, sides of 4 or more; with padding="end" multiples of 4.
        classes: number of logits.
        mean, std: of each channel, for the normalisation inside; None for 0 and 1.
        depth: 6 n + 4.
        width: factor on 16, 32 and 64 channels.
        activation: "relu" or "silu".
        dropout: probability, between the two convolutions of a block.
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
        depth: int = 28,
        width: int = 10,
        activation: str = "relu",
        dropout: float = 0.0,
        padding: str = "symmetric",
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth must be 6 n + 4: 10, 16, 22, 28, 34, ..., got {depth}")
        if width < 1:
            raise ValueError(f"width must be 1 or more, got {width}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        check_choice("activation", activation, tuple(ACTIVATIONS))
        check_choice("padding", padding, PADDINGS)
        # Of an odd side the padded convolution and the 1x1 shortcut make different sizes.
        multiple = 4 if padding == "end" else 1
        self.normalise = input_layer(in_shape, classes, mean, std, multiple=multiple)
        self.activation, self.padding = activation, padding
        _, self.conv1 = conv3x3(in_shape[0], 16)
        inputs = 16
        groups = []
        for group in range(3):
            outputs = 16 * width * 2**group
            layers = []
            for index in range((depth - 4) // 6):
                stride = 2 if group and not index else 1
                layers.append(WideBlock(inputs, outputs, stride, dropout, activation, padding))
                inputs = outputs
            groups.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3 = groups
        self.bn = nn.BatchNorm2d(inputs)
        self.final_activation = ACTIVATIONS[activation]()
        self.linear = nn.Linear(inputs, classes)
        initialise_he(self)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in [0, 1] -> logits [B, classes]."""
        x = self.conv1(self.normalise(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.final_activation(self.bn(x)).mean((2, 3)))


def wrn(depth: int, width: int) -> Callable[..., WideResNet]:
    """The maker of one WRN-depth-width."""

    def make(
        in_shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        padding: str = "symmetric",
    ) -> WideResNet:
        return WideResNet(
            in_shape,
            classes,
            mean,
            std,
            depth=depth,
            width=width,
            activation=activation,
            dropout=dropout,
            padding=padding,
        )

    make.__name__ = make.__qualname__ = f"wrn_{depth}_{width}"
    return make
