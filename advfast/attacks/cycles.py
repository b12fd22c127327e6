"""Cycle detection: stops computing a sample whose iterates repeat (after arXiv 2503.19347, CVPR 2025).

A deterministic step x_{k+1} = f(x_k) that comes back to an iterate repeats from there for ever: of period p, it ends
after K steps where it stands at any step s of the cycle with (K - s) divisible by p. So the result is that of the full
run, bit for bit, and the steps in between need no computing.

What it costs: each step one hash of each sample, one reading of x. All else happens where the loop waits for the
device anyway, as a sample that entered a cycle stays in it and can be found later as well: hashes of the last steps are
compared there, and the rows that look periodic are copied. They count only when, p steps on, they have come back to
that copy in every bit; a collision of hashes costs a copy and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from advfast.kernels import row_hash

WINDOW = 64
"""Longest period that is looked for; of a longer one every step is computed."""

_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class CycleStats(NamedTuple):
    """What was saved so far.

    Attributes:
        rows: samples at the start.
        found: samples that were found to repeat themselves.
        skipped: steps x samples that were known not to be needed.
        share: skipped, as a share of rows x steps.
        periods: period -> samples found with it.
    """

    rows: int
    found: int
    skipped: int
    share: float
    periods: dict[int, int]


@dataclass
class _Suspects:
    """Rows of one period by their hashes, from the step at which that was seen."""

    rows: Tensor  # [R] int64, positions in the batch
    period: int
    seen: int
    copy: Tensor  # [R, ...] iterate at step `seen`
    final: Tensor | None = None  # [R, ...] iterate at the step of the phase of the last one
    back: Tensor | None = None  # [R] bool, whether step seen + period gave `copy` again


class Cycles:
    """Finds the rows of a batch that repeat themselves. For each step ``look``, now and then ``finished``, ``keep``.

    Args:
        steps: K, number of steps of the full run.
        x: [B, ...] the iterate; B is what counts.
        window: longest period that is looked for.
        hash_rows: [B, ...] -> int64 [B]; equal rows have equal hashes.
    """

    def __init__(
        self,
        steps: int,
        x: Tensor,
        *,
        window: int = WINDOW,
        hash_rows: Callable[[Tensor], Tensor] = row_hash,
    ) -> None:
        self._steps = steps
        self._hash = hash_rows
        self._length = min(window, steps) + 1  # with the current step
        self._hashes = torch.zeros(self._length, x.shape[0], dtype=torch.int64, device=x.device)
        self._first = -1  # step of the first look
        self._step = -1
        self._suspects: list[_Suspects] = []
        self._done = torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)
        self._rows = x.shape[0]
        self._skipped = 0
        self._periods: dict[int, int] = {}

    def look(self, step: int, x: Tensor) -> None:
        """Takes note of the iterate after `step` steps; every step in turn, from 0 or later. Never synchronises."""
        if self._first < 0:
            self._first = step
        elif step != self._step + 1:
            raise ValueError(f"look must see every step: expected {self._step + 1}, got {step}")
        self._step = step
        self._hashes[step % self._length] = self._hash(x)
        for suspects in self._suspects:
            if suspects.final is None and (self._steps - step) % suspects.period == 0:
                suspects.final = x[suspects.rows]
            if step == suspects.seen + suspects.period:
                suspects.back = _same_bits(x[suspects.rows], suspects.copy)

    def finished(self, x: Tensor) -> Tensor:
        """[B] bool: rows that are found to repeat themselves. The final iterate of a new one is written to x here.

        They may leave by `keep`, or stay and be anything from now on. Call it after `look` of the same step; it waits
        for the device.
        """
        # A row's period; 0: not known to repeat; -1: confirmed now; -2: to be confirmed; -3: confirmed before.
        found = self._smallest_periods()
        arrived = [suspects for suspects in self._suspects if suspects.back is not None]
        self._suspects = [suspects for suspects in self._suspects if suspects.back is None]
        for suspects in self._suspects:
            found[suspects.rows] = -2
        for suspects in arrived:
            assert suspects.back is not None and suspects.final is not None
            chosen = suspects.back.reshape(-1, *[1] * (x.dim() - 1))
            x[suspects.rows] = torch.where(chosen, suspects.final, x[suspects.rows])
            found[suspects.rows] = torch.where(suspects.back, -1, found[suspects.rows])
        found = torch.where(self._done, -3, found)
        self._done = self._done | (found == -1)
        on_host = found.cpu()
        for suspects in arrived:
            count = int((on_host[suspects.rows.cpu()] == -1).sum())
            if count:
                self._periods[suspects.period] = self._periods.get(suspects.period, 0) + count
                self._skipped += count * (self._steps - self._step)
        self._suspect(on_host, x)
        return self._done

    def keep(self, index: Tensor) -> None:
        """The batch now consists of these rows of it, [B'] int64."""
        place = torch.full_like(self._hashes[0], -1)
        place[index] = torch.arange(index.shape[0], device=index.device)
        self._hashes, self._done = self._hashes[:, index], self._done[index]
        kept = []
        for suspects in self._suspects:
            rows = place[suspects.rows]
            here = (rows >= 0).nonzero()[:, 0]
            if not len(here):
                continue
            if len(here) < len(rows):
                rows, suspects.copy = rows[here], suspects.copy[here]
                suspects.final = None if suspects.final is None else suspects.final[here]
                suspects.back = None if suspects.back is None else suspects.back[here]
            suspects.rows = rows
            kept.append(suspects)
        self._suspects = kept

    def stats(self) -> CycleStats:
        """What was saved so far, by the calls of `finished`."""
        found = sum(self._periods.values())
        share = self._skipped / max(1, self._rows * self._steps)
        return CycleStats(
            self._rows, found, self._skipped, share, dict(sorted(self._periods.items()))
        )

    def _smallest_periods(self) -> Tensor:
        """[B] int64: how many steps ago the row last had its present hash; 0 if not in the window."""
        history = min(self._step - self._first, self._length - 1)
        ages = torch.arange(1, history + 1, device=self._hashes.device)
        if not history:
            return torch.zeros_like(self._hashes[0])
        earlier = self._hashes[(self._step - ages) % self._length]
        same = earlier == self._hashes[self._step % self._length]
        never = self._length
        age = torch.where(same, ages[:, None], never).amin(0)
        return torch.where(age == never, 0, age)

    def _suspect(self, found: Tensor, x: Tensor) -> None:
        """Copies the rows that look periodic, one group a period; not where confirming would come too late."""
        left = self._steps - self._step
        for period in found[(found > 0) & (found < left)].unique().tolist():
            rows = (found == period).nonzero()[:, 0].to(x.device)
            copy = x[rows]
            final = copy if left % period == 0 else None
            self._suspects.append(_Suspects(rows, period, self._step, copy, final))


def _same_bits(a: Tensor, b: Tensor) -> Tensor:
    """[R] bool; 0.0 and -0.0 differ."""
    words = _WORDS[a.element_size()]
    return (a.view(words) == b.view(words)).flatten(1).all(1)
