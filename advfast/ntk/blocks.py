"""How samples are cut up: chunks that are captured at once, blocks whose products have one shape, tiles of blocks.

Chunk and block depend on the number of samples, the network, the readouts and the kind of device, not on the tile, and
on the memory only where it does not hold a block of the usual size: a sample is captured in the same chunk at the same
place, and a pair of blocks is multiplied in the same shapes and order, whatever the tile. So the result has the same
bits for every tile.
"""

from __future__ import annotations

from dataclasses import dataclass

# Rows of a block's products: enough for a matrix product to run at its rate, few enough that the half of a diagonal
# block that is computed for nothing, and the samples that fill up the last block, stay small.
_ROWS = {"cpu": 160, "cuda": 2048}
_CHUNK_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}
_BLOCK_BYTES = {"cpu": 1536 << 20, "cuda": 8 << 30}
_CHUNK = {"cpu": 160, "cuda": 512}


def _up(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Blocks:
    """`samples` in blocks of `block`, of whole chunks of `chunk`; the last may be partly empty."""

    samples: int
    block: int
    chunk: int

    @property
    def count(self) -> int:
        return _up(self.samples, self.block)

    @property
    def padded(self) -> int:
        return self.count * self.block

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Samples of blocks first .. last - 1."""
        return first * self.block, min(last * self.block, self.samples)


def cut(
    samples: int, readouts: int, captured: int, kept: int, device_type: str, parts: int = 1
) -> Blocks:
    """The blocks of `samples`.

    Args:
        readouts: R.
        captured: bytes a sample while it is captured.
        kept: bytes a sample of a tile.
        device_type: "cpu" or "cuda".
        parts: of the usual size only one part in so many, to fit a small memory.
    """
    kind = device_type if device_type in _ROWS else "cuda"
    most = max(1, min(_up(_ROWS[kind], readouts), _BLOCK_BYTES[kind] // max(kept, 1)) // parts)
    per = _up(samples, _up(samples, most))  # evenly, so that the last one is not nearly empty
    most = max(1, min(_CHUNK[kind], _CHUNK_BYTES[kind] // max(captured, 1)))
    chunks = _up(per, most)
    chunk = _up(per, chunks)
    return Blocks(samples, chunk * chunks, chunk)
