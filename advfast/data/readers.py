"""Built-in data sets by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from advfast.kernels.pgd.api import nearest

from .idx import read_idx
from .sources import Source, TensorSource
from .split import stratified_split

DIGITS_TEST = 500
"""Test images of digits, of 1797."""

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian and Ubuntu package dataset-fashion-mnist puts its files."""

FASHION_PARTS = {"train": 60000, "t10k": 10000}
"""Stem of the file names -> images."""

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


@dataclass(frozen=True)
class Splits:
    """A data set with its own test set."""

    name: str
    train: Source
    test: Source
    class_names: tuple[str, ...]


def digits(root: str | Path | None = None) -> Splits:
    """scikit-learn's handwritten digits, 8x8, one channel, 17 grey levels; part of scikit-learn.

    1,297 training and 500 test images, a fixed stratified split (scikit-learn has none of its own).

    Args:
        root: not used; there are no files.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    labels = torch.from_numpy(data.target).long()
    train, test = stratified_split(labels, DIGITS_TEST, seed=0)
    names = tuple(str(name) for name in data.target_names)
    whole = TensorSource(images, labels)
    return Splits("digits", whole.subset(train), whole.subset(test), names)


def fashion_mnist(root: str | Path | None = None) -> Splits:
    """Fashion-MNIST (Xiao et al. 2017), 28x28, one channel: 60,000 training and 10,000 test images.

    Args:
        root: folder of the four IDX files (.gz or not). None looks in $ADVFAST_DATA, $ADVFAST_DATA/fashion-mnist and
            the place of the Debian package.

    Raises:
        FileNotFoundError: with where it looked and how to get the files.
        ValueError: a file is truncated or is something else.
    """
    folder = _fashion_folder(root)
    parts = []
    for stem, count in FASHION_PARTS.items():
        images = read_idx(_existing(folder, f"{stem}-images-idx3-ubyte"))
        labels = read_idx(_existing(folder, f"{stem}-labels-idx1-ubyte"))
        if images.shape != (count, 28, 28) or labels.shape != (count,):
            raise ValueError(
                f"{folder}: Fashion-MNIST has {count} {stem} images of 28x28, got images "
                f"{tuple(images.shape)} and labels {tuple(labels.shape)}"
            )
        if labels.max() > 9:
            raise ValueError(f"{folder}: {stem} labels must be 0 .. 9, got {labels.max().item()}")
        parts.append(TensorSource(images, labels))
    return Splits("fashion-mnist", parts[0], parts[1], FASHION_CLASSES)


def _existing(folder: Path, stem: str) -> Path:
    for name in (stem + ".gz", stem):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{folder} has no {stem}.gz (or {stem}); Fashion-MNIST has four such files"
    )


def _fashion_folder(root: str | Path | None) -> Path:
    folders = [DEBIAN_FASHION_MNIST]
    if root is not None:
        folders = [Path(root), Path(root) / "fashion-mnist"]
    elif os.environ.get("ADVFAST_DATA"):
        given = Path(os.environ["ADVFAST_DATA"])
        folders = [given, given / "fashion-mnist", *folders]
    for folder in folders:
        # The first that holds any of the files is meant; a missing one of the four is then named.
        if any(folder.glob("t*-idx?-ubyte*")):
            return folder
    raise FileNotFoundError(
        "Fashion-MNIST was not found; looked in "
        + ", ".join(str(folder) for folder in folders)
        + ". Get it with `apt-get install dataset-fashion-mnist` (Debian, Ubuntu), or put its four "
        "*-ubyte.gz files in a folder and name that with ADVFAST_DATA, data_root= or --data-root"
    )


READERS: dict[str, Callable[[str | Path | None], Splits]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
}


def load(name: str, root: str | Path | None = None) -> Splits:
    """A built-in data set by name: "digits", "fashion-mnist".

    Raises:
        ValueError: unknown name; a file is damaged.
        FileNotFoundError: its files are not there.
    """
    if name not in READERS:
        raise ValueError(
            f"unknown data set {name!r}; expected one of {', '.join(READERS)}"
            f"{nearest(name, list(READERS))}"
        )
    return READERS[name](root)
