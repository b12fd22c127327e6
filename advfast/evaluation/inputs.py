"""The data of an evaluation, and the checks on each batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from advfast import models
from advfast.attacks.state import model_device, parameter_dtype
from advfast.data import WHOLE, Share, Source, Splits, as_source, count, load, ordered

SPLITS = ("test", "val", "train")


@dataclass(frozen=True)
class Inputs:
    """What is evaluated on.

    Attributes:
        data: a Source or a DataLoader.
        words: what it is, for people.
        class_names: if known.
        samples: how many are taken; None where nobody knows before the end.
        first: number of the first one.
        shard: of each batch of a DataLoader, the part that is taken.
    """

    data: Source | DataLoader
    words: str
    class_names: tuple[str, ...] | None
    samples: int | None
    first: int = 0
    shard: Share = WHOLE

    def labels(self, limit: int | None) -> Tensor | None:
        """Those of the samples that are taken, where they can be had at once."""
        if isinstance(self.data, DataLoader):
            return None
        return self.data.labels[:limit]


def check_shard(shard: tuple[int, int]) -> None:
    """
    Raises:
        ValueError: not (number, count) with 0 <= number < count.
    """
    counts = isinstance(shard, tuple) and len(shard) == 2
    if not counts or not all(type(n) is int for n in shard) or not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard must be (number, count) with 0 <= number < count, got {shard!r}")


def inputs(
    data: object,
    split: str,
    data_root: str | Path | None,
    limit: int | None,
    shard: tuple[int, int] | None = None,
) -> Inputs:
    """
    Raises:
        ValueError, TypeError, FileNotFoundError: what is wrong with the data, before any work.
    """
    names = None
    source: Source | DataLoader
    if isinstance(data, (str, Path)):
        data = load(str(data), data_root)
    if isinstance(data, Splits):
        source, names = _split(data, split), data.class_names
        words = f"{data.name} ({split})"
    elif isinstance(data, DataLoader):
        source, words = data, f"a DataLoader of {type(data.dataset).__name__}"
    else:
        source = as_source(data)
        words = "tensors" if isinstance(data, (tuple, list)) else type(data).__name__
    total = count(source)
    if total == 0:
        raise ValueError("data holds no samples")
    if limit is not None and (total is None or limit < total):
        total, words = limit, f"{words}, first {limit}"
    class_names = None if names is None else tuple(names)
    if shard is None or shard[1] == 1:
        return Inputs(source, words, class_names, total)
    words = f"{words}, part {shard[0]} of {shard[1]}"
    if isinstance(source, DataLoader):
        return Inputs(source, words, class_names, None, 0, Share(*shard))
    assert total is not None
    first, end = (total * number // shard[1] for number in (shard[0], shard[0] + 1))
    part = source.subset(torch.arange(first, end))
    return Inputs(part, words, class_names, end - first, first)


def _split(data: Splits, split: str) -> Source | DataLoader:
    found: dict[str, Source | DataLoader | None] = {name: getattr(data, name) for name in SPLITS}
    chosen = found[split]
    if chosen is None:
        there = " or ".join(repr(name) for name, part in found.items() if part is not None)
        raise ValueError(f"{data.name} has no {split} set; choose split={there}")
    return chosen


def batches(
    of: Inputs, batch_size: int, limit: int | None, model: object
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(images, labels, sample numbers) on the model's device, the images in its dtype.

    A model in 16 bits thus sees rounded images, and the ball of an attack is around those.
    """
    device = model_device(model) or torch.device("cpu")
    dtype = parameter_dtype(model) or torch.float32
    done = 0
    for images, labels, numbers, *_ in ordered(of.data, batch_size, device):
        if limit is not None and done + len(labels) > limit:
            keep = limit - done
            images, labels = images[:keep], labels[:keep]
            numbers = None if numbers is None else numbers[:keep]
        if numbers is None:
            numbers = torch.arange(done, done + len(labels), device=device)
        done += len(labels)
        numbers = numbers + of.first if of.first else numbers
        if of.shard.world > 1:
            part = of.shard.part(len(labels))
            images, labels, numbers = images[part], labels[part], numbers[part]
        if len(labels):
            yield images.to(dtype), labels, numbers
        if done == limit:
            return


def describe(model: object) -> str:
    """A model in words: its registered name, or its class."""
    if not isinstance(model, nn.Module):
        return getattr(model, "__name__", type(model).__name__)
    spec = models.spec(model)
    if spec is not None:
        return str(spec["name"])
    return type(model).__name__


def logits_of(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """[B, K], in the model's own precision whatever autocast the caller has.

    Raises:
        TypeError, ValueError: the model does not take the images, or returns something else.
    """
    with torch.autocast(images.device.type, enabled=False):
        try:
            logits = model(images)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(
                f"the model does not take images of shape {tuple(images.shape)}, {images.dtype}: {error}"
            ) from error
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the model must return logits of shape [B, K], got {type(logits).__name__}; "
            "wrap it in a function that returns the logits alone"
        )
    if logits.dim() != 2 or len(logits) != len(images) or not logits.shape[1]:
        raise ValueError(
            f"the model must return logits of shape [B, K] = [{len(images)}, K], "
            f"got {tuple(logits.shape)}"
        )
    return logits


def check_labels(labels: Tensor, classes: int) -> None:
    """
    Raises:
        ValueError: a label that the model has no logit for.
    """
    if not len(labels):
        return
    low, high = (int(value) for value in torch.aminmax(labels))
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise ValueError(
            f"labels must be 0 .. {classes - 1} for a model with {classes} logits, got {wrong}"
        )
