"""Images outside [0, 1], for everything that holds pixels to [0, 1]: a smaller picture with a margin around its values.

x is shown as (x + m) / (1 + 2 m), which lies in [0, 1] where x lies in [-m, 1 + m], and the first layer of the network
undoes it. A radius shrinks by the same factor. No box that training or an attack clips to then acts on anything that
stays within the margin; m must be at least as much as an image leaves [0, 1] by, and what is attacked needs the radius
besides (three times as much for n-fgsm, whose steps leave the ball).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advfast.models.normalise import Normalised

_ROUNDING = 1e-6


@dataclass(frozen=True)
class Room:
    """
    Attributes:
        margin: m, in pixel units of the images as they are; 0 changes nothing.
    """

    margin: float

    def __post_init__(self) -> None:
        if not 0 <= self.margin < float("inf"):
            raise ValueError(f"margin must be a finite number of 0 or more, got {self.margin}")

    @property
    def scale(self) -> float:
        """What differences of pixels are multiplied by: a radius eps is eps * scale inside."""
        return 1 / (1 + 2 * self.margin)

    def put(self, images: Tensor) -> Tensor:
        """Images [N, ...] float, in [-m, 1 + m], as new ones in [0, 1].

        Raises:
            ValueError: a pixel outside the margin, or NaN.
        """
        if images.numel():
            low, high = (value.item() for value in torch.aminmax(images))
            # Written so that NaN does not pass.
            if not (low >= -self.margin - _ROUNDING and high <= 1 + self.margin + _ROUNDING):
                raise ValueError(
                    f"images must have pixels in [{-self.margin:.6g}, {1 + self.margin:.6g}], got {low:.6g} to "
                    f"{high:.6g}"
                )
        return (images + self.margin).mul_(self.scale).clamp_(0, 1)

    def take(self, images: Tensor) -> Tensor:
        """The inverse of `put`, up to rounding."""
        return images / self.scale - self.margin

    def network(self, net: nn.Module, channels: int) -> nn.Module:
        """net of the images as they are, for those that `put` made of them; net itself without a margin."""
        if self.margin == 0:
            return net
        return Normalised(net, [self.scale * self.margin] * channels, [self.scale] * channels)
