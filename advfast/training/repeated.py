"""Each batch several times in a row, as free adversarial training wants it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from advfast.data import Batch, Plan

if TYPE_CHECKING:
    from .loop import Batches


class Repeated:
    """A loader whose steps are those of another, each `times` times; a run can be resumed between any two.

    Args:
        batches: the other one.
        times: 1 or more.
    """

    def __init__(self, batches: Batches, times: int) -> None:
        self.inner, self.times = batches, times
        self.stateful = batches.stateful

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __len__(self) -> int:
        return len(self.inner) * self.times

    def whole(self, step: int) -> int:
        return self.inner.whole(step // self.times)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        return self._repeated(self.inner.batches(epoch, start // self.times), start)

    def plans(self, epoch: int, start: int = 0) -> Iterator[Plan] | None:
        """Of `Loader`; None where the other loader has none."""
        make = getattr(self.inner, "plans", None)
        plans = None if make is None else make(epoch, start // self.times)
        return None if plans is None else self._repeated(plans, start)

    def _repeated(self, inner: Any, start: int) -> Iterator[Any]:
        skipped = start % self.times
        with closing(inner):
            for item in inner:
                for _ in range(skipped, self.times):
                    yield item
                skipped = 0
