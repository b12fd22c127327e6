"""Rows that need no further step: what they ended with, and when they leave the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import pick

LEAVE_FROM = 8
"""Finished rows leave when they are at least one in so many: a new batch size costs the libraries a set-up."""


def over(flags: Tensor, x: Tensor) -> Tensor:
    """[n] -> [n, 1, ...]."""
    return flags.reshape(-1, *[1] * (x.dim() - 1))


class Finish:
    """Follows the rows of one pass; all of it is work of the device but `leave`, which waits for it."""

    def __init__(self, x: Tensor, runs: int) -> None:
        self._runs = runs
        self._stopped = torch.zeros(len(x), dtype=torch.bool, device=x.device)  # of the whole pass
        # Of the rows that are still here, [n, 1, ...]: those that still move, and those that ended without a success.
        self._alive = over(~self._stopped, x)
        self._ended = over(self._stopped.clone(), x)
        self._kept = x.clone()  # the last iterates of those that do not
        self._place: Tensor | None = (
            None  # where they are in the whole pass; None: all are still here
        )
        self._result: Tensor | None = None  # [N, ...] with the rows that left

    def stop(self, success: Tensor, x: Tensor) -> Tensor:
        """Rows, bool [n], that keep this iterate as it succeeds; returns bool [n, 1, ...], those that still move."""
        newly = over(success, x) & self._alive
        torch.where(newly, x, self._kept, out=self._kept)
        return self._alive.logical_xor_(newly)

    def end(self, rows: Tensor, x: Tensor) -> None:
        """Rows, bool [n], of which x holds the last iterate."""
        newly = over(rows, x) & self._alive
        torch.where(newly, x, self._kept, out=self._kept)
        self._alive.logical_xor_(newly)
        self._ended.logical_or_(newly)

    def stopped(self) -> Tensor:
        """[N] bool, the rows that were found to succeed."""
        here = (~self._alive & ~self._ended).flatten()
        if self._place is None:
            self._stopped = here
        else:
            self._stopped[self._place] = here
        return self._stopped

    def leave(self, may_leave: bool) -> tuple[Tensor | None, bool]:
        """Reads the device once.

        Returns:
            ([n'] int64, the rows that stay; None: all do), and whether any of them still needs a step.
        """
        if self._runs > 1:
            # The first run of a sample that succeeded is the one that is kept: those after it need no step.
            table = self.stopped().view(self._runs, -1).long()
            after = ((table.cumsum(0) - table) > 0).flatten()
            after = after if self._place is None else after[self._place]
            self.end(after, self._kept)
        alive = self._alive.flatten().cpu()
        finished = int((~alive).sum())
        if finished == len(alive):
            return None, False
        if not may_leave or finished * LEAVE_FROM < len(alive):
            return None, True
        device = self._alive.device
        gone, left = (~alive).nonzero()[:, 0].to(device), alive.nonzero()[:, 0].to(device)
        self.stopped()
        if self._result is None or self._place is None:
            self._result = torch.empty_like(self._kept)
            self._place = torch.arange(len(alive), device=device)
        self._result.index_copy_(0, self._place[gone], pick(self._kept, gone))
        self._place, self._kept = self._place[left], pick(self._kept, left)
        self._alive, self._ended = self._alive[left], self._ended[left]
        return left, True

    def collect(self, x: Tensor) -> Tensor:
        """[N, ...] what all rows ended with; x: the last iterates of those that are still here."""
        last = torch.where(self._alive, x, self._kept)
        if self._result is None or self._place is None:
            return last
        return self._result.index_copy_(0, self._place, last)
