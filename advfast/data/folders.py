"""Image folders: one folder a class, read into memory where they fit, else file by file."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from .decode import GREY_MODES, decode, header
from .sources import check_labels, to_pixels
from .splits import Splits

EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".ppm",
    ".pgm",
    ".tif",
    ".tiff",
    ".webp",
)

IN_MEMORY_BYTES = 4 << 30
"""Image folders up to this size, decoded, are held in memory."""

_PROBES = 64
"""Headers that are read to tell grey folders from coloured ones."""

_CHUNK = 256
"""Images that are decoded into memory at a time."""


class FolderSource:
    """Image files with labels, decoded on threads when they are asked for.

    Args:
        paths: of the files.
        labels: [N] integer classes.
        channels: 1 or 3.
        size: side of the square that images are scaled and cut to; None where all have one size already.
        shorter_side: their shorter side is scaled to this before the centre is cut out; None is `size`.
        threads: that decode; None is one a core, at most 16.

    Raises:
        TypeError, ValueError: what was wrong, expected and got.
    """

    read_ahead: ClassVar[int] = 2

    def __init__(
        self,
        paths: Sequence[str | Path],
        labels: Tensor,
        *,
        channels: int = 3,
        size: int | None = None,
        shorter_side: int | None = None,
        threads: int | None = None,
    ) -> None:
        check_labels(labels)
        if labels.shape != (len(paths),):
            raise ValueError(
                f"labels must have shape ({len(paths)},), one for each file, got "
                f"{tuple(labels.shape)}"
            )
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels!r}")
        for name, value in (("size", size), ("shorter_side", shorter_side)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be a number of pixels >= 1, got {value}")
        if shorter_side is not None and (size is None or shorter_side < size):
            raise ValueError(f"shorter_side must be at least size, got {shorter_side} and {size}")
        self.paths = list(paths)
        self.labels = labels.long()
        self.channels, self.size, self.shorter_side = channels, size, shorter_side
        self.threads = threads or min(os.cpu_count() or 1, 16)
        self.images: Tensor | None = None
        """[N, C, H, W] uint8 once `hold` was called."""
        self._crop: int | None = None
        self._first: tuple[torch.Size, str | Path] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = self.read(indices)
        return to_pixels(images), labels

    def read(self, indices: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        indices = indices.cpu()
        labels = self.labels.index_select(0, indices)
        if self.images is not None:
            return self.images.index_select(0, indices), labels
        return torch.stack(self._decoded(indices.tolist(), keys)), labels

    def _decoded(self, numbers: list[int], keys: Tensor | None = None) -> list[Tensor]:
        crops = None if keys is None or self._crop is None else keys.tolist()
        size = self.size if self._crop is None else self._crop
        shorter_side = self.shorter_side if self._crop is None else None

        def one(place: int) -> Tensor:
            return decode(
                self.paths[numbers[place]],
                self.channels,
                size=size,
                shorter_side=shorter_side,
                crop_key=None if crops is None else crops[place],
            )

        with ThreadPoolExecutor(min(self.threads, len(numbers))) as pool:
            images = list(pool.map(one, range(len(numbers))))
        for number, image in zip(numbers, images, strict=True):
            self._check_size(image, number)
        return images

    def _check_size(self, image: Tensor, number: int) -> None:
        if self._first is None:
            self._first = image.shape, self.paths[number]
        shape, path = self._first
        if image.shape != shape and self._crop is None:
            raise ValueError(
                f"images must have one size, got {shape[1]}x{shape[2]} of {path} and "
                f"{image.shape[1]}x{image.shape[2]} of {self.paths[number]}; give the side to "
                "scale them to, for instance '<folder>@32'"
            )

    def subset(self, indices: Tensor) -> FolderSource:
        part = self._copy([self.paths[i] for i in indices.tolist()], self.labels[indices])
        part._crop = self._crop
        part.images = None if self.images is None else self.images[indices]
        return part

    def random_crops(self, side: int) -> FolderSource:
        """The same files; with a key, a random part of the image scaled to side x side, else the centre."""
        cropped = self._copy(self.paths, self.labels)
        cropped._crop = side
        return cropped

    def _copy(self, paths: Sequence[str | Path], labels: Tensor) -> FolderSource:
        return FolderSource(
            paths,
            labels,
            channels=self.channels,
            size=self.size,
            shorter_side=self.shorter_side,
            threads=self.threads,
        )

    def hold(self, limit: int | None = None) -> bool:
        """Decodes everything once and keeps it, if that needs at most `limit` bytes (None: `IN_MEMORY_BYTES`).

        Raises:
            ValueError: a damaged image, or one of another size.
        """
        if self.images is None:
            first = self._decoded([0])[0]
            if first.numel() * len(self) > (IN_MEMORY_BYTES if limit is None else limit):
                return False
            images = torch.empty((len(self), *first.shape), dtype=torch.uint8)
            for start in range(0, len(self), _CHUNK):
                numbers = list(range(start, min(start + _CHUNK, len(self))))
                torch.stack(self._decoded(numbers), out=images[start : start + len(numbers)])
            self.images = images
        return True


def image_folder(
    root: str | Path,
    *,
    size: int | None = None,
    shorter_side: int | None = None,
    in_memory: bool | None = None,
) -> Splits:
    """A folder with train/ (and val/, test/), each of one folder a class; or of class folders directly, all training.

    The classes are numbered in the order of their names in train/, as torchvision's ImageFolder does. Where every image
    (of a sample of them) is grey they are read as one channel, else as three.

    Args:
        root: the folder.
        size: side of the square that images are scaled and cut to; None where all have one size already.
        shorter_side: their shorter side is scaled to this before the centre is cut out; None is `size`.
        in_memory: hold the decoded images; None where a part needs at most 4 GiB.

    Raises:
        ValueError: no images, one class only, unknown classes in val/ or test/, a damaged image.
        ImportError: Pillow is not installed.
    """
    root = Path(root)
    parts = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    if "train" not in parts:
        parts = {"train": root}
    classes = _subfolders(parts["train"])
    if len(classes) < 2:
        found = f"one, {classes[0]!r}" if classes else "none"
        raise ValueError(
            f"{parts['train']} must hold a folder of images for each of at least 2 classes, found "
            f"{found}"
        )
    listed = {name: _listed(folder, classes) for name, folder in parts.items()}
    paths = listed["train"][0]
    probes = paths[:: max(len(paths) // _PROBES, 1)]
    channels = 1 if all(header(path)[0] in GREY_MODES for path in probes) else 3
    sources = {}
    for name, (paths, labels) in listed.items():
        source = FolderSource(
            paths, torch.tensor(labels), channels=channels, size=size, shorter_side=shorter_side
        )
        if in_memory is not False:
            source.hold(None if in_memory is None else sys.maxsize)
        sources[name] = source
    return Splits(
        root.resolve().name,
        sources["train"],
        sources.get("test"),
        tuple(classes),
        sources.get("val"),
    )


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] not in "._"
    )


def _listed(folder: Path, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """The image files under the class folders, and their classes."""
    numbers = {name: number for number, name in enumerate(classes)}
    paths: list[str] = []
    labels: list[int] = []
    for name in _subfolders(folder):
        if name not in numbers:
            raise ValueError(
                f"{folder / name}: class {name!r} is not among those of train/: "
                f"{', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}"
            )
        found = [
            os.path.join(place, file)
            for place, _, files in sorted(os.walk(folder / name, followlinks=True))
            for file in sorted(files)
            if file.lower().endswith(EXTENSIONS)
        ]
        if not found:
            raise ValueError(f"{folder / name} holds no images ({', '.join(EXTENSIONS)})")
        paths += found
        labels += [numbers[name]] * len(found)
    if not paths:
        raise ValueError(f"{folder} holds no class folders with images")
    return paths, labels
