"""CutMix (Yun et al., ICCV 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from advfast.data import Batch, randomness

from .mixing import Mixing


class CutMix(Mixing):
    """A box of each image comes from its partner: one box for the batch, lambda from Beta(alpha, alpha).

    Its sides are those of the image times sqrt(1 - lambda), rounded down, its centre is anywhere in the image, and it
    is clipped at the border; a label's share is that of the pixels that are left of its image. See `Mixing`.
    """

    name = "cutmix"
    purpose = randomness.CUTMIX
    numbers = 2

    def batch(self, batch: Batch) -> Batch:
        if batch.images.dim() != 4:
            raise ValueError(
                f"cutmix: images must have shape [B, C, H, W], got {tuple(batch.images.shape)}"
            )
        return super().batch(batch)

    def mix(self, images: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
        height, width = images.shape[2:]
        side = (1 - self._drawn[0]).sqrt()
        rows = _inside(height, side, self._drawn[1])
        columns = _inside(width, side, self._drawn[2])
        box = rows[:, None] & columns
        left = 1 - box.sum() / (height * width)
        mixed = torch.empty_like(images)
        torch.where(box, images[partner], images, out=mixed)
        return mixed, left


def _inside(length: int, side: Tensor, centre: Tensor) -> Tensor:
    """[length] bool: the pixels of an axis that the box covers."""
    middle = (centre * length).floor()
    half = ((side * length).floor() / 2).floor()
    place = torch.arange(length, device=side.device)
    return (place >= middle - half) & (place < middle + half)
