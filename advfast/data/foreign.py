"""Batches of the user's own DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from .share import WHOLE, Share
from .sources import Batch, check_labels, check_range, to_pixels


def samples_of(dataloader: DataLoader) -> int | None:
    """Samples of one pass; None where it does not tell."""
    sampler = dataloader.batch_sampler
    if isinstance(dataloader.dataset, IterableDataset) or type(sampler) is not BatchSampler:
        return None
    try:
        count = len(sampler.sampler)  # type: ignore[arg-type]
    except TypeError:
        return None
    return count - count % sampler.batch_size if sampler.drop_last else count


class ForeignLoader:
    """A DataLoader as the source of the batches of training, in place of `Loader`.

    Its order and its workers are its own: a run that is resumed in the middle of an epoch skips the batches it had,
    which are the same ones only if the DataLoader's sampler makes them so (`sampler.set_epoch` is called where there is
    one).

    Args:
        dataloader: batches (images [B, C, H, W] uint8 or float in [0, 1], labels [B] integers), or with sample numbers
            [B] as a third part; it must have a length.
        device: where the batches are put; memory that is pinned is copied without waiting.
        channels_last: memory format of the images.
        share: of each batch that this process takes. Every process reads the whole batch, so that the DataLoader must
            give the same batches in all of them: its order must come from torch's generator or from the epoch.

    Raises:
        TypeError: not a DataLoader, or one without a length.
        ValueError: a DistributedSampler, which has shared the samples out already, with a `share`.
    """

    stateful = False

    def __init__(
        self,
        dataloader: DataLoader,
        device: torch.device | str,
        channels_last: bool = False,
        share: Share = WHOLE,
    ) -> None:
        if not isinstance(dataloader, DataLoader):
            raise TypeError(f"expected a torch DataLoader, got {type(dataloader).__name__}")
        if share.world > 1 and isinstance(dataloader.sampler, DistributedSampler):
            raise ValueError(
                "the DataLoader has a DistributedSampler, but the ranks share each of its batches "
                "already: give one with the batch size of all ranks together and without it"
            )
        self.dataloader = dataloader
        self.share = share
        self._whole = 0
        self.device = torch.device(device)
        self.samples = samples_of(dataloader)
        self._format = torch.channels_last if channels_last else torch.preserve_format

    def __len__(self) -> int:
        """Steps an epoch; a last batch of a single sample is left out, as in `Loader`."""
        try:
            steps = len(self.dataloader)
        except TypeError as error:
            raise TypeError(
                "training needs a DataLoader with a length, as the learning rate depends on the "
                f"number of steps; its {type(self.dataloader.dataset).__name__} has none"
            ) from error
        size = self.dataloader.batch_size
        if steps > 1 and self.samples is not None and size is not None and self.samples % size == 1:
            return steps - 1
        return steps

    def whole(self, step: int) -> int:
        """Samples of all processes in the batch at hand."""
        return self._whole

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches number `start` .. len(self) - 1 of an epoch; those before are read and dropped.

        Raises:
            TypeError, ValueError: a batch is not (images, labels), or its values are wrong.
            RuntimeError: it ended before its length.
        """
        steps = len(self)
        for sampler in (self.dataloader.sampler, self.dataloader.batch_sampler):
            set_epoch = getattr(sampler, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(epoch)
        number = start
        for item in islice(self.dataloader, start, steps):
            yield self._mine(self._batch(item, number, first=number == start))
            number += 1
        if number < steps:
            raise RuntimeError(
                f"the DataLoader ended after {number} batches in epoch {epoch}; its length says "
                f"{len(self.dataloader)}"
            )

    def _mine(self, batch: Batch) -> Batch:
        self._whole = len(batch.labels)
        if self.share.world == 1:
            return batch
        part = self.share.read(self._whole)
        numbers = batch.indices
        if numbers is None:
            # Places in the batch, so that what is random about a sample is not that of one in another process.
            numbers = torch.arange(self._whole, device=self.device)
        return Batch(batch.images[part], batch.labels[part], numbers[part])

    def all(self) -> Iterator[Batch]:
        """Every batch of one pass; a length is not needed."""
        for number, item in enumerate(self.dataloader):
            yield self._batch(item, number, first=number == 0)

    def _batch(self, item: object, number: int, *, first: bool) -> Batch:
        images, labels, indices = _parts(item, number)
        if first and images.is_floating_point():
            check_range(images, "the images of the DataLoader")
        pixels = to_pixels(self._moved(images), self._format)
        numbers = None if indices is None else self._moved(indices)
        return Batch(pixels, self._moved(labels).long(), numbers)

    def _moved(self, values: Tensor) -> Tensor:
        return values.to(self.device, non_blocking=values.is_pinned())


def _parts(item: object, number: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """
    Raises:
        TypeError, ValueError: what is wrong with which batch.
    """
    where = f"batch {number} of the DataLoader"
    if not isinstance(item, (tuple, list)) or len(item) not in (2, 3):
        got = type(item).__name__
        if isinstance(item, (tuple, list)):
            got += f" of {len(item)}"
        raise TypeError(f"{where} must be (images, labels) or (images, labels, numbers), got {got}")
    if not all(isinstance(part, Tensor) for part in item):
        raise TypeError(f"{where} must hold tensors, got {[type(part).__name__ for part in item]}")
    images, labels = item[:2]
    if images.dim() < 2 or len(images) == 0:
        raise ValueError(f"{where}: images must have shape [B, C, H, W], got {tuple(images.shape)}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"{where}: images must be uint8 or floating point, got {images.dtype}")
    for name, part in zip(("labels", "sample numbers"), item[1:], strict=False):
        if part.shape != images.shape[:1]:
            raise ValueError(
                f"{where}: {name} must have shape ({len(images)},), one for each image, got "
                f"{tuple(part.shape)}"
            )
        check_labels(part, f"{where}: {name}")
    return images, labels, item[2].long() if len(item) == 3 else None
