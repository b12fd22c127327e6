"""Runs a plan: captures tiles of samples, multiplies blocks, hands the kernel out piece by piece."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import contract, planner
from .blocks import Blocks
from .capture import Capture
from .factors import Block, joined, kept
from .planner import Plan
from .readouts import Cotangents, Readout, check_readout
from .shards import Shards
from .subject import Subject

PRECISIONS = ("auto", "fp64", "fp32", "tf32", "bf16", "bf16x3")


@dataclass(frozen=True)
class Piece:
    """A rectangle of the kernel: samples i of x1 and j of x2.

    `matrix` is [(i.stop - i.start) * R, (j.stop - j.start) * R]. Of a symmetric kernel (x2 None) a piece stands above
    the diagonal (i.stop <= j.start) or on it (i == j, both triangles).
    """

    i: slice
    j: slice
    matrix: Tensor
    per_layer: dict[str, Tensor]


@dataclass(frozen=True)
class Side:
    """Images, labels and readout of one side."""

    x: Tensor  # [N, ...]
    y: Tensor | None
    cotangents: Cotangents
    capture: Capture
    blocks: Blocks


def resolve_precision(precision: str, subject: Subject) -> str:
    """The precision of the products. fp64 goes with a float64 model, the others with float32."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    double = subject.dtype == torch.float64
    if precision == "auto":
        if double:
            return "fp64"
        return "tf32" if subject.device.type == "cuda" else "fp32"
    if double and precision != "fp64":
        raise ValueError(f"precision={precision!r} needs a float32 model, this one is float64")
    return precision


def _check_images(name: str, x: object, like: Tensor | None = None) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor [N, ...], got {type(x).__name__}")
    if x.dim() < 1 or len(x) == 0:
        raise ValueError(f"{name} holds no samples: its shape is {tuple(x.shape)}")
    if like is not None and x.dim() != like.dim():
        raise ValueError(
            f"{name} must have {like.dim()} dimensions like x1, got {tuple(x.shape)} and {tuple(like.shape)}"
        )
    return x.detach()


def _check_count(name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{name} must be a positive whole number, got {value!r}")


class Engine:
    """A kernel that is ready to be computed.

    Arguments as `advfast.ntk.ntk`; `result_held`: the result takes memory of the model's device.
    """

    def __init__(
        self,
        model: nn.Module,
        x1: Tensor,
        x2: Tensor | None = None,
        *,
        y1: Tensor | None = None,
        y2: Tensor | None = None,
        readout: Readout | tuple[Readout, Readout] = "full",
        params=None,
        bn: str = "eval",
        bn_batch: Tensor | None = None,
        method: str | dict[str, str] | Plan = "auto",
        precision: str = "auto",
        tile: int | None = None,
        max_bytes: int | None = None,
        per_layer: bool = False,
        group: Any = None,
        result_held: bool = True,
    ):
        x1 = _check_images("x1", x1)
        x2 = None if x2 is None else _check_images("x2", x2, x1)
        _check_count("tile", tile)
        _check_count("max_bytes", max_bytes)
        first, second = readout if isinstance(readout, tuple) else (readout, readout)
        for one in (first, second):
            check_readout(one)
        subject = Subject(model, params=params, bn=bn, bn_batch=bn_batch)
        self.precision = resolve_precision(precision, subject)
        if self.precision == "fp64" and subject.dtype != torch.float64:
            # A reference for the float32 kernel: the same network in double precision.
            names = list(subject.parameters)
            double = copy.deepcopy(model).double()
            batch = None if bn_batch is None else bn_batch.double()
            subject = Subject(double, params=names, bn=bn, bn_batch=batch)
        self.subject, self.apart = subject, per_layer
        captures = [Capture(subject, first, self.placed(x1[:1]))]
        if x2 is not None:
            again = second is first and x2.shape[1:] == x1.shape[1:]
            captures.append(captures[0] if again else Capture(subject, second, self.placed(x2[:1])))
        sides = [(x1, y1, captures[0].cotangents)]
        if x2 is not None:
            sides.append((x2, y2, captures[1].cotangents))
        for k, (x, y, cotangents) in enumerate(sides, 1):
            cotangents.check_labels(y, len(x), f"y{k}")
            own = cotangents.readout
            if isinstance(own, Tensor) and cotangents.per_sample and len(own) != len(x):
                raise ValueError(
                    f"readout: a tensor [N, R, O] must have a block for each of the {len(x)} samples of x{k}, got "
                    f"{tuple(own.shape)}; for two sides give a pair"
                )
        left, right = captures[0], captures[-1]
        if left.readouts != right.readouts:
            raise ValueError(
                f"readout: both sides must have one number of readouts, got {left.readouts} and {right.readouts}"
            )
        kept_readouts = 1 if left.cotangents.trace else left.readouts
        elements = (
            len(x1)
            * len(x1 if x2 is None else x2)
            * kept_readouts**2
            * (len(left.layers) + 1 if per_layer else 1)
        )
        self.plan = planner.make(
            left.layers, len(x1), None if x2 is None else len(x2), left.readouts, trace=left.cotangents.trace,
            method=method, precision=self.precision, tile=tile, max_bytes=max_bytes,
            result_bytes=elements * self.like.element_size() if result_held else 0,
            device=subject.device, dtype=subject.dtype, unused=left.unused, generic=left.generic,
        )  # fmt: skip
        self.readouts = kept_readouts
        blocks = (self.plan.blocks1, self.plan.blocks2)
        made = [
            Side(*side, capture, cut)
            for side, capture, cut in zip(sides, captures, blocks, strict=False)
        ]
        self.left, self.right = made[0], made[-1]
        self.symmetric = x2 is None
        counts = (self.left.blocks.count, self.right.blocks.count)
        self.shards = Shards(group, *counts, symmetric=self.symmetric)

    def placed(self, x: Tensor) -> Tensor:
        x = x.to(self.subject.device)
        return x.to(self.subject.dtype) if x.is_floating_point() else x

    @property
    def like(self) -> Tensor:
        return torch.empty(0, device=self.subject.device, dtype=self.subject.dtype)

    def _captured(self, side: Side, block: int) -> Block:
        """The factors of a block of a side, captured in chunks of one size."""
        start, stop = side.blocks.span(block, block + 1)
        chunk = side.blocks.chunk
        chunks = []
        with self.subject.running():
            for first in range(start, stop, chunk):
                count = min(chunk, stop - first)
                # The last chunk is filled up with its last sample: all have one shape, and its bits are kept.
                rows = torch.arange(first, first + chunk).clamp(max=first + count - 1)
                x = self.placed(side.x[rows.to(side.x.device)])
                y = None
                if side.y is not None:
                    y = side.y[rows.to(side.y.device)].to(self.subject.device)
                factors = side.capture(x, y, rows)
                layers = side.capture.layers
                chunks.append(kept(factors, self.plan, layers, count, apart=self.apart))
        return joined(chunks, chunk, side.blocks.block)

    def pieces(
        self, wanted: Callable[[int, int], bool] | None = None
    ) -> Iterator[tuple[int, int, Piece]]:
        """The kernel, piece by piece: a tile of x1 against one block of x2 after another.

        Args:
            wanted: of a pair of blocks, whether it is to be computed; default all of this rank's.

        Yields:
            (block of x1, block of x2, Piece of that pair).
        """
        left, right, step = self.left, self.right, self.plan.tile // self.plan.blocks1.block
        own = (
            self.shards.own if wanted is None else {pair for pair in self._pairs() if wanted(*pair)}
        )
        for first in range(0, left.blocks.count, step):
            inside = range(first, min(first + step, left.blocks.count))
            todo: dict[int, list[int]] = {}
            for i, j in sorted(own, key=lambda pair: pair[::-1]):
                if i in inside:
                    todo.setdefault(j, []).append(i)
            needed = {i for rows in todo.values() for i in rows}
            if self.symmetric:
                needed |= set(todo) & set(inside)
            held = {i: self._captured(left, i) for i in sorted(needed)}
            for j, rows in todo.items():
                column = held[j] if self.symmetric and j in held else self._captured(right, j)
                for i in rows:
                    yield i, j, self._piece(held[i], column, i, j)
                del column
            held.clear()

    def _pairs(self) -> Iterator[tuple[int, int]]:
        for i in range(self.left.blocks.count):
            for j in range(i if self.symmetric else 0, self.right.blocks.count):
                yield i, j

    def _piece(self, held: Block, column: Block, i: int, j: int) -> Piece:
        """One pair of blocks, layer after layer."""
        b1, b2 = self.left.blocks.block, self.right.blocks.block
        shape = (b1 * self.readouts, b2 * self.readouts)
        diagonal = self.symmetric and i == j
        (i0, i1), (j0, j1) = self.left.blocks.span(i, i + 1), self.right.blocks.span(j, j + 1)
        total = self.like.new_zeros(shape)
        parts: dict[str, Tensor] = {}
        for name, one in held.items():
            out = self.like.new_zeros(shape) if self.apart else total
            contract.add(out, one, column[name], self.precision, upper=diagonal)
            if self.apart:
                total += out
                parts[name] = self._finished(out, i1 - i0, j1 - j0, diagonal)
        return Piece(
            slice(i0, i1), slice(j0, j1), self._finished(total, i1 - i0, j1 - j0, diagonal), parts
        )

    def _finished(self, matrix: Tensor, n1: int, n2: int, diagonal: bool) -> Tensor:
        """Without the samples that only fill up the block; a diagonal block has its upper half mirrored."""
        r = self.readouts
        if diagonal:
            matrix = matrix.triu()
            matrix = matrix + matrix.triu(1).mT
        return matrix[: n1 * r, : n2 * r]
