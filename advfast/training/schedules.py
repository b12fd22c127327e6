"""Learning rates by step."""

from __future__ import annotations

import math


def one_cycle(step: int, total: int, peak: float) -> float:
    """Up from peak/25 over the first 30 % of the steps, then down to peak/250000, both as half cosines.

    The curve of torch's OneCycleLR with its defaults (Smith & Topin 2019).

    Args:
        step: 0 .. total-1.
        total: steps of the whole run.
        peak: highest learning rate.
    """
    start, end = peak / 25, peak / 250000
    top = max(0.3 * total - 1, 0)
    if step < top:
        share, begin, finish = step / top, start, peak
    else:
        share, begin, finish = (step - top) / max(total - 1 - top, 1), peak, end
    return finish + (begin - finish) / 2 * (1 + math.cos(math.pi * share))
