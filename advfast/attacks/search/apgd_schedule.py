"""When APGD looks at its progress, and for which rows it halves the step (Croce and Hein, ICML 2020, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from advfast.attacks.rows import _Selectable


def checkpoints(steps: int) -> dict[int, int]:
    """Numbers of steps after which there is a check, each with the number of steps since the last one.

    Of 100 steps: after 22, 41, 57, 70, 80, 87, 93 and 99.
    """
    window, least, less = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    found: dict[int, int] = {}
    done = window
    while done <= steps:
        found[done] = window
        window = max(window - less, least)
        done += window
    return found


def even_checkpoints(steps: int) -> Mapping[int, int]:
    """Those of the l1 form: every 4 % of the steps."""
    window = max(int(0.04 * steps), 1)
    return dict.fromkeys(range(window, steps + 1, window), window)


@dataclass
class Progress(_Selectable):
    """The losses of the rows so far, as far as checks need them.

    Attributes:
        best: [B] the largest.
        last: [B] that of the last step; 0 before the first: the published implementation compares the loss after the
            first step with an empty place of its table, and not with that of the start.
        rises: [B] float32, how often a step since the last check raised the loss.
        best_at_check: [B] the largest at the last check; at first that of the start.
        halved: [B] bool, whether that check halved the step; true at first, so that the first check needs no progress.
    """

    best: Tensor
    last: Tensor
    rises: Tensor
    best_at_check: Tensor
    halved: Tensor

    @classmethod
    def start(cls, loss: Tensor) -> Progress:
        """loss: [B] of the starting points."""
        halved = torch.ones_like(loss, dtype=torch.bool)
        rises = torch.zeros_like(loss, dtype=torch.float32)
        return cls(loss.clone(), torch.zeros_like(loss), rises, loss.clone(), halved)

    def note(self, loss: Tensor) -> Tensor:
        """[B] bool: where the loss after a step, [B], is the largest so far."""
        improved = loss > self.best
        self.best = torch.where(improved, loss, self.best)
        self.rises += loss > self.last
        self.last = loss
        return improved

    def check(self, window: int, rho: float) -> Tensor:
        """[B] bool: rows that halve their step and go back to their best point.

        Those whose loss rose in at most rho of the `window` steps since the last check, and those that had no
        better loss since then although the step was not halved there.
        """
        few = self.rises <= window * rho
        stuck = ~self.halved & (self.best_at_check >= self.best)
        self.halved = few | stuck
        self.best_at_check = self.best
        self.rises = torch.zeros_like(self.rises)
        return self.halved
