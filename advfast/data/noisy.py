"""Training sets without structure to learn: random labels, and images whose pixels are shuffled or random.

Random labels as in Dong et al. (ICLR 2022, arXiv 2106.01606), images as in Zhang et al. (ICLR 2017).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from advfast.files import write_atomic

from .sources import Source, TensorSource, as_source, to_pixels
from .splits import Splits
from .summary import pixel_statistics

PIXELS = ("shuffled", "random", "gaussian")
"""Kinds of images, see `noisy_pixels`."""

NAME = re.compile(
    r"(?P<base>.+)-(?:noisy:(?P<rate>[^:]*)|(?P<pixels>shuffled|random|gaussian))(?::(?P<seed>[^:]*))?",
    re.IGNORECASE,
)

Change = Callable[[Tensor, Tensor], Tensor]
"""(images [B, C, H, W] as they are stored, numbers of the samples [B]) -> images."""


def noisy_labels(
    labels: Tensor, rate: float, *, classes: int | None = None, seed: int = 0
) -> Tensor:
    """y' ~ Categorical(P[y]) with P = (r / K) 1 1^T + (1 - r) I: with probability r a class drawn from all K.

    At r = 1 about 1 / K of the labels stay what they were. Of two rates with one seed, the labels that the smaller one
    draws anew are drawn anew by the larger one too, and become the same.

    Args:
        labels: [N] integer classes 0 .. K-1.
        rate: r, 0 .. 1.
        classes: K; None is the largest label + 1.
        seed: the draw depends on it and on N and K alone.

    Returns:
        [N] int64.

    Raises:
        ValueError: a rate out of range, fewer than two classes, a label of K or more.
    """
    number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
    if not number or not 0 <= rate <= 1:
        raise ValueError(f"the noise rate must be a number 0 .. 1, got {rate!r}")
    labels = labels.cpu().long()
    largest = int(labels.max()) if len(labels) else -1
    classes = largest + 1 if classes is None else classes
    if classes < 2 or largest >= classes:
        raise ValueError(
            f"random labels need at least 2 classes and labels below their number, got {classes} classes and labels up "
            f"to {largest}"
        )
    generator = np.random.default_rng(seed)
    # All are drawn, so that what is drawn for a sample does not depend on the rate.
    anew = torch.from_numpy(generator.random(len(labels)) < rate)
    drawn = torch.from_numpy(generator.integers(classes, size=len(labels)))
    return torch.where(anew, drawn, labels)


@dataclass(frozen=True)
class LabelNoise:
    """Labels that were drawn, with what they are of; kept as a file.

    Attributes:
        numbers: [N] int64, of the samples in the data set.
        original: [N] int64, their labels there.
        labels: [N] int64, those drawn.
    """

    numbers: Tensor
    original: Tensor
    labels: Tensor

    @classmethod
    def draw(
        cls, data: object, rate: float, *, numbers: Tensor | None = None, seed: int = 0
    ) -> LabelNoise:
        """Labels for the samples `numbers` (None: all) of a data set, see `noisy_labels`."""
        source = as_source(data)
        chosen = torch.arange(len(source)) if numbers is None else numbers.cpu()
        every = source.labels.cpu()
        original = every[chosen]
        drawn = noisy_labels(original, rate, classes=max(int(every.max()) + 1, 2), seed=seed)
        return cls(chosen, original, drawn)

    @classmethod
    def read(cls, path: str | Path) -> LabelNoise:
        """What `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no file of labels.
        """
        try:
            table = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is not a whole .npy file of labels: {error}") from error
        if not isinstance(table, np.ndarray) or table.dtype != np.int64 or table.shape[:1] != (3,):
            raise ValueError(
                f"{path} is no file of labels: expected an int64 array of shape [3, N]"
            )
        return cls(*torch.from_numpy(table))

    def save(self, path: str | Path) -> None:
        """A .npy file, int64 [3, N]: numbers, original labels, labels."""
        table = torch.stack([self.numbers, self.original, self.labels]).numpy()
        write_atomic(path, lambda stream: np.save(stream, table))

    def of(self, data: object) -> Source:
        """These samples of the data set, with these labels.

        Raises:
            ValueError: they are of other data.
        """
        source = as_source(data)
        every = source.labels.cpu()
        inside = bool((self.numbers < len(every)).all())
        if not inside or not torch.equal(every[self.numbers], self.original):
            raise ValueError("the labels were drawn for other data: samples or their labels differ")
        return with_labels(source.subset(self.numbers), self.labels)

    @property
    def kept(self) -> float:
        """Share of the labels that are what they were."""
        return (self.labels == self.original).double().mean().item()


def with_labels(data: object, labels: Tensor) -> Source:
    """A data set with other labels.

    Args:
        data: a pair (images, labels), a torch Dataset or a Source.
        labels: [N] integer classes.

    Raises:
        TypeError, ValueError: bad data; not as many labels as samples.
    """
    source = as_source(data)
    if labels.shape != (len(source),):
        raise ValueError(f"labels must have shape ({len(source)},), got {tuple(labels.shape)}")
    if isinstance(source, TensorSource):
        return TensorSource(source.images, labels.to(source.labels.device))
    return _Altered(source, labels.long(), torch.arange(len(source)))


def noisy_pixels(data: object, kind: str, *, seed: int = 0) -> Source:
    """A data set with other images and the same labels.

    Args:
        data: as in `with_labels`, with images [N, C, H, W].
        kind: "shuffled": one permutation of the H x W positions for all images. "random": a permutation for each.
            "gaussian": every value drawn from a normal distribution with mean and deviation of its channel over the
            data, then clipped to [0, 1]; float32. Channels of a position stay together.
        seed: of "random" and "gaussian" an image depends on it and on its number.

    Raises:
        TypeError, ValueError: bad data; no such kind.
    """
    source = as_source(data)
    if kind not in PIXELS:
        raise ValueError(f"kind must be one of {', '.join(PIXELS)}, got {kind!r}")
    images, _ = source.batch(torch.arange(1))
    if images.dim() != 4:
        raise ValueError(f"images must have shape [N, C, H, W], got {tuple(images.shape)}")
    change: Change
    if kind == "shuffled":
        positions = images.shape[2] * images.shape[3]
        order = torch.from_numpy(np.random.default_rng(seed).permutation(positions))
        change = partial(_shuffle, order=order)
    elif kind == "random":
        change = partial(_random, seed=seed)
    else:
        change = partial(_gaussian, seed=seed, statistics=pixel_statistics(source))
    numbers = torch.arange(len(source))
    if isinstance(source, TensorSource):
        return TensorSource(change(source.images, numbers), source.labels)
    return _Altered(source, source.labels, numbers, change)


def named_noisy(name: str, readers: Sequence[str], read: Callable[[str], Splits]) -> Splits | None:
    """The data set of a name "BASE-noisy:RATE", "BASE-shuffled", "BASE-random" or "BASE-gaussian", each perhaps with
    ":SEED"; None for a name of another kind.

    Random labels are those of the training images. Shuffled pixels are those of all parts, by one permutation; images
    that are random are the training images alone. There is no held-out part of its own but that of the base.

    Args:
        readers: names of the built-in data sets.
        read: one of them.

    Raises:
        ValueError: a number in it is none, or out of range.
    """
    found = NAME.fullmatch(name)
    if found is None or found["base"].lower() not in readers:
        return None
    base = found["base"].lower()
    try:
        seed = 0 if found["seed"] is None else int(found["seed"])
        rate = 0.0 if found["rate"] is None else float(found["rate"])
        if seed < 0 or not 0 <= rate <= 1:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"{name!r} must be {base}-noisy:RATE with a rate 0 .. 1, such as {base}-noisy:0.4, or {base}-shuffled, "
            f"{base}-random or {base}-gaussian, each perhaps with :SEED, an integer >= 0"
        ) from None
    splits = read(base)
    train, test = splits.train, splits.test
    assert not isinstance(train, DataLoader) and not isinstance(test, DataLoader)
    called = f"{base}-" + (
        "noisy-" + f"{rate:g}" if found["pixels"] is None else found["pixels"].lower()
    )
    called += f"-{seed}" if seed else ""
    if found["pixels"] is None:
        return replace(splits, name=called, train=LabelNoise.draw(train, rate, seed=seed).of(train))
    kind = found["pixels"].lower()
    splits = replace(splits, name=called, train=noisy_pixels(train, kind, seed=seed))
    if kind == "shuffled" and test is not None:
        splits = replace(splits, test=noisy_pixels(test, kind, seed=seed))
    return splits


class _Altered:
    """A Source of which samples are read as they are needed, with other labels and perhaps changed images."""

    def __init__(
        self, source: Source, labels: Tensor, numbers: Tensor, change: Change | None = None
    ) -> None:
        self.labels = labels
        self._source, self._numbers, self._change = source, numbers, change
        if hasattr(source, "read"):
            self.read = self._read
        if hasattr(source, "read_ahead"):
            self.read_ahead = source.read_ahead

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        images, _ = self._source.batch(indices)
        return to_pixels(self._changed(images, indices)), self.labels[indices.cpu()]

    def _read(self, indices: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        images, _ = self._source.read(indices, keys)  # type: ignore[attr-defined]
        return self._changed(images, indices), self.labels[indices.cpu()]

    def _changed(self, images: Tensor, indices: Tensor) -> Tensor:
        return (
            images if self._change is None else self._change(images, self._numbers[indices.cpu()])
        )

    def subset(self, indices: Tensor) -> _Altered:
        rows = indices.cpu()
        return _Altered(
            self._source.subset(indices), self.labels[rows], self._numbers[rows], self._change
        )


def _shuffle(images: Tensor, numbers: Tensor, order: Tensor) -> Tensor:
    return images.flatten(2)[:, :, order.to(images.device)].reshape(images.shape)


def _random(images: Tensor, numbers: Tensor, seed: int) -> Tensor:
    positions = math.prod(images.shape[2:])
    orders = [
        np.random.default_rng((seed, number)).permutation(positions) for number in numbers.tolist()
    ]
    order = torch.from_numpy(np.stack(orders))[:, None].to(images.device)
    flat = images.flatten(2)
    return flat.gather(2, order.expand(flat.shape)).reshape(images.shape)


def _gaussian(
    images: Tensor, numbers: Tensor, seed: int, statistics: tuple[Sequence[float], Sequence[float]]
) -> Tensor:
    shape = tuple(images.shape[1:])
    drawn = [
        np.random.default_rng((seed, number)).standard_normal(shape, dtype=np.float32)
        for number in numbers.tolist()
    ]
    mean, std = (torch.tensor(list(values))[:, None, None] for values in statistics)
    made = torch.from_numpy(np.stack(drawn)) * std + mean
    return made.clamp(0, 1).to(images.device)
