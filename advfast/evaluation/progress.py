"""How far an evaluation has come: a bar on a terminal, elsewhere a line a minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from .attacks import Entry
from .tally import Tally
from .words import duration

_LINE_SECONDS = 60.0
_FORMAT = (
    "{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"
)


class Progress:
    """The attack at work, images a second, the accuracy under it so far, and the time left.

    Args:
        samples: how many there are; None where nobody knows.
        made: the attacks.
        tally: what was counted; read when there is something to show.
        shown: False shows nothing.
    """

    def __init__(
        self, samples: int | None, made: Sequence[Entry], tally: Tally, shown: bool
    ) -> None:
        self._samples, self._made, self._tally = samples, list(made), tally
        terminal = sys.stderr.isatty()
        self._lines = shown and not terminal
        self._bar = tqdm(
            total=None if samples is None else samples * len(made),
            unit=" images",
            unit_scale=True,
            leave=False,
            disable=not (shown and terminal),
            bar_format=None if samples is None else _FORMAT,
        )
        self._said = self._began = time.monotonic()
        self._through = {entry.name: float(tally.samples) for entry in made}
        """Attack -> images, with the share of those in work."""
        self._spent = {entry.name: tally.seconds(entry.name) for entry in made}
        """Attack -> seconds on these."""
        self._batch = 0
        self._share = 0.0
        self._bar.update(tally.samples * len(made))

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begin(self, images: int) -> None:
        """An attack begins on a batch of so many images."""
        self._batch, self._share = images, 0.0
        self._began = time.monotonic()

    def within(self, entry: Entry, share: float, right: int) -> None:
        """It has done a share (0 to 1) of its work, and so many of the batch are still right."""
        share = min(max(share, self._share), 1.0)
        images = (share - self._share) * self._batch
        now = time.monotonic()
        self._spent[entry.name] += now - self._began
        self._through[entry.name] += images
        self._began, self._share = now, share
        if not self._bar.disable:
            self._bar.set_description_str(entry.name, refresh=False)
            self._bar.set_postfix_str(self._words(entry, right), refresh=False)
            self._bar.update(images)
        if self._lines and now - self._said >= _LINE_SECONDS:
            self._said = now
            through = self._through[entry.name]
            of = self._samples
            done = f"{through:.0f} images" if of is None else f"{100 * through / of:.0f} %"
            print(
                f"{entry.name}: {done} done, {self._words(entry, right)}",
                file=sys.stderr, flush=True,
            )  # fmt: skip

    def done(self, entry: Entry, right: int) -> None:
        """It is through, and so many of the batch are right."""
        self.within(entry, 1.0, right)

    def _words(self, entry: Entry, right: int) -> str:
        share = (self._tally.correct(entry.name) + right) / (self._tally.samples + self._batch)
        left = self.left()
        return f"{100 * share:.1f} % right" + (f", {left} left" if left else "")

    def left(self) -> str:
        """The time left at the pace so far; "at least" where an attack has not run yet; "" if nobody knows."""
        if self._samples is None:
            return ""
        names = [entry.name for entry in self._tally.running()]
        known = [name for name in names if self._through[name] > 0]
        seconds = sum(
            self._spent[name] / self._through[name] * (self._samples - self._through[name])
            for name in known
        )
        at_least = "" if len(known) == len(names) else "at least "
        return f"{at_least}{duration(max(seconds, 0.0))}" if known else ""
