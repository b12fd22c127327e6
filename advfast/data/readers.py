"""Data sets by name: built in, or files of the user's."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import torch

from advfast import userfile
from advfast.kernels.pgd.api import nearest

from . import arrays
from .cifar import cifar10, cifar100
from .folders import image_folder
from .long_tail import named_long_tail
from .mnist import fashion_mnist, mnist
from .noisy import named_noisy
from .sources import TensorSource
from .split import stratified_split
from .splits import Splits, as_splits

DIGITS_TEST = 500
"""Test images of digits, of 1797."""


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


READERS: dict[str, Callable[[str | Path | None], Splits]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "mnist": mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
}

_SIDES = re.compile(r"(.+)@([1-9][0-9]{0,4})(?:/([1-9][0-9]{0,4}))?")


def load(name: str, root: str | Path | None = None) -> Splits:
    """A data set by name.

    Args:
        name: a built-in one ("digits", "fashion-mnist", "mnist", "cifar10", "cifar100"), or a long-tailed part of one,
            such as "cifar10-lt:0.02" (see `long_tail.named_long_tail`), or with random labels or pixels, such as
            "cifar10-noisy:0.4" (see `noisy.named_noisy`); a file "x.npz" (see `arrays.read_npz`); a folder of .npy
            files (see `arrays.read_npy_folder`) or of images (see `folders.image_folder`; "folder@224" scales their
            shorter side to 224 and cuts the centre out, "folder@256/224" scales to 256 and cuts 224); or
            "file.py:make", a function of yours (see `splits.as_splits` for what it may return).
        root: folder of the files of a built-in one.

    Raises:
        ValueError, TypeError: unknown name; a file is damaged or its values are wrong.
        FileNotFoundError: its files are not there.
    """
    if name.lower() in READERS:
        return READERS[name.lower()](root)
    tailed = named_long_tail(name, tuple(READERS), lambda base: READERS[base](root))
    made = tailed or named_noisy(name, tuple(READERS), lambda base: READERS[base](root))
    if made is not None:
        return made
    if userfile.is_user_object(name):
        return as_splits(userfile.call(name), name.rpartition(":")[2], name)
    if name.lower().endswith(".npz"):
        return arrays.read_npz(name)
    sides = _SIDES.fullmatch(name)
    if sides and not Path(name).exists():
        folder, last = Path(sides[1]), int(sides[3] or sides[2])
        if folder.is_dir():
            return image_folder(folder, size=last, shorter_side=int(sides[2]))
        raise FileNotFoundError(f"there is no folder {folder}")
    path = Path(name)
    if path.is_dir():
        if any(file.stem in arrays.NAMES for file in path.glob("*.npy")):
            return arrays.read_npy_folder(path)
        return image_folder(path)
    if path.exists():
        raise ValueError(
            f"{name} is a file of an unknown kind; data may be a .npz file, a folder, or file.py:make"
        )
    if os.sep in name or "/" in name or name.startswith(("~", ".")):
        raise FileNotFoundError(f"there is no file or folder {name}")
    raise ValueError(
        f"unknown data set {name!r}; expected one of {', '.join(READERS)}, a .npz file, a folder, "
        f"or file.py:make{nearest(name, list(READERS))}"
    )
