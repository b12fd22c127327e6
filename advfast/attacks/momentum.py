"""The velocity of MI-FGSM (Dong et al., CVPR 2018, eq. 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import pick


class Momentum:
    """g <- decay * g + gradient / mean |gradient|, the mean over a sample (as torchattacks; the paper has the sum).

    An entry that is not finite counts as 0 from the next step on, in place of spoiling the sample for ever; a sample
    without gradient keeps its velocity.
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._velocity: Tensor | None = None

    def __call__(self, gradient: Tensor, mask: Tensor | None) -> Tensor:
        """The direction of the next step, like the gradient; what is masked has no part in the mean."""
        sizes = _finite(gradient).abs_()
        if mask is not None:
            sizes = torch.where(mask, sizes, 0.0)
        mean = sizes.mean(dim=tuple(range(1, gradient.dim())), keepdim=True)
        direction = gradient / mean.clamp_(min=torch.finfo(mean.dtype).tiny)
        if self._velocity is not None:
            direction += self._velocity * self._decay
        self._velocity = _finite(direction)
        return direction

    def keep(self, index: Tensor) -> None:
        """The batch now consists of these rows of it."""
        if self._velocity is not None:
            self._velocity = pick(self._velocity, index)


def _finite(t: Tensor) -> Tensor:
    return torch.nan_to_num(t, 0.0, 0.0, 0.0)
