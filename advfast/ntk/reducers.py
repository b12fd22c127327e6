"""Sums over a kernel that comes in tiles, from which its metrics follow without the kernel ever being stored.

A tile has `i` and `j`, slices of the samples, and `block` [ni, R, nj, R]; of a kernel of one set of samples with itself
those with i <= j come, and stand for their mirror images too. Each reducer sees the tiles one by one (`add`), in any
order and of any size, and adds up in float64. What it sums over is a view of the tile, see `VIEWS`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from .metrics import Specialization, block_means, specialization_of


class Tile(Protocol):
    @property
    def i(self) -> slice: ...
    @property
    def j(self) -> slice: ...
    @property
    def block(self) -> Tensor:
        """[ni, R, nj, R]."""
        ...


VIEWS = ("trace", "full", "heads")
"""A kernel as h matrices [h, M, M]. "trace": K = (1/R) sum_r Theta[r, r], h = 1, M = N. "full": all of it, h = 1,
M = N R. "heads": Theta[r, r] of each readout, h = R, M = N."""

Piece = tuple[slice, slice, Tensor]


def pieces(tile: Tile, view: str) -> Iterator[Piece]:
    """(rows, columns, float64 [h, rows, columns]) of a tile, and those of its mirror image."""
    ni, r, nj, _ = tile.block.shape
    side = r if view == "full" else 1
    if view == "full":
        m = tile.block.reshape(1, ni * r, nj * r).double()
    else:
        m = tile.block.diagonal(dim1=1, dim2=3).permute(2, 0, 1).double()
        if view == "trace":
            m = m.mean(0, keepdim=True)
    rows, columns = (slice(s.start * side, s.stop * side) for s in (tile.i, tile.j))
    if rows == columns:
        yield rows, columns, (m + m.mT) / 2
    else:
        yield rows, columns, m
        yield columns, rows, m.mT


class Moments:
    """Trace, squared Frobenius norm and product with some vectors, of each matrix of a view.

    Args:
        view: of `VIEWS`.
        probe: V float64 [M, v]: `product` is the matrices times V.

    Attributes:
        trace, square: float64 [h].
        product: float64 [h, M, v].
    """

    def __init__(self, view: str, probe: Tensor) -> None:
        self.view, self.probe = view, probe
        self.trace = self.square = self.product = torch.zeros(())

    def add(self, tile: Tile) -> None:
        for rows, columns, m in pieces(tile, self.view):
            if not self.product.dim():
                self.probe = self.probe.to(m.device)
                self.trace = m.new_zeros(len(m))
                self.square = m.new_zeros(len(m))
                self.product = m.new_zeros(len(m), *self.probe.shape)
            if rows == columns:
                self.trace += m.diagonal(dim1=1, dim2=2).sum(-1)
            self.square += m.square().sum((1, 2))
            self.product[:, rows] += m @ self.probe[columns]

    def quadratic(self, left: slice, right: slice) -> Tensor:
        """[h, a, b]: v^T K w for the probe's columns v of `left` and w of `right`."""
        return self.probe[:, left].T @ self.product[:, :, right]


def group_means(n: int, r: int) -> Tensor:
    """float64 [N r, r]: the vectors that a kernel [N r, N r] is centred with, its readouts' sums over the samples."""
    return torch.eye(r, dtype=torch.float64).repeat(n, 1)


def centred_square(moments: Moments, r: int, n: int) -> Tensor:
    """[h]: |H K H|_F^2, where the first r columns of the probe are `group_means(n, r)`."""
    sums = moments.product[:, :, :r]
    total = moments.quadratic(slice(r), slice(r))
    square = moments.square - 2 / n * sums.square().sum((1, 2)) + total.square().sum((1, 2)) / n**2
    return square.clamp(min=0)


class Labelled:
    """What the labels are compared with: alignment of both forms, specialisation, class block means, by one view each.

    Args:
        view: "trace" for `alignment` and `block_means`, "full" for `jacobian_alignment`, "heads" for `specialization`.
        targets: t, centred float64 [N, C], see `labels.targets`.
        members: one-hot float64 [N, C] for `block_means`.
    """

    def __init__(self, view: str, targets: Tensor, members: Tensor | None = None) -> None:
        self.n, classes = targets.shape
        self.groups = classes if view == "full" else 1
        self.targets, self.members = targets, members
        wanted = targets.flatten()[:, None] if view == "full" else targets
        columns = [group_means(self.n, self.groups).to(targets.device), wanted]
        if members is not None:
            columns.append(members)
        self._t = slice(self.groups, self.groups + wanted.shape[1])
        self._members = slice(
            self._t.stop, self._t.stop + (0 if members is None else members.shape[1])
        )
        self.moments = Moments(view, torch.cat(columns, 1))
        self.add = self.moments.add

    def alignment(self) -> float:
        numerator = self.moments.quadratic(self._t, self._t)[0].trace()
        return float(numerator / (self._norm() * (self.targets.T @ self.targets).norm()))

    def jacobian_alignment(self) -> float:
        numerator = self.moments.quadratic(self._t, self._t)[0, 0, 0]
        return float(numerator / (self._norm() * self.targets.square().sum()))

    def specialization(self) -> Specialization:
        quadratic = self.moments.quadratic(self._t, self._t).diagonal(dim1=1, dim2=2)
        norms = centred_square(self.moments, 1, self.n).sqrt()
        return specialization_of(quadratic, norms, self.targets.to(norms.device))

    def block_means(self) -> Tensor:
        assert self.members is not None
        sums = self.moments.quadratic(self._members, self._members)[0]
        return block_means(sums, self.members.to(sums.device))

    def _norm(self) -> float:
        square = float(centred_square(self.moments, self.groups, self.n)[0])
        # What is left of a kernel of equal rows is rounding.
        if square <= 1e-24 * float(self.moments.square[0]):
            raise ValueError("the centred kernel is zero: it does not tell the samples apart")
        return math.sqrt(square)


class Inner:
    """Two kernels of the same samples, their tiles in step.

    Attributes:
        sums: float64 [4]: <K, K'>_F, |K|_F^2, |K'|_F^2, |K - K'|_F^2.
    """

    def __init__(self, view: str) -> None:
        self.view = view
        self.sums = torch.zeros(4, dtype=torch.float64)

    def add(self, tile: Tile, other: Tile) -> None:
        if (tile.i, tile.j) != (other.i, other.j) or tile.block.shape != other.block.shape:
            raise ValueError(
                "two kernels are compared tile by tile: they must have the same samples, readouts and tiles, got "
                f"{tile.i}, {tile.j} {tuple(tile.block.shape)} and {other.i}, {other.j} {tuple(other.block.shape)}"
            )
        for (_, _, m), (_, _, m2) in zip(
            pieces(tile, self.view), pieces(other, self.view), strict=True
        ):
            found = [(m * m2).sum(), m.square().sum(), m2.square().sum(), (m - m2).square().sum()]
            self.sums = self.sums.to(m.device) + torch.stack(found)


class Histogram:
    """How often entries of the one matrix of a view are in [edges[b], edges[b + 1]).

    Args:
        edges: [B + 1], ascending.

    Attributes:
        counts: int64 [B + 2]: the first and the last are below and above all edges.
    """

    def __init__(self, view: str, edges: Tensor) -> None:
        edges = edges.detach().double()
        if edges.dim() != 1 or len(edges) < 2 or not bool((edges.diff() > 0).all()):
            raise ValueError(f"edges must be [B + 1] ascending numbers, got {edges.tolist()}")
        self.view, self.edges = view, edges
        self.counts = torch.zeros(len(edges) + 1, dtype=torch.int64)

    def add(self, tile: Tile) -> None:
        for _, _, m in pieces(tile, self.view):
            found = torch.bucketize(m.flatten(), self.edges.to(m.device), right=True)
            self.counts += found.bincount(minlength=len(self.counts)).cpu()
