"""Finding the first loss that is not finite, without making a GPU wait."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

EVERY = 50
"""Steps between two looks at a GPU."""


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite; what had been saved before is still there."""


class Watch:
    """Sees every loss before its gradient is taken.

    On a CPU the first bad one raises at once, before the step that it would spoil. On a GPU its step is noted there, as
    part of a recorded step too, and found by one of the next looks or by `finish`; what was trained since is of no use
    and must not be saved.

    Args:
        device: of the losses.
        late: as on a GPU; None where it is one.
        where: step of the run, from 1 -> what the message says of it.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        where: Callable[[int], str],
        late: bool | None = None,
    ) -> None:
        self._late = device.type == "cuda" if late is None else late
        self._where = where
        self._done = 0
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._first = torch.zeros(2, dtype=torch.float64, device=device)  # step, its loss
        self._sent: tuple[Tensor, torch.cuda.Event | None] | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """What `start` and `see` change."""
        return [self._step, self._first]

    def begin(self, done: int) -> None:
        """The next step is the one after `done` steps of the run."""
        self._done = done
        self._step.fill_(done)
        self._first.zero_()
        self._sent = None

    def start(self) -> None:
        """A step begins."""
        if self._late:
            self._step.add_(1)

    def see(self, loss: Tensor) -> None:
        """
        Args:
            loss: of this step, or of a part of it, 0-d.

        Raises:
            NonFiniteLoss: on a CPU.
        """
        if not self._late:
            self._check(self._done + 1, loss.item())
            return
        loss = loss.double()
        bad = ~loss.isfinite() & (self._first[0] == 0)
        found = torch.stack((self._step.double(), loss))
        self._first.copy_(torch.where(bad, found, self._first))

    def look(self, done: int) -> None:
        """After each step, of which there were `done` in the run.

        Raises:
            NonFiniteLoss: a loss up to here was found to be.
        """
        self._done = done
        if not self._late:
            return
        if self._sent is not None:
            host, event = self._sent
            if event is None or event.query():
                self._sent = None
                self._read(host)
        if done % EVERY == 0 and self._sent is None:
            self._sent = self._send()

    def finish(self) -> None:
        """Waits for the device.

        Raises:
            NonFiniteLoss: a loss up to here was.
        """
        if self._late:
            self._sent = None
            self._read(self._first)

    def _send(self) -> tuple[Tensor, torch.cuda.Event | None]:
        if self._first.device.type != "cuda":
            return self._first.clone(), None
        host = torch.empty(2, dtype=torch.float64, pin_memory=True)
        host.copy_(self._first, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return host, event

    def _read(self, first: Tensor) -> None:
        step, loss = first.tolist()
        if step:
            self._check(int(step), loss)

    def _check(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise NonFiniteLoss(
                f"the loss became {loss} at {self._where(step)}; training stopped. "
                "A lower learning rate usually helps"
            )
