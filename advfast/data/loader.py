"""Batches of a Source for training, and of anything for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from . import augment as augmentation
from . import foreign, randomness
from .ahead import in_threads, on_stream
from .folders import FolderSource
from .foreign import ForeignLoader
from .joined import JoinedSource
from .share import WHOLE, Share
from .sources import Batch, DatasetSource, Source, TensorSource, as_source, to_pixels

_SHARE_OF_FREE_MEMORY = 0.6
"""Of a GPU, that the data may take; the rest is for the network."""


class Plan(NamedTuple):
    """What a batch is made of: sample numbers [B] int64, and what the augmentation does to each, [B, parameters]."""

    indices: Tensor
    drawn: Tensor


def steps_of(samples: int, batch_size: int) -> int:
    """Steps an epoch.

    A last batch of a single sample is left out, unless it is the only one: batch normalisation has no variance of one
    sample. The order is new in every epoch, so it is not always the same one.
    """
    whole, rest = divmod(samples, batch_size)
    return whole + (rest > 1) or 1


class Loader:
    """Shuffled, augmented batches of a Source, epoch after epoch, without worker processes.

    The order of an epoch depends on (seed, epoch), and what the augmentation does to a sample on (seed, epoch, sample
    number): neither on the device, the memory format or where one starts; the augmentation not on the batch size
    either.

    Images in memory are moved to the device once, as they are stored (bytes stay bytes), and gathered, augmented and
    made float32 there. On a GPU they must fit in 60 % of its free memory; otherwise, and for sources that are not in
    memory, batches are read on threads and moved one by one.

    Args:
        source: the data.
        batch_size: samples a batch; the last one of an epoch may be smaller.
        device: where the batches are put.
        seed: 0 .. 2**64 - 1.
        augment: see `augment.parse`; () for none.
        channels_last: memory format of the images; they must be [C, H, W].
        prefetch: make the next batch while the last one is used: on a GPU on a stream of its own, and read sources
            that allow it on threads. None does so but for data that are already in the CPU's memory.
        share: of each batch that this process reads; `batch_size`, the number of steps, the order and the augmentation
            are those of all processes together.

    Raises:
        TypeError, ValueError: a bad argument, or an augmentation that does not suit the data.
    """

    stateful = True
    """`batches(epoch, start)` depends on its arguments and the seed alone. (Not so for a Dataset with random generators
    of its own; those of Python, numpy and torch are seeded for each sample.)"""

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        device: torch.device | str,
        seed: int,
        augment: Sequence[str] | str = (),
        channels_last: bool = False,
        prefetch: bool | None = None,
        share: Share = WHOLE,
    ) -> None:
        _check_count("batch_size", batch_size, 1)
        _check_count("seed", seed, 0)
        if len(source) == 0:
            raise ValueError("data holds no samples")
        self.samples = len(source)
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.seed = seed
        self.share = share
        shape = tuple(source.batch(torch.zeros(1, dtype=torch.long))[0].shape[1:])
        self.augment = augmentation.parse(augment, shape)
        self.shape = self.augment.shape
        if channels_last and len(shape) != 3:
            raise ValueError(f"channels_last needs images (C, H, W), the data have {shape}")
        self._format = torch.channels_last if channels_last else torch.preserve_format
        if self.augment.decode_side is not None:
            if not isinstance(source, FolderSource):
                raise ValueError(
                    "augment 'random-resized-crop' happens while image files are decoded: it needs "
                    f"a folder of images, got {type(source).__name__}"
                )
            source = source.random_crops(self.augment.decode_side)
        self._source = source
        self._images = self._on_device(source)
        self._labels = source.labels.to(self.device)
        cuda = self.device.type == "cuda"
        self._stream = cuda and prefetch is not False
        self._threads = 0
        if self._images is None and prefetch is not False:
            self._threads = getattr(source, "read_ahead", 0)

    def _on_device(self, source: Source) -> Tensor | None:
        images = _in_memory(source)
        if images is None:
            return None
        if self.device.type == "cuda" and not images.is_cuda:
            free, _ = torch.cuda.mem_get_info(self.device)
            if images.nbytes > _SHARE_OF_FREE_MEMORY * free:
                return None
        return images.to(self.device)

    @property
    def labels(self) -> Tensor:
        """[N] int64 on the device, of all samples by number."""
        return self._labels

    def __len__(self) -> int:
        """Steps an epoch, see `steps_of`."""
        return steps_of(self.samples, self.batch_size)

    def whole(self, step: int) -> int:
        """Samples of all processes in batch number `step`."""
        return min(self.batch_size, self.samples - step * self.batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch.

        Args:
            epoch: from 1.
            start: number of the first batch, 0 .. len(self); what is before it is not read.
        """
        _check_count("epoch", epoch, 1)
        _check_count("start", start, 0)
        if start > len(self):
            raise ValueError(f"start must be 0 .. {len(self)}, got {start}")
        made = self._from_device if self._images is not None else self._from_host
        batches = made(epoch, start)
        return on_stream(batches, self.device) if self._stream else batches

    def plans(self, epoch: int, start: int = 0) -> Iterator[Plan] | None:
        """What `batches` makes its batches of by `assemble`, where all images are on the device; elsewhere None."""
        return None if self._images is None else self._plans(epoch, start)

    def assemble(self, plan: Plan) -> Batch:
        """A batch of images that are on the device, as work of the device alone."""
        assert self._images is not None
        images = self._images.index_select(0, plan.indices)
        labels = self._labels.index_select(0, plan.indices)
        return self._finish(images, labels, plan.indices, plan.drawn)

    def drawn(self, epoch: int) -> Tensor:
        """[N, parameters] int16 on the device: what the augmentation does to each sample in an epoch, by number."""
        return self.augment.draw(self.seed, epoch, self.samples).to(self.device)

    def order(self, epoch: int) -> Tensor:
        """[N] int64: the sample numbers of an epoch's batches, one batch after the other."""
        return randomness.epoch_order(self.seed, epoch, self.samples)

    def _chosen(self, order: Tensor, number: int) -> Tensor:
        chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
        return chosen[self.share.read(len(chosen))]

    def _from_device(self, epoch: int, start: int) -> Iterator[Batch]:
        assert self._images is not None
        if self._stream:
            # Were the loader dropped in the middle of an epoch, the other stream may still be reading.
            self._images.record_stream(torch.cuda.current_stream(self.device))
            self._labels.record_stream(torch.cuda.current_stream(self.device))
        for plan in self._plans(epoch, start):
            yield self.assemble(plan)

    def _plans(self, epoch: int, start: int) -> Iterator[Plan]:
        order = self.order(epoch).to(self.device)
        drawn = self.drawn(epoch).index_select(0, order)
        for number in range(start, len(self)):
            yield Plan(self._chosen(order, number), self._chosen(drawn, number))

    def _from_host(self, epoch: int, start: int) -> Iterator[Batch]:
        order = self.order(epoch)
        drawn = self.drawn(epoch)
        keys = None
        random = isinstance(self._source, (DatasetSource, JoinedSource))
        if self.augment.decode_side is not None or random:
            keys = randomness.sample_keys(self.seed, epoch, self.samples)
        pinned = self.device.type == "cuda"
        for images, labels, chosen in _read(
            self._source,
            (self._chosen(order, number) for number in range(start, len(self))),
            self._threads,
            keys,
            pinned,
        ):
            images, labels, chosen = (
                part.to(self.device, non_blocking=pinned) for part in (images, labels, chosen)
            )
            yield self._finish(images, labels, chosen, drawn.index_select(0, chosen))

    def _finish(self, images: Tensor, labels: Tensor, chosen: Tensor, drawn: Tensor) -> Batch:
        if self.augment.steps:
            images = self.augment(images, drawn)
        return Batch(to_pixels(images, self._format), labels, chosen)


def _in_memory(source: Source) -> Tensor | None:
    return source.images if isinstance(source, (TensorSource, FolderSource)) else None


def _check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**64:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")


def _read(
    source: Source,
    batches: Iterator[Tensor],
    threads: int,
    keys: Tensor | None = None,
    pinned: bool = False,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(images as stored, labels, sample numbers) in memory, by batches of sample numbers."""
    read = getattr(source, "read", None)

    def one(chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if read is None:
            images, labels = source.batch(chosen)
        else:
            images, labels = read(chosen, None if keys is None else keys[chosen])
        if pinned and images.device.type == "cpu":
            return images.pin_memory(), labels.pin_memory(), chosen.pin_memory()
        return images, labels, chosen

    if threads:
        tasks: Iterator[Callable[[], tuple[Tensor, Tensor, Tensor]]]
        tasks = (partial(one, chosen) for chosen in batches)
        yield from in_threads(tasks, threads)
    else:
        for chosen in batches:
            yield one(chosen)


def ordered(data: object, batch_size: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
    """Every sample once, in order, unchanged.

    Args:
        data: a Source or what `as_source` takes; or a DataLoader, which keeps its own order and batch size.
        batch_size: samples a batch; the last one may be smaller.
        device: where the batches are put.

    Raises:
        TypeError, ValueError: bad data.
    """
    device = torch.device(device)
    if isinstance(data, DataLoader):
        return ForeignLoader(data, device).all()
    _check_count("batch_size", batch_size, 1)
    source = as_source(data)
    threads = 0 if _in_memory(source) is not None else getattr(source, "read_ahead", 0)
    read = _read(source, iter(torch.arange(len(source)).split(batch_size)), threads)
    return (
        Batch(to_pixels(images.to(device)), labels.to(device), chosen.to(device))
        for images, labels, chosen in read
    )


def count(data: object) -> int | None:
    """Samples that `ordered` hands out; None where a DataLoader does not tell."""
    if not isinstance(data, DataLoader):
        return len(as_source(data))
    return foreign.samples_of(data)
