"""What training and evaluation read from: batches of images by sample number."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset


class Source(Protocol):
    """A data set of images with pixels in [0, 1]."""

    @property
    def labels(self) -> Tensor:
        """[N] int64."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """(images [B, C, H, W] float32 in [0, 1], labels [B] int64) of the samples `indices` [B]."""
        ...

    def subset(self, indices: Tensor) -> Source: ...


def _check_range(images: Tensor, where: str) -> None:
    if images.numel() == 0:
        return
    low, high = (value.item() for value in torch.aminmax(images))
    if not (low >= 0 and high <= 1):  # also catches NaN
        hint = "; divide by 255" if 1 < high <= 255 and low >= 0 else ""
        raise ValueError(
            f"{where} must have pixels in [0, 1], got {low:.6g} to {high:.6g}{hint}; "
            "normalisation belongs inside the model"
        )


def _to_pixels(images: Tensor) -> Tensor:
    """float32 in [0, 1]; bytes 0 .. 255 become k/255."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


@dataclass(frozen=True)
class TensorSource:
    """Images and labels in memory; bytes stay bytes until they are read.

    Args:
        images: [N, C, H, W], or [N, H, W] for one channel, or [N, D]; uint8 (0 .. 255) or float in [0, 1].
        labels: [N] integer classes 0 .. K-1.

    Raises:
        TypeError, ValueError: what was wrong, expected and got.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
            kinds = type(images).__name__, type(labels).__name__
            raise TypeError(f"data must be a pair of tensors (images, labels), got {kinds}")
        if images.dim() < 2:
            raise ValueError(f"images must have shape [N, C, H, W], got {tuple(images.shape)}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"images must be uint8 or floating point, got {images.dtype}")
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise TypeError(f"labels must be integer classes, got {labels.dtype}")
        if labels.shape != images.shape[:1]:
            raise ValueError(
                f"labels must have shape ({images.shape[0]},), one for each image, "
                f"got {tuple(labels.shape)}"
            )
        if len(labels) and labels.min() < 0:
            raise ValueError(f"labels must be 0 or more, got {labels.min().item()}")
        if images.is_floating_point():
            _check_range(images, "images")
        if images.dim() == 3:
            object.__setattr__(self, "images", images[:, None])
        object.__setattr__(self, "labels", labels.long())

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        indices = indices.to(self.images.device)
        return _to_pixels(self.images[indices]), self.labels[indices.to(self.labels.device)]

    def subset(self, indices: Tensor) -> TensorSource:
        return TensorSource(self.images[indices], self.labels[indices])


class DatasetSource:
    """A torch Dataset of (image, label), read anew for every batch so that its augmentation stays random.

    The labels are read once at the start, which loads every sample once.

    Args:
        dataset: items (image tensor [C, H, W], uint8 or float in [0, 1]; integer label).
        labels: [len(dataset)] int64 if they are known.
    """

    def __init__(self, dataset: Dataset, labels: Tensor | None = None) -> None:
        if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
            raise TypeError(
                "data must be a Dataset with a length and an index, got "
                f"{type(dataset).__name__}; make a (images, labels) tensor pair of it"
            )
        self.dataset = dataset
        if labels is None:
            labels = torch.tensor([self._item(i)[1] for i in range(len(dataset))], dtype=torch.long)
            if len(labels) and labels.min() < 0:
                raise ValueError(f"labels must be 0 or more, got {labels.min().item()}")
        self.labels = labels

    def _item(self, index: int) -> tuple[Tensor, int]:
        item = self.dataset[index]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise TypeError(
                f"item {index} of the Dataset must be (image, label), got {type(item).__name__}"
            )
        image, label = item
        if not isinstance(image, Tensor):
            raise TypeError(
                f"item {index} of the Dataset must hold an image tensor, got "
                f"{type(image).__name__}; add a to-tensor transform"
            )
        return image, int(label)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        items = [self._item(i) for i in indices.tolist()]
        images = _to_pixels(torch.stack([image for image, _ in items]))
        _check_range(images, "the images of the Dataset")
        return images, torch.tensor([label for _, label in items], dtype=torch.long)

    def subset(self, indices: Tensor) -> DatasetSource:
        subset = torch.utils.data.Subset(self.dataset, indices.tolist())
        return DatasetSource(subset, self.labels[indices])


def as_source(data: object, name: str = "data") -> Source:
    """A pair of tensors or a torch Dataset as a Source.

    Raises:
        TypeError, ValueError: it is neither, is empty, or its values are wrong.
    """
    source: Source
    if isinstance(data, (TensorSource, DatasetSource)):
        source = data
    elif isinstance(data, (tuple, list)) and len(data) == 2:
        source = TensorSource(*data)
    elif isinstance(data, DataLoader):
        raise TypeError(
            f"{name} must not be a DataLoader: pass its dataset, and batch_size to train"
        )
    elif isinstance(data, Dataset):
        source = DatasetSource(data)
    else:
        raise TypeError(
            f"{name} must be a pair of tensors (images, labels), a torch Dataset, or a name, got "
            f"{type(data).__name__}"
        )
    if len(source) == 0:
        raise ValueError(f"{name} holds no samples")
    return source


def pixel_statistics(source: Source, limit: int = 2048) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over at most `limit` evenly spaced samples.

    A constant channel gets a deviation of 1, so that normalising by it is harmless.
    """
    count = min(limit, len(source))
    images, _ = source.batch(torch.linspace(0, len(source) - 1, count).long())
    axes = [axis for axis in range(images.dim()) if axis != 1] if images.dim() > 2 else [0, 1]
    mean = images.mean(axes).reshape(-1)
    std = images.std(axes, correction=0).reshape(-1)
    std = torch.where(std > 1e-6, std, 1.0)
    return [round(v, 4) for v in mean.tolist()], [round(v, 4) for v in std.tolist()]
