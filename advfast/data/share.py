"""What each of several processes takes of a batch."""

from __future__ import annotations

from typing import NamedTuple


class Share(NamedTuple):
    """Process `rank` of `world` that share every batch; of one process, the whole."""

    rank: int = 0
    world: int = 1

    def part(self, total: int) -> slice:
        """Where this process's samples are in a batch of `total`: one piece, as long as the others or one longer.

        No process gets a single sample, of which batch normalisation has no variance, where the batch has two: a short
        batch goes to the first processes alone. Empty for the others.
        """
        taking = max(min(self.world, total // 2), 1)
        if self.rank >= taking:
            return slice(total, total)
        size, longer = divmod(total, taking)
        first = self.rank * size + min(self.rank, longer)
        return slice(first, first + size + (self.rank < longer))

    def weight(self, total: int) -> float:
        """Share of the samples of a batch that are this process's."""
        part = self.part(total)
        return (part.stop - part.start) / total

    def read(self, total: int) -> slice:
        """`part`; where that is empty two samples of another's, for a step whose result counts with weight 0.

        So every process goes through the same work, and meets the others wherever they wait for each other.
        """
        part = self.part(total)
        return part if part.stop > part.start else slice(0, min(2, total))


WHOLE = Share()
