"""Numbers that describe a data set."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from .sources import DatasetSource, Source

_STATISTICS_CHUNK = 256

_FINGERPRINT_IMAGES = 16


def pixel_statistics(source: Source, limit: int = 2048) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over at most `limit` evenly spaced samples.

    A constant channel gets a deviation of 1, so that normalising by it is harmless.
    """
    chosen = _spread(len(source), limit)
    count, total, squares = 0, torch.zeros(1), torch.zeros(1)
    for numbers in chosen.split(_STATISTICS_CHUNK):  # 2,048 large images are gigabytes
        images, _ = source.batch(numbers)
        channels = images.cpu().double()
        # [C, values]; a sample [D] without channels is one.
        channels = channels.transpose(0, 1).flatten(1) if images.dim() > 2 else channels.view(1, -1)
        count += channels.shape[1]
        total = total + channels.sum(1)
        squares = squares + channels.square().sum(1)
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    std = torch.where(std > 1e-6, std, 1.0)
    return [round(v, 4) for v in mean.tolist()], [round(v, 4) for v in std.tolist()]


def fingerprint(source: Source) -> str:
    """8 hexadecimal digits that differ for other data: all labels, the shape, and 16 evenly spaced images.

    Of a torch Dataset only labels and count are taken, as its images may be random.
    """
    labels = source.labels.cpu()
    check = zlib.crc32(f"{len(labels)}".encode(), zlib.crc32(labels.numpy().tobytes()))
    if not isinstance(source, DatasetSource):
        images, _ = source.batch(_spread(len(labels), _FINGERPRINT_IMAGES))
        check = zlib.crc32(f"{tuple(images.shape)}".encode(), check)
        check = zlib.crc32(images.cpu().numpy().tobytes(), check)
    return f"{check:08x}"


def _spread(total: int, most: int) -> Tensor:
    return torch.linspace(0, total - 1, min(most, total)).long()
