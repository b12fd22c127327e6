"""Arrays of numpy: .npz files, read into memory, and folders of .npy files, mapped and never read whole."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .sources import Source, TensorSource, check_labels, check_range, to_pixels
from .splits import Splits

PAIRS = {
    "train": (("x_train", "y_train"), ("train_images", "train_labels"), ("images", "labels")),
    "val": (("x_val", "y_val"), ("val_images", "val_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}
"""Names of the images and the labels of each part; only those of "train" are needed."""

EXTRA = ("class_names", "layout")
"""Further names: strings, one a class; and "NCHW" or "NHWC", where the shape does not tell."""

NAMES = [name for pairs in PAIRS.values() for pair in pairs for name in pair] + list(EXTRA)

_CHANNELS = (1, 3)


class ArraySource:
    """Arrays that are mapped from files: a batch reads what it needs.

    Args:
        images: [N, C, H, W], [N, H, W, C], [N, H, W] or [N, D]; uint8 or float in [0, 1].
        labels: [N] integer classes.
        layout: "NCHW" or "NHWC" of images with four dimensions; None finds the axis of 1 or 3 channels.

    Raises:
        TypeError, ValueError: what was wrong, expected and got.
    """

    read_ahead: ClassVar[int] = 2

    def __init__(
        self, images: np.ndarray, labels: np.ndarray | Tensor, layout: str | None = None
    ) -> None:
        if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
            raise TypeError(f"images must be uint8 or floating point, got {images.dtype}")
        classes = labels if isinstance(labels, Tensor) else _labels(labels)
        check_labels(classes)
        if images.ndim < 2 or classes.shape != images.shape[:1]:
            raise ValueError(
                f"images [N, C, H, W] and labels [N] must be of as many samples, got shapes "
                f"{images.shape} and {tuple(classes.shape)}"
            )
        self.labels = classes.long()
        self._last = find_layout(images.shape, layout) == "NHWC"
        self._array = images
        self._rows: Tensor | None = None  # of the array, where this is a subset

    @classmethod
    def open(cls, images: str | Path, labels: str | Path, layout: str | None = None) -> ArraySource:
        """Of two .npy files.

        Raises:
            ValueError: a file is truncated or no .npy file.
        """
        return cls(_mapped(Path(images)), np.array(_mapped(Path(labels))), layout)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = self.read(indices)
        return to_pixels(images), labels

    def read(self, indices: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        indices = indices.cpu()
        rows = indices if self._rows is None else self._rows[indices]
        values = self._array[rows.numpy()]  # a copy
        images = torch.from_numpy(values.astype(values.dtype.newbyteorder("="), copy=False))
        if images.dtype != torch.uint8:
            images = images.float()
            check_range(images, "images")
        if images.dim() == 3:
            images = images[:, None]
        elif self._last:
            images = images.permute(0, 3, 1, 2).contiguous()
        return images, self.labels[indices]

    def subset(self, indices: Tensor) -> ArraySource:
        part = ArraySource.__new__(ArraySource)
        part.labels, part._last, part._array = self.labels[indices], self._last, self._array
        part._rows = indices if self._rows is None else self._rows[indices]
        return part


def find_layout(shape: Sequence[int], layout: str | None = None) -> str:
    """ "NCHW" or "NHWC" of images with four dimensions, from the axis of 1 or 3 channels; of others "NCHW".

    Raises:
        ValueError: neither axis, or both, could be the channels; or `layout` is neither.
    """
    if layout is not None and layout not in ("NCHW", "NHWC"):
        raise ValueError(f"layout must be 'NCHW' or 'NHWC', got {layout!r}")
    if layout is not None or len(shape) != 4:
        return layout or "NCHW"
    first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
    if first == last:
        problem = "either axis 1 or axis 3" if first else "neither axis 1 nor axis 3"
        raise ValueError(
            f"images of shape {tuple(shape)}: {problem} could be 1 or 3 channels; say which with a "
            "string named layout, 'NCHW' or 'NHWC', beside the arrays (np.savez(..., layout='NHWC'))"
        )
    return "NCHW" if first else "NHWC"


def read_npz(path: str | Path) -> Splits:
    """The parts in an .npz file, read into memory; see `PAIRS` for the names in it.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: truncated, no .npz file, or its arrays are wrong.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:  # numpy leaves a file open that turns out to be damaged
            content = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                raise ValueError("it holds one array, as a .npy file does")
            found = content.files
            arrays = {name: content[name] for name in found if name in NAMES}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError) as error:
        raise ValueError(
            f"{path} is not a whole .npz file of plain arrays ({error}); it may have been cut short"
        ) from error

    def source(images: np.ndarray, labels: np.ndarray, layout: str | None) -> Source:
        if images.ndim == 4 and find_layout(images.shape, layout) == "NHWC":
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        images = images.astype(images.dtype.newbyteorder("="), copy=False)
        return TensorSource(torch.from_numpy(images), _labels(labels))

    return _splits(path, arrays, found, source)


def read_npy_folder(folder: str | Path) -> Splits:
    """The parts in a folder of .npy files with the names of `PAIRS`, mapped into memory: nothing is read whole.

    Raises:
        TypeError, ValueError: a file is truncated, or the arrays are wrong.
    """
    folder = Path(folder)
    files = {path.stem: path for path in sorted(folder.glob("*.npy"))}
    arrays = {name: _mapped(path) for name, path in files.items() if name in NAMES}
    return _splits(
        folder, arrays, list(files), lambda x, y, layout: ArraySource(x, np.array(y), layout)
    )


def _splits(
    path: Path,
    arrays: dict[str, np.ndarray],
    found: Sequence[str],
    source: Callable[[np.ndarray, np.ndarray, str | None], Source],
) -> Splits:
    layout = str(arrays["layout"]) if "layout" in arrays else None
    parts: dict[str, Source] = {}
    for part, pairs in PAIRS.items():
        for images, labels in pairs:
            if images not in arrays and labels not in arrays:
                continue
            if images not in arrays or labels not in arrays:
                missing = images if images not in arrays else labels
                raise ValueError(f"{path} has no {missing}, only the other of the pair")
            if part in parts:
                raise ValueError(f"{path} holds {part} data twice: also as {images} and {labels}")
            try:
                parts[part] = source(arrays[images], arrays[labels], layout)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{path}, {images} and {labels}: {error}") from error
            if len(parts[part]) == 0:
                raise ValueError(f"{path}: {images} holds no samples")
    if "train" not in parts:
        expected = " or ".join(f"{images} and {labels}" for images, labels in PAIRS["train"])
        raise ValueError(
            f"{path} must hold {expected}; found {', '.join(found) if found else 'nothing'}"
        )
    names = None
    if "class_names" in arrays:
        names = tuple(str(name) for name in arrays["class_names"].tolist())
    return Splits(path.stem, parts["train"], parts.get("test"), names, parts.get("val"))


def _labels(labels: np.ndarray) -> Tensor:
    if labels.ndim == 2 and labels.shape[1] == 1:  # as Keras and MedMNIST keep them
        labels = labels[:, 0]
    if labels.dtype == np.bool_ or not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels must be integer classes, got {labels.dtype}")
    return torch.from_numpy(labels.astype(np.int64))


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{path} is not a whole .npy file of a plain array ({error}); it may have been cut short"
        ) from error
