"""The kernels of images, of their adversarial versions, and between the two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import metrics
from .kernel import ntk


@dataclass(frozen=True)
class CleanAdversarial:
    """Attributes:
    clean, adversarial, cross: Theta(x, x), Theta(x', x'), Theta(x, x'), each [N, N, R, R], views of one kernel.
    """

    clean: Tensor
    adversarial: Tensor
    cross: Tensor

    def distance(self, of: str = "trace") -> float:
        """Kernel distance of Theta(x, x) and Theta(x', x'), 0 .. 1; `of` as in `advfast.ntk.metrics`."""
        return metrics.kernel_distance(self.clean, self.adversarial, of)


def clean_adversarial(
    model: nn.Module,
    x: Tensor,
    x_adv: Tensor,
    *,
    y: Tensor | None = None,
    readout: Any = "full",
    **arguments: Any,
) -> CleanAdversarial:
    """Theta(x, x), Theta(x', x') and Theta(x, x') from one kernel of [x, x'], so that each image is run once.

    Where Theta(x, x') is not wanted, two calls of `advfast.ntk.ntk` cost half of this.

    Args:
        x, x_adv: [N, ...], images and their adversarial versions.
        y: classes int [N], for the readouts "margin" and "loss": both sides have the labels of x.
        readout: as in `advfast.ntk.ntk`; one a sample ([N, R, O]) is used for x and x_adv alike.
        arguments: of `advfast.ntk.ntk`, such as params, precision, max_bytes; not x2, y1, y2.

    Raises:
        TypeError, ValueError: x and x_adv differ in shape; as `advfast.ntk.ntk` does.
    """
    for name, images in (("x", x), ("x_adv", x_adv)):
        if not isinstance(images, Tensor):
            raise TypeError(f"{name} must be a tensor of images, got {type(images).__name__}")
    if x.shape != x_adv.shape:
        raise ValueError(
            f"x_adv must have the shape of x, {tuple(x.shape)}, got {tuple(x_adv.shape)}"
        )
    wrong = {"x2", "y1", "y2"} & set(arguments)
    if wrong:
        raise TypeError(
            f"clean_adversarial takes x, x_adv and y; {sorted(wrong)[0]} is for advfast.ntk.ntk"
        )
    if isinstance(readout, Tensor) and readout.dim() == 3:
        readout = torch.cat([readout, readout])
    both = torch.cat([x, x_adv.to(x)])
    labels = None if y is None else torch.cat([y, y])
    theta = ntk(model, both, y1=labels, readout=readout, **arguments).tensor
    n = len(x)
    return CleanAdversarial(theta[:n, :n], theta[n:, n:], theta[:n, n:])
