"""Two sources as one."""

from __future__ import annotations

import torch
from torch import Tensor

from .sources import Source, TensorSource, to_pixels


class JoinedSource:
    """Two sources as one: sample numbers of the second come after those of the first.

    Args:
        first, second: with images of the same shape.
    """

    def __init__(self, first: Source, second: Source) -> None:
        self.parts = (first, second)
        self.labels = torch.cat([part.labels.cpu() for part in self.parts])
        self.read_ahead = min(getattr(part, "read_ahead", 0) for part in self.parts)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = self.read(indices)
        return to_pixels(images), labels

    def read(self, indices: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As they are stored where both are stored alike, else as pixels."""
        first = indices < len(self.parts[0])
        images, labels = [], []
        for part, mine, offset in zip(
            self.parts, (first, ~first), (0, len(self.parts[0])), strict=True
        ):
            own = _read(part, indices[mine] - offset, None if keys is None else keys[mine])
            images.append(own[0])
            labels.append(own[1])
        if images[0].dtype != images[1].dtype:
            images = [to_pixels(found) for found in images]
        # Back in the order that was asked for.
        order = torch.cat([first.nonzero()[:, 0], (~first).nonzero()[:, 0]]).argsort()
        return torch.cat(images)[order], torch.cat(labels)[order]

    def subset(self, indices: Tensor) -> JoinedSource:
        first = indices < len(self.parts[0])
        if not bool((first[:-1] >= first[1:]).all()):
            raise ValueError("a subset of joined sources must have those of the first one first")
        return JoinedSource(
            self.parts[0].subset(indices[first]),
            self.parts[1].subset(indices[~first] - len(self.parts[0])),
        )


def _read(part: Source, indices: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
    read = getattr(part, "read", None)
    if len(indices) == 0:  # not every source can read nothing
        images, labels = _read(part, torch.zeros(1, dtype=torch.long), None)
        return images[:0], labels[:0]
    return part.batch(indices) if read is None else read(indices, keys)


def joined(first: Source, second: Source) -> Source:
    """Two sources as one, in memory where both are in memory and stored alike.

    Raises:
        ValueError: their images have another shape.
    """
    shapes = [
        tuple(part.batch(torch.zeros(1, dtype=torch.long))[0].shape[1:]) for part in (first, second)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(f"extra must have images of shape {shapes[0]}, as data, got {shapes[1]}")
    if isinstance(first, TensorSource) and isinstance(second, TensorSource):
        images = first.images, second.images
        if images[0].dtype == images[1].dtype and images[0].device == images[1].device:
            return TensorSource(
                torch.cat(images), torch.cat([first.labels, second.labels.to(first.labels.device)])
            )
    return JoinedSource(first, second)
