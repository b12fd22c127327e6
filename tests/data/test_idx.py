import gzip
import struct

import numpy as np
import pytest
import torch

from advfast.data import read_idx


def idx_bytes(values: np.ndarray, kind: int = 8) -> bytes:
    header = struct.pack(">HBB", 0, kind, values.ndim) + struct.pack(
        f">{values.ndim}I", *values.shape
    )
    return header + values.astype(np.uint8).tobytes()


@pytest.fixture
def values():
    return np.random.default_rng(0).integers(0, 256, (5, 3, 4), dtype=np.uint8)


@pytest.mark.parametrize("name", ["images-idx3-ubyte", "images-idx3-ubyte.gz"])
def test_reads_what_was_written(tmp_path, values, name):
    path = tmp_path / name
    content = idx_bytes(values)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    read = read_idx(path)
    assert read.dtype == torch.uint8
    assert read.shape == values.shape
    assert (read.numpy() == values).all()
    read += 1  # owns its memory


def test_byte_order_is_big_endian(tmp_path):
    path = tmp_path / "x-idx1-ubyte"
    path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 1, 2]) + bytes(258))
    assert read_idx(path).shape == (258,)


@pytest.mark.parametrize(
    ("cut", "message"),
    [(-1, "truncated"), (20, "truncated"), (10, "truncated"), (3, "at least 4 bytes")],
)
def test_truncated(tmp_path, values, cut, message):
    path = tmp_path / "x-idx3-ubyte"
    path.write_bytes(idx_bytes(values)[:cut])
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("cut", [-1, -9, 30, 5])
def test_truncated_gzip(tmp_path, values, cut):
    path = tmp_path / "x-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx_bytes(values))[:cut])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        read_idx(path)


def test_corrupt_gzip(tmp_path, values):
    content = bytearray(gzip.compress(idx_bytes(values)))
    content[30] ^= 0xFF
    path = tmp_path / "x.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.gz"):
        read_idx(path)


def test_not_idx(tmp_path, values):
    path = tmp_path / "x"
    path.write_bytes(b"\x89PNG....................")
    with pytest.raises(ValueError, match="not an IDX file"):
        read_idx(path)
    path.write_bytes(idx_bytes(values, kind=0x0D))  # floats
    with pytest.raises(ValueError, match="unsigned bytes"):
        read_idx(path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="not an IDX file"):
        read_idx(path)


def test_bytes_left_over(tmp_path, values):
    path = tmp_path / "x"
    path.write_bytes(idx_bytes(values) + b"\0")
    with pytest.raises(ValueError, match="left over"):
        read_idx(path)


def test_missing(tmp_path):
    for name in ("none", "none.gz"):
        with pytest.raises(FileNotFoundError, match="none"):
            read_idx(tmp_path / name)
