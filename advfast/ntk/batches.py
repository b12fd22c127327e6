"""Samples in a fixed order, batch after batch, as often as they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from advfast.data.sources import to_pixels

DEFAULT_SIZE = 128
_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class Batch(NamedTuple):
    x: Tensor  # [b, ...]
    y: Tensor | None  # int64 [b]
    start: int  # number of the first sample
    stop: int


class Batches:
    """Whatever holds the samples, as batches on the device of the network.

    Args:
        data: a tensor [N, ...]; a pair (x, y) of tensors; a Dataset of (image, label) or a source of `advfast.data`; or
            a DataLoader that does not shuffle, which keeps its batch size. Those that are not tensors are read once at
            the start, and later passes compared with that.
        y: int64 [N], in place of the labels in the data.
        batch_size: samples a batch, the last one may be smaller.
        device, dtype: of the network. Floating point x is converted, uint8 becomes k/255, other integers stay.

    Raises:
        TypeError, ValueError: data of another kind, without samples, in an order that is not fixed, or labels that are
            not one a sample.
    """

    def __init__(
        self,
        data: object,
        y: Tensor | None,
        batch_size: int | None,
        device: torch.device,
        dtype: torch.dtype,
    ):
        if batch_size is not None and (
            isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1
        ):
            raise ValueError(f"batch_size must be an integer of 1 or more, got {batch_size!r}")
        self.device, self.dtype = device, dtype
        self._sums: list[float] | None = None  # of each batch, where the data are read anew
        self._read, self.n, labels = self._opened(data, batch_size)
        if self.n == 0:
            raise ValueError("x holds no samples, expected at least one")
        if y is not None:
            labels = y
        if labels is not None and (not isinstance(labels, Tensor) or len(labels) != self.n):
            got = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise ValueError(f"y must be a tensor of {self.n} labels, one a sample, got {got}")
        self.labels = None if labels is None else labels.to(device)

    def __iter__(self) -> Iterator[Batch]:
        start = 0
        for number, raw in enumerate(self._read()):
            self._compare(number, raw)
            x = to_pixels(raw) if raw.dtype == torch.uint8 else raw
            x = x.to(self.device, self.dtype if x.is_floating_point() else x.dtype)
            stop = start + len(x)
            yield Batch(x, None if self.labels is None else self.labels[start:stop], start, stop)
            start = stop
        if start != self.n:
            raise ValueError(f"x gave {start} samples, but {self.n} on the first pass")

    def _opened(
        self, data: object, batch_size: int | None
    ) -> tuple[Callable[[], Iterable[Tensor]], int, Tensor | None]:
        """What reads the images, how many there are, and their labels."""
        size = batch_size or DEFAULT_SIZE
        if isinstance(data, Tensor):
            return _slices(data, size), len(data) if data.dim() else 0, None
        if isinstance(data, (tuple, list)):
            if len(data) != 2 or not all(isinstance(t, Tensor) for t in data):
                kinds = ", ".join(type(t).__name__ for t in data)
                raise TypeError(f"x as a pair must be two tensors (x, y), got ({kinds})")
            return _slices(data[0], size), len(data[0]), data[1]
        if isinstance(data, DataLoader):
            if batch_size is not None:
                raise ValueError(
                    f"batch_size={batch_size} together with a DataLoader, which has its own"
                )
            _refuse_shuffling(data)
            return self._counted(lambda: _passed(data))
        if isinstance(data, Dataset) and hasattr(data, "__len__"):
            items: Any = data
            return self._counted(
                lambda: (
                    default_collate([items[i] for i in rows.tolist()])
                    for rows in torch.arange(len(items)).split(size)
                    if len(rows)
                )
            )
        if hasattr(data, "batch") and hasattr(data, "__len__"):
            source: Any = data
            return self._counted(
                lambda: (
                    source.batch(rows)
                    for rows in torch.arange(len(source)).split(size)
                    if len(rows)
                )
            )
        raise TypeError(
            "x must be a tensor [N, ...], a pair (x, y) of tensors, a Dataset of (image, label) or a DataLoader, got "
            f"{type(data).__name__}"
        )

    def _counted(
        self, batches: Callable[[], Iterable[Any]]
    ) -> tuple[Callable[[], Iterable[Tensor]], int, Tensor | None]:
        """Reads everything once: for the labels, the number of samples, and the sums of later comparisons."""
        sums, labels, n = [], [], 0
        for batch in batches():
            x, y = _parts(batch)
            n += len(x)
            sums.append(_sum(x))
            if y is not None:
                labels.append(torch.as_tensor(y))
        self._sums = sums
        return (lambda: (_parts(b)[0] for b in batches())), n, torch.cat(labels) if labels else None

    def _compare(self, number: int, x: Tensor) -> None:
        """A product takes two passes; with other samples in the second it would be of no matrix at all."""
        if self._sums is None:
            return
        if number >= len(self._sums) or _sum(x) != self._sums[number]:
            raise ValueError(
                f"batch {number} of x is not what it was on the first pass: the order and the images must be fixed, "
                "without shuffling or random augmentation"
            )


def _passed(loader: DataLoader) -> Iterable[Any]:
    """One pass; a DataLoader draws a seed for its workers, for which the generator is put back."""
    state = torch.get_rng_state()
    iterator = iter(loader)
    torch.set_rng_state(state)
    return iterator


def _slices(x: Tensor, size: int) -> Callable[[], Iterable[Tensor]]:
    return lambda: x.detach().split(size)


def _sum(x: Tensor) -> float:
    """Depends on the order in the batch as well."""
    weights = torch.arange(1, len(x) + 1, dtype=torch.float64, device=x.device)
    return float(x.detach().flatten(1).double().sum(1) @ weights) if len(x) else 0.0


def _parts(batch: object) -> tuple[Tensor, object | None]:
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], Tensor):
        return batch[0], batch[1] if len(batch) > 1 else None
    raise TypeError(f"x must give batches (images, labels), got {type(batch).__name__}")


def _refuse_shuffling(loader: DataLoader) -> None:
    samplers = [loader.sampler, getattr(loader.batch_sampler, "sampler", None)]
    for sampler in samplers:
        if isinstance(sampler, _SHUFFLING) or (
            isinstance(sampler, DistributedSampler) and sampler.shuffle
        ):
            raise ValueError(
                f"x is a DataLoader that shuffles ({type(sampler).__name__}): a product reads the data twice, and both "
                "passes and every row of the result need the same order; use shuffle=False"
            )
