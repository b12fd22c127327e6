"""MNIST and Fashion-MNIST: four IDX files of the same names and sizes."""

from __future__ import annotations

from pathlib import Path

from .idx import read_idx
from .places import folder_with
from .sources import TensorSource
from .splits import Splits

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian and Ubuntu package dataset-fashion-mnist puts its files."""

PARTS = {"train": 60000, "t10k": 10000}
"""Stem of the file names -> images."""

_PATTERNS = ("train-*-idx?-ubyte*", "t10k-*-idx?-ubyte*")

FASHION_CLASSES = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_FIRST_LABELS = {
    "MNIST": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5, 3, 6, 1, 7],
    "Fashion-MNIST": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5, 0, 9, 5, 5, 7, 9],
}
"""Of the training data: the only way to tell the files apart."""


def fashion_mnist(root: str | Path | None = None) -> Splits:
    """Fashion-MNIST (Xiao et al. 2017), 28x28, one channel: 60,000 training and 10,000 test images.

    Args:
        root: folder of the four IDX files (.gz or not), or of the folder fashion-mnist with them. None looks in
            $ADVFAST_DATA and the place of the Debian package.

    Raises:
        FileNotFoundError: with where it looked and how to get the files.
        ValueError: a file is truncated or is something else.
    """
    folder = folder_with(
        _PATTERNS,
        "Fashion-MNIST",
        root,
        ("fashion-mnist", "FashionMNIST/raw"),
        "Get it with `apt-get install dataset-fashion-mnist` (Debian, Ubuntu), or put its four "
        "*-ubyte.gz files in a folder",
        (DEBIAN_FASHION_MNIST,),
    )
    return _read(folder, "Fashion-MNIST", FASHION_CLASSES)


def mnist(root: str | Path | None = None) -> Splits:
    """MNIST (LeCun et al. 1998), 28x28, one channel: 60,000 training and 10,000 test images.

    Args:
        root: folder of the four IDX files (.gz or not), or of the folder mnist with them. None looks in $ADVFAST_DATA.

    Raises:
        FileNotFoundError: with where it looked.
        ValueError: a file is truncated or is something else.
    """
    folder = folder_with(
        _PATTERNS,
        "MNIST",
        root,
        ("mnist", "MNIST/raw"),
        "Put its four *-ubyte.gz files (train-images-idx3-ubyte.gz, ...) in a folder",
    )
    return _read(folder, "MNIST", tuple("0123456789"))


def _read(folder: Path, title: str, classes: tuple[str, ...]) -> Splits:
    parts = []
    for stem, count in PARTS.items():
        images = read_idx(_existing(folder, f"{stem}-images-idx3-ubyte", title))
        labels = read_idx(_existing(folder, f"{stem}-labels-idx1-ubyte", title))
        if images.shape != (count, 28, 28) or labels.shape != (count,):
            raise ValueError(
                f"{folder}: {title} has {count} {stem} images of 28x28, got images "
                f"{tuple(images.shape)} and labels {tuple(labels.shape)}"
            )
        if labels.max() > 9:
            raise ValueError(f"{folder}: {stem} labels must be 0 .. 9, got {labels.max().item()}")
        parts.append(TensorSource(images, labels))
    begin = parts[0].labels[:16].tolist()
    for other, first in _FIRST_LABELS.items():
        if other != title and begin == first:
            raise ValueError(f"{folder} holds {other}, not {title}; the files have the same names")
    return Splits(title.lower(), parts[0], parts[1], classes)


def _existing(folder: Path, stem: str, title: str) -> Path:
    for name in (stem + ".gz", stem):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} has no {stem}.gz (or {stem}); {title} has four such files")
