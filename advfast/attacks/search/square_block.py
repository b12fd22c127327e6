"""Several queries of the Square attack at once, from the same image: most are refused, and then the others were right.

What comes out is what one query after another gives: of a sample's queries the first that is taken counts, and those
behind it are asked anew. It pays where few samples are left, so that a pass of one query each leaves a device idle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from advfast.attacks.rows import _Selectable, pick

from .square_draws import Drawn
from .square_moves import Moves, Window

ROWS_ON_CPU = 112
"""Rows of a pass from which more cost a CPU as much a row (measured on ResNet-18 of width 8 and 28x28 pixels)."""
_LOST = 0.25
"""Queries that may be taken in a block, of one sample: those behind the first are lost."""
_MEMORY = 0.9
"""Of the share of queries that are taken, from one block to the next."""


@dataclass
class Left(_Selectable):
    """The samples of a run that are not solved.

    Attributes:
        best: [n, C, H, W] image of the lowest loss so far.
        x0: [n, C, H, W] the clean images.
        labels: [n] int64.
        at: [n] int64, which of the run's samples they are.
        margin, loss: [n] of `best`.
    """

    best: Tensor
    x0: Tensor
    labels: Tensor
    at: Tensor
    margin: Tensor
    loss: Tensor


@dataclass
class Asked:
    """What a block came to.

    Attributes:
        solved: [n] bool, margin 0 or below.
        broken: [n] bool, of these: misclassified.
        taken: int64 [], queries that were taken.
    """

    solved: Tensor
    broken: Tensor
    taken: Tensor


Rated = tuple[Tensor, Tensor, Tensor]
"""(margins [m], losses [m], whether misclassified [m])."""
Rate = Callable[[Tensor, Tensor], Rated]
"""(candidates [m, C, H, W], labels [m]) -> what they are worth."""


def ask_one(left: Left, moves: Moves, window: Window, drawn: Drawn, rate: Rate) -> Asked:
    """Asks one query; changes `left` to what it is behind it."""
    candidates = moves.candidate(left.best, left.x0, window, drawn)
    margin, loss, wrong = rate(candidates, left.labels)
    lower, solved = loss < left.loss, margin <= 0
    improved = lower | solved
    moves.accept_(left.best, candidates, improved, window, drawn)
    left.margin = torch.where(improved, margin, left.margin)
    left.loss = torch.where(lower, loss, left.loss)
    return Asked(solved, solved & wrong, improved.sum())


def ask_block(left: Left, moves: Moves, window: Window, drawn: Drawn, rate: Rate) -> Asked:
    """Asks a block of queries; changes `left` to what it is behind them.

    Args:
        drawn: [n, q, ...].
    """
    samples, count = drawn.places.shape[:2]
    device = left.best.device
    solved = torch.zeros(samples, dtype=torch.bool, device=device)
    broken = solved.clone()
    taken = torch.zeros((), dtype=torch.int64, device=device)
    rows = torch.arange(samples, device=device)
    following = torch.zeros_like(rows)  # the next query of each sample
    numbers = torch.arange(count, device=device)
    while len(rows):
        row, query = (numbers >= following[rows, None]).nonzero(as_tuple=True)
        of = rows[row]
        candidates = moves.candidate(
            pick(left.best, of), pick(left.x0, of), window, drawn.at(of, query)
        )
        margin, loss, wrong = rate(candidates, left.labels[of])
        hit = (loss < left.loss[of]) | (margin <= 0)
        table = torch.full((len(rows), count), count, device=device)
        table[row[hit], query[hit]] = query[hit]
        earliest = table.amin(1)
        took = (earliest[row] == query).nonzero()[:, 0]
        at = of[took]
        left.best[at] = candidates[took]
        left.margin[at] = margin[took]
        left.loss[at] = torch.where(loss[took] < left.loss[at], loss[took], left.loss[at])
        solved[at], broken[at] = margin[took] <= 0, wrong[took] & (margin[took] <= 0)
        taken += len(took)
        following[rows] = earliest + 1
        rows = rows[(following[rows] < count) & ~solved[rows]]
    return Asked(solved, broken, taken)


class Blocks:
    """How many queries to ask at once.

    Args:
        rows: of a pass that keeps the device busy.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._share = 1.0  # of the queries that were taken: at first nearly all are

    def count(self, samples: int) -> int:
        """Queries that are best asked at once of so many samples."""
        return max(1, min(self._rows // max(1, samples), int(_LOST / max(self._share, 1e-9))))

    def note(self, taken: Tensor, samples: int, queries: int) -> None:
        """What a block of so many queries of so many samples came to."""
        if (
            self._rows >= 2 * samples
        ):  # else the share is of no use, and reading it waits for the device
            share = int(taken) / (samples * queries)
            self._share = _MEMORY * self._share + (1 - _MEMORY) * share
