"""Two convolutions and two linear layers, for images of a few hundred pixels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .normalise import input_layer


class SmallCNN(nn.Module):
    """The network that fast adversarial training uses on MNIST (Wong et al., ICLR 2020), and a variant for 8x8.

    Sides of 16 and more: two 4x4 convolutions of stride 2 with 16 and 32 channels, Linear 100 (for 28x28: 1568-100-10).
    Smaller: two 3x3 convolutions with 32 and 64 channels, the second of stride 2, Linear 100 (for 8x8: 1024-100-10).

    Args:
        in_shape: (C, H, W) of an image, H and W at least 4.
        classes: number of logits.
        mean, std: of each channel, for the normalisation inside; None for 0 and 1.

    Raises:
        ValueError: impossible shape or number of classes.
    """

    def __init__(
        self,
        in_shape: Sequence[int] = (1, 28, 28),
        classes: int = 10,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.normalise = input_layer(in_shape, classes, mean, std)
        channels, height, width = in_shape
        if min(height, width) >= 16:
            maps = 32
            height, width = height // 2 // 2, width // 2 // 2
            self.conv1 = nn.Conv2d(channels, 16, 4, stride=2, padding=1)
            self.conv2 = nn.Conv2d(16, maps, 4, stride=2, padding=1)
        else:
            maps = 64
            height, width = (height + 1) // 2, (width + 1) // 2
            self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
            self.conv2 = nn.Conv2d(32, maps, 3, stride=2, padding=1)
        self.linear1 = nn.Linear(maps * height * width, 100)
        self.linear2 = nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in [0, 1] -> logits [B, classes]."""
        x = self.conv1(self.normalise(x)).relu()
        x = self.conv2(x).relu()
        return self.linear2(self.linear1(x.flatten(1)).relu())
