"""The IDX format of MNIST and Fashion-MNIST: magic number, dimensions, then unsigned bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_UNSIGNED_BYTE = 0x08


def read_idx(path: str | Path) -> Tensor:
    """The contents of an IDX file of unsigned bytes, gzipped or not.

    Args:
        path: the file; one whose name ends in .gz is decompressed.

    Returns:
        uint8 tensor with the dimensions that the file declares.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not IDX, is truncated, or holds more than it declares.
    """
    path = Path(path)
    if path.name.endswith(".gz"):
        try:
            with gzip.open(path) as stream:
                content = stream.read()
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{path} is not a whole gzip file ({error}); it may have been cut short: get it again"
            ) from error
    else:
        content = path.read_bytes()
    if len(content) < 4:
        raise ValueError(
            f"{path} is not an IDX file: expected at least 4 bytes, got {len(content)}"
        )
    zero, kind, rank = struct.unpack_from(">HBB", content)
    if zero != 0 or kind != _UNSIGNED_BYTE or rank == 0:
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes: expected it to begin with 00 00 08, "
            f"got {content[:3].hex(' ')}"
        )
    header = 4 + 4 * rank
    if len(content) < header:
        raise ValueError(
            f"{path} is truncated: its header needs {header} bytes, got {len(content)}"
        )
    shape = struct.unpack_from(f">{rank}I", content, 4)
    expected = header + math.prod(shape)
    if len(content) != expected:
        problem = "is truncated" if len(content) < expected else "has bytes left over"
        raise ValueError(
            f"{path} {problem}: dimensions {shape} need {expected} bytes, got {len(content)}"
        )
    values = np.frombuffer(content, np.uint8, offset=header).reshape(shape)
    return torch.from_numpy(values.copy())  # a tensor must not share the read-only buffer
