"""Where a kernel is put together: in memory, or in a file that an interrupted computation goes on with.

`NAME.npy` holds the matrix [N1*R, N2*R]; `NAME.json` says of what (hashes of weights and data, settings); in
`NAME.done.npy` a byte a pair of blocks says whether it is there.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from advfast import __version__
from advfast.files import write_json

from .engine import Engine, Piece, Side


def _digest(*tensors: Tensor | None) -> str:
    total = hashlib.sha256()
    for t in tensors:
        if t is None:
            total.update(b"none")
            continue
        t = t.detach().cpu().contiguous()
        total.update(f"{t.dtype}{tuple(t.shape)}".encode())
        total.update(t.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _readout_of(side: Side) -> str:
    readout = side.cotangents.readout
    if isinstance(readout, Tensor):
        return _digest(readout)
    if isinstance(readout, (str, int)):
        return str(readout)
    return f"callable {getattr(readout, '__qualname__', type(readout).__name__)}"


def manifest(engine: Engine) -> dict[str, Any]:
    """What a stored kernel is of. Everything that its bits depend on, and nothing that they do not (the tile)."""
    subject, plan = engine.subject, engine.plan
    state = subject.model.state_dict()
    statistics = [t for pair in subject.frozen_statistics for t in pair]
    return {
        "format": 1,
        "advfast": __version__,
        "torch": torch.__version__,
        "device": str(subject.device),
        "threads": torch.get_num_threads() if subject.device.type == "cpu" else None,
        "dtype": str(subject.dtype),
        "precision": engine.precision,
        "weights": _digest(*(state[name] for name in sorted(state)), *statistics),
        "parameters": list(subject.parameters),
        "bn": subject.bn,
        "x1": _digest(engine.left.x, engine.left.y),
        "x2": None if engine.symmetric else _digest(engine.right.x, engine.right.y),
        "readout": [_readout_of(engine.left), _readout_of(engine.right)],
        "shape": [len(engine.left.x), len(engine.right.x), engine.readouts],
        "blocks": [engine.left.blocks.block, engine.right.blocks.block],
        "chunks": [engine.left.blocks.chunk, engine.right.blocks.chunk],
        "orders": plan.orders,
    }


def put(matrix: Tensor, piece: Piece, readouts: int, *, symmetric: bool) -> None:
    """A piece at its place, and mirrored."""
    i, j = (slice(s.start * readouts, s.stop * readouts) for s in (piece.i, piece.j))
    matrix[i, j] = piece.matrix
    if symmetric and piece.i != piece.j:
        matrix[j, i] = piece.matrix.mT


class FileStore:
    """The matrix in `path` (".npy" is added where it is missing).

    Raises:
        ValueError: there is a kernel of something else at this path; the difference is named.
    """

    def __init__(self, path: str | Path, engine: Engine):
        path = Path(path)
        self.path = path if path.suffix == ".npy" else path.with_name(f"{path.name}.npy")
        about, done = self.path.with_suffix(".json"), self.path.with_suffix(".done.npy")
        wanted = json.loads(json.dumps(manifest(engine)))
        blocks = (engine.left.blocks.count, engine.right.blocks.count)
        r = engine.readouts
        shape = (len(engine.left.x) * r, len(engine.right.x) * r)
        if about.exists():
            self._check(about, wanted)
        elif self.path.exists():
            raise ValueError(
                f"out={str(self.path)!r} exists and {about.name} does not: it is no kernel that was begun here; "
                "name another file or remove it"
            )
        engine.shards.barrier()  # every rank has looked before one of them writes
        fresh = not (about.exists() and self.path.exists() and done.exists())
        if fresh and engine.shards.rank == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kind = numpy.float64 if engine.subject.dtype == torch.float64 else numpy.float32
            # The description comes last: without it nothing here is believed.
            numpy.lib.format.open_memmap(self.path, "w+", dtype=kind, shape=shape).flush()
            numpy.lib.format.open_memmap(done, "w+", dtype=numpy.uint8, shape=blocks).flush()
            write_json(about, wanted)
        engine.shards.barrier()
        self._matrix = numpy.lib.format.open_memmap(self.path, "r+")
        self._done = numpy.lib.format.open_memmap(done, "r+")
        self._symmetric, self._readouts = engine.symmetric, r

    def _check(self, about: Path, wanted: dict[str, Any]) -> None:
        try:
            found = json.loads(about.read_text())
        except ValueError as error:
            raise ValueError(f"{about} is damaged ({error}); remove it to begin anew") from error
        different = [key for key in wanted if found.get(key) != wanted[key]]
        if different:
            key = different[0]
            raise ValueError(
                f"{about} describes another kernel: {', '.join(different)} differ ({key}: there "
                f"{found.get(key)!r}, here {wanted[key]!r}); name another file or remove this one"
            )

    def missing(self, i: int, j: int) -> bool:
        return not self._done[i, j]

    @property
    def remaining(self) -> int:
        done = int(self._done.sum())
        rows, columns = self._done.shape
        return (rows * (rows + 1) // 2 if self._symmetric else rows * columns) - done

    def add(self, i: int, j: int, piece: Piece) -> None:
        """Writes a pair of blocks; it is on the disk before it counts as done."""
        matrix = torch.from_numpy(self._matrix)
        put(matrix, piece, self._readouts, symmetric=self._symmetric)
        self._matrix.flush()
        self._done[i, j] = 1
        self._done.flush()

    def tensor(self) -> Tensor:
        return torch.from_numpy(self._matrix)
