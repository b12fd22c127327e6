"""CIFAR-10 and CIFAR-100, binary version (Krizhevsky 2009): records of label bytes and 3x32x32 pixel bytes."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from .places import folder_with
from .sources import TensorSource
from .splits import Splits

_PIXELS = 3 * 32 * 32

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def cifar10(root: str | Path | None = None) -> Splits:
    """CIFAR-10, 32x32, three channels: 50,000 training and 10,000 test images.

    Args:
        root: folder of data_batch_1.bin .. data_batch_5.bin and test_batch.bin, or of the folder cifar-10-batches-bin
            with them, or of cifar-10-binary.tar.gz, which is read as it is. None looks in $ADVFAST_DATA.

    Raises:
        FileNotFoundError: with where it looked and what is missing.
        ValueError: a file is truncated or is something else.
    """
    names = [f"data_batch_{number}.bin" for number in range(1, 6)]
    return _read(
        "cifar10",
        root,
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        {"train": names, "test": ["test_batch.bin"]},
        (10,),
        "batches.meta.txt",
        CIFAR10_CLASSES,
    )


def cifar100(root: str | Path | None = None) -> Splits:
    """CIFAR-100 with its 100 fine classes, 32x32, three channels: 50,000 training and 10,000 test images.

    Args:
        root: folder of train.bin and test.bin, or of the folder cifar-100-binary with them, or of
            cifar-100-binary.tar.gz, which is read as it is. None looks in $ADVFAST_DATA.

    Raises:
        FileNotFoundError: with where it looked and what is missing.
        ValueError: a file is truncated or is something else.
    """
    return _read(
        "cifar100",
        root,
        "cifar-100-binary",
        "cifar-100-binary.tar.gz",
        {"train": ["train.bin"], "test": ["test.bin"]},
        (20, 100),
        "fine_label_names.txt",
        None,
    )


def _read(
    name: str,
    root: str | Path | None,
    subfolder: str,
    archive: str,
    parts: dict[str, list[str]],
    label_bytes: Sequence[int],
    names_file: str,
    class_names: tuple[str, ...] | None,
) -> Splits:
    """
    Args:
        label_bytes: classes of each label byte of a record; the last one is the label.
    """
    wanted = [file for files in parts.values() for file in files]
    title = name.upper().replace("CIFAR", "CIFAR-")
    advice = f"Put {archive} (the binary version) or the files in it in a folder"
    try:
        folder = folder_with(wanted, title, root, (subfolder,), advice)
    except FileNotFoundError:
        # The files themselves come first: an archive may lie beside what was taken out of it.
        folder = folder_with([archive], title, root, (subfolder,), advice)
        where = folder / archive
        contents = _archive_contents(where, [*wanted, names_file])
    else:
        where = folder
        found = [file for file in (*wanted, names_file) if (folder / file).is_file()]
        contents = {file: (folder / file).read_bytes() for file in found}
    missing = [file for file in wanted if file not in contents]
    if missing:
        raise FileNotFoundError(f"{where} has no {', '.join(missing)}")
    sources = {
        part: _source([(f"{where}/{file}", contents[file]) for file in files], label_bytes)
        for part, files in parts.items()
    }
    if names_file in contents:
        lines = contents[names_file].decode().splitlines()
        class_names = tuple(line.strip() for line in lines if line.strip())
        if len(class_names) != label_bytes[-1]:
            raise ValueError(
                f"{where}/{names_file} must name {label_bytes[-1]} classes, got {len(class_names)}"
            )
    return Splits(name, sources["train"], sources["test"], class_names)


def _archive_contents(path: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    contents = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                stream = archive.extractfile(member) if name in wanted else None
                if stream is not None:
                    contents[name] = stream.read()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{path} is not a whole .tar.gz file ({error}); it may have been cut short: get it again"
        ) from error
    return contents


def _source(files: Sequence[tuple[str, bytes]], label_bytes: Sequence[int]) -> TensorSource:
    record = len(label_bytes) + _PIXELS
    parts = []
    for path, content in files:
        if not content or len(content) % record:
            raise ValueError(
                f"{path} is truncated or something else: expected records of {record} bytes, got "
                f"{len(content)} bytes"
            )
        rows = np.frombuffer(content, np.uint8).reshape(-1, record)
        for column, classes in enumerate(label_bytes):
            largest = int(rows[:, column].max())
            if largest >= classes:
                raise ValueError(
                    f"{path}: label byte {column + 1} must be 0 .. {classes - 1}, got {largest}; is "
                    "it the binary version?"
                )
        parts.append(rows)
    rows = np.concatenate(parts)
    images = torch.from_numpy(rows[:, len(label_bytes) :].copy()).view(-1, 3, 32, 32)
    return TensorSource(images, torch.from_numpy(rows[:, len(label_bytes) - 1].astype(np.int64)))
