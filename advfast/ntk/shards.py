"""Pairs of blocks shared out over the ranks of torch.distributed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, distributed


class Shards:
    """One rank's part. Without a group it is everything.

    Args:
        group: None, "world" or a process group.
        rows, columns: blocks of the two sides.
        symmetric: only pairs i <= j are computed.
    """

    def __init__(self, group: Any, rows: int, columns: int, *, symmetric: bool):
        self._group, self.rank, self.size = None, 0, 1
        if group is not None:
            if not distributed.is_available() or not distributed.is_initialized():
                raise RuntimeError(
                    f"group={group!r} needs torch.distributed.init_process_group() first (or torchrun)"
                )
            self._group = None if group == "world" else group
            self.rank, self.size = (
                distributed.get_rank(self._group),
                distributed.get_world_size(self._group),
            )
        self.shared = group is not None
        # Neighbouring rows stay together, as a row's blocks are captured once.
        pairs = [(i, j) for i in range(rows) for j in range(i if symmetric else 0, columns)]
        begin, end = (len(pairs) * k // self.size for k in (self.rank, self.rank + 1))
        self.own = set(pairs[begin:end])

    def barrier(self) -> None:
        if self.shared:
            distributed.barrier(self._group)

    def sum(self, t: Tensor) -> None:
        """Adds up what the ranks have; each entry is zero on all but one."""
        if self.shared:
            distributed.all_reduce(t, group=self._group)
