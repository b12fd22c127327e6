"""What training and evaluation read from: batches of images by sample number."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset


class Batch(NamedTuple):
    """Some samples, on the device."""

    images: Tensor
    """[B, C, H, W] float32 in [0, 1]."""

    labels: Tensor
    """[B] int64."""

    indices: Tensor | None
    """[B] int64: numbers of the samples in the source; None from a DataLoader that does not give them."""

    guide: Tensor | None = None
    """[B, K] float32: probabilities that a `guided` method draws its predictions to; a modifier puts them in."""

    guide_weight: Tensor | None = None
    """0-d float32: the weight of that in the objective of the attack and in the loss."""


class Source(Protocol):
    """A data set of images with pixels in [0, 1].

    A source may offer more, which `Loader` then uses: `read(indices, keys)` as `batch`, but images as they are stored
    (uint8 0 .. 255 or float) and whatever is random about a sample drawn from its key [B] int64; and `read_ahead`, the
    number of threads that may call it at once (without it, it is called in the thread that iterates).
    """

    @property
    def labels(self) -> Tensor:
        """[N] int64."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """(images [B, C, H, W] float32 in [0, 1], labels [B] int64) of the samples `indices` [B]."""
        ...

    def subset(self, indices: Tensor) -> Source: ...


def check_range(images: Tensor, where: str) -> None:
    """
    Raises:
        ValueError: a pixel outside [0, 1], or NaN.
    """
    if images.numel() == 0:
        return
    low, high = (value.item() for value in torch.aminmax(images))
    if not (low >= 0 and high <= 1):  # also catches NaN
        hint = "; divide by 255" if 1 < high <= 255 and low >= 0 else ""
        raise ValueError(
            f"{where} must have pixels in [0, 1], got {low:.6g} to {high:.6g}{hint}; "
            "normalisation belongs inside the model"
        )


def check_labels(labels: Tensor, where: str = "labels") -> None:
    """
    Raises:
        TypeError, ValueError: not integers, or below 0.
    """
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{where} must be integer classes, got {labels.dtype}")
    if len(labels) and labels.min() < 0:
        raise ValueError(f"{where} must be 0 or more, got {labels.min().item()}")


def to_pixels(images: Tensor, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
    """float32 in [0, 1]; bytes 0 .. 255 become k/255, rounded once, on every device.

    Args:
        images: uint8 0 .. 255 or float in [0, 1].
        memory_format: of the result.
    """
    pixels = images.to(torch.float32, memory_format=memory_format)
    if images.dtype == torch.uint8:
        # By a tensor of its device: by a Python number, CUDA multiplies with the rounded 1/255 instead.
        pixels.div_(torch.full((), 255.0, device=images.device))
    return pixels


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
    read_ahead: ClassVar[int] = 1

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
            kinds = type(images).__name__, type(labels).__name__
            raise TypeError(f"data must be a pair of tensors (images, labels), got {kinds}")
        if images.dim() < 2:
            raise ValueError(f"images must have shape [N, C, H, W], got {tuple(images.shape)}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"images must be uint8 or floating point, got {images.dtype}")
        if labels.shape != images.shape[:1]:
            raise ValueError(
                f"labels must have shape ({images.shape[0]},), one for each image, "
                f"got {tuple(labels.shape)}"
            )
        check_labels(labels)
        if images.is_floating_point():
            check_range(images, "images")
        if images.dim() == 3:
            object.__setattr__(self, "images", images[:, None])
        object.__setattr__(self, "labels", labels.long())

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = self.read(indices)
        return to_pixels(images), labels

    def read(self, indices: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        images = self.images.index_select(0, indices.to(self.images.device))
        return images, self.labels.index_select(0, indices.to(self.labels.device))

    def subset(self, indices: Tensor) -> TensorSource:
        return TensorSource(*self.read(indices))


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
            check_labels(labels)
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
        images, labels = self.read(indices)
        return to_pixels(images), labels

    def read(self, indices: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """With keys, what the Dataset draws from the global generators of Python, numpy and torch depends on the
        sample's key alone, and the generators are left as they were."""
        if keys is None:
            items = [self._item(i) for i in indices.tolist()]
        else:
            with _generators_kept():
                items = [
                    self._keyed_item(i, key)
                    for i, key in zip(indices.tolist(), keys.tolist(), strict=True)
                ]
        images = torch.stack([image for image, _ in items])
        if images.dtype != torch.uint8:
            images = images.float()
            check_range(images, "the images of the Dataset")
        return images, torch.tensor([label for _, label in items], dtype=torch.long)

    def _keyed_item(self, index: int, key: int) -> tuple[Tensor, int]:
        random.seed(key)
        np.random.seed(key % 2**32)
        torch.default_generator.manual_seed(key)
        return self._item(index)

    def subset(self, indices: Tensor) -> DatasetSource:
        subset = torch.utils.data.Subset(self.dataset, indices.tolist())
        return DatasetSource(subset, self.labels[indices])


@contextmanager
def _generators_kept() -> Iterator[None]:
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)


def is_source(data: object) -> bool:
    """Whether it can be read as a Source."""
    return all(hasattr(data, part) for part in ("labels", "batch", "subset", "__len__"))


def as_source(data: object, name: str = "data") -> Source:
    """A pair of tensors or a torch Dataset as a Source; a Source as it is.

    Raises:
        TypeError, ValueError: it is none of them, is empty, or its values are wrong.
    """
    source: Source
    if is_source(data):
        source = data  # type: ignore[assignment]
    elif isinstance(data, (tuple, list)) and len(data) == 2:
        source = TensorSource(*data)
    elif isinstance(data, DataLoader):
        raise TypeError(
            f"{name} must not be a DataLoader: pass its dataset, and batch_size to train"
        )
    elif isinstance(data, TensorDataset) and len(data.tensors) == 2:
        source = TensorSource(*data.tensors)
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
