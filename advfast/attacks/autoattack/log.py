"""What an evaluation says while it runs: lines on standard output and in a file, a bar on a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm


class Log:
    """Lines for people.

    Args:
        verbose: print them.
        path: a file that they are appended to, whether or not they are printed; None for none.
    """

    def __init__(self, verbose: bool, path: str | Path | None) -> None:
        self._verbose = verbose
        self._path = None if path is None else Path(path)

    def __call__(self, text: str) -> None:
        if self._verbose:
            tqdm.write(text)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(f"{text}\n")


class Clock:
    """The work that is done and the work that is left, and so the time that is left.

    Args:
        costs: passes of a sample in each part, in their order.
    """

    def __init__(self, costs: Sequence[int]) -> None:
        self._costs = costs
        self._done = 0.0
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def worked(self, part: int, samples: int) -> None:
        """So many more samples went through a part."""
        self._done += self._costs[part] * samples

    def state(
        self, part: int, within: float, waiting: float, robust: int
    ) -> tuple[float, float | None]:
        """(share of the work that is done, seconds left), estimates as if nothing more broke.

        Args:
            part: the one that runs.
            within: samples done of the batch that runs, which `worked` has not been told of.
            waiting: samples of this part that are not done.
            robust: samples that the later parts will get.

        Returns:
            The share is of the work since this process began; no seconds before there is a rate.
        """
        done = self._done + self._costs[part] * within
        left = self._costs[part] * waiting + sum(self._costs[part + 1 :]) * robust
        if done <= 0:
            return 0.0, None
        return done / (done + left), self.seconds * left / done


class Bar:
    """How much of the running part is done, with the robust accuracy so far and the time left; on a terminal alone."""

    def __init__(self, shown: bool) -> None:
        self._bar = tqdm(
            total=1.0,
            leave=False,
            disable=None if shown else True,  # None: only where standard error is a terminal
            bar_format="{desc} {percentage:3.0f}%|{bar:10}| {elapsed}{postfix}",
        )

    def close(self) -> None:
        self._bar.close()

    def show(self, part: str, share: float, accuracy: float, left: float | None) -> None:
        if self._bar.disable:
            return
        rest = "" if left is None else f", about {spoken(left)} left"
        self._bar.set_description_str(part, refresh=False)
        self._bar.set_postfix_str(f"robust {accuracy:.2%}{rest}", refresh=False)
        self._bar.n = min(1.0, share)
        self._bar.update(0)


def spoken(seconds: float) -> str:
    """A time for people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
