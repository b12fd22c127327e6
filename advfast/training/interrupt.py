"""SIGTERM and Ctrl-C: end a run at a place where its state can be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """The run was asked to end by the signal `signum`."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    def __reduce__(self) -> tuple[type[Stopped], tuple[int]]:
        return type(self), (self.signum,)


class Interrupt:
    """While entered, SIGTERM and SIGINT are noted, and raise Stopped where the run can be saved.

    That is in `check` and anywhere inside `at_once`; in the middle of an optimiser step the weights are neither those
    before nor those after it. A second Ctrl-C raises KeyboardInterrupt at once. Outside of the main thread, where
    Python permits no handlers, nothing is changed.
    """

    def __init__(self) -> None:
        self._asked: int | None = None
        self._at_once = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._before.items():
            # None: it was installed by something other than Python and cannot be put back from here.
            if handler is not None:
                signal.signal(signum, handler)  # type: ignore[arg-type]
        self._before.clear()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        first = self._asked is None
        if first:
            self._asked = signum
            if self._at_once:
                raise Stopped(signum)
        elif signum == signal.SIGINT:
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Around work that changes nothing that is saved."""
        self.check()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    @property
    def asked(self) -> int:
        """The signal that has come in this process; 0 for none."""
        return self._asked or 0

    def check(self, asked: int | None = None) -> None:
        """
        Args:
            asked: the signal that the ranks of a run have agreed on; None where there is one process.

        Raises:
            Stopped: a signal has come.
        """
        asked = self.asked if asked is None else asked
        if asked:
            raise Stopped(asked)
