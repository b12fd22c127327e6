"""Learning rates by step: each schedule is a function of the share of the run that is done."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from advfast.kernels.pgd.api import nearest

Schedule = Callable[[int], float]
"""Step of the whole run, from 0 -> learning rate."""


def constant(step: int, total: int, peak: float) -> float:
    return peak


def one_cycle(
    step: int,
    total: int,
    peak: float,
    *,
    peak_at: float = 0.3,
    start_factor: float = 25.0,
    end_factor: float = 1e4,
) -> float:
    """Up to `peak` over the first `peak_at` of the steps, then down to almost nothing, both as half cosines.

    The curve of torch's OneCycleLR (Smith & Topin 2019), with its defaults: from peak/25 to peak/250000.
    """
    start = peak / start_factor
    end = start / end_factor
    top = max(peak_at * total - 1, 0)
    if step < top:
        share, begin, finish = step / top, start, peak
    else:
        share, begin, finish = (step - top) / max(total - 1 - top, 1), peak, end
    return finish + (begin - finish) / 2 * (1 + math.cos(math.pi * share))


def cosine(step: int, total: int, peak: float, *, final: float = 0.0, warmup: float = 0.0) -> float:
    """Down from `peak` to final * peak as half a cosine (Loshchilov & Hutter, ICLR 2017, without restarts).

    Args:
        warmup: share of the steps over which the rate first rises in a straight line.
    """
    rising = warmup * total
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    share = (step - rising) / max(total - rising, 1)
    return peak * (final + (1 - final) / 2 * (1 + math.cos(math.pi * share)))


def triangular(step: int, total: int, peak: float, *, peak_at: float = 0.5) -> float:
    """From 0 up to `peak` at the share `peak_at` of the steps and down to 0, in straight lines.

    Fast adversarial training (Wong et al., ICLR 2020) has its peak at 0.5. The rate is that of the end of the step, so
    that no step is lost to a rate of 0 at the beginning.
    """
    done = (step + 1) / (total + 1)
    return peak * min(done / peak_at, (1 - done) / (1 - peak_at))


def piecewise(
    step: int,
    total: int,
    peak: float,
    *,
    milestones: Sequence[float] = (0.5, 0.75),
    gamma: float = 0.1,
) -> float:
    """`peak`, multiplied by `gamma` at each milestone.

    The default is that of Rice et al. (ICML 2020): a tenth at half and again at three quarters of the run.

    Args:
        milestones: shares of the run; `make` also takes epochs.
    """
    # The small number: 0.3 * 10 is not 3 in floating point, and a decay must not come a step late for it.
    passed = sum(step >= share * total - 1e-6 for share in milestones)
    return peak * gamma**passed


SCHEDULES: dict[str, Callable[..., float]] = {
    "one-cycle": one_cycle,
    "piecewise": piecewise,
    "cosine": cosine,
    "triangular": triangular,
    "constant": constant,
}


def make(
    name: str, peak: float, *, epochs: int, steps: int, options: Mapping[str, Any] | None = None
) -> Schedule:
    """The schedule `name` for a run.

    Args:
        peak: highest learning rate.
        epochs: of the run.
        steps: an epoch.
        options: keyword arguments of the schedule. `milestones` above 1 are epochs (100 of 200: a decay after epoch
            100), as is a `warmup` of 1 or more.

    Raises:
        ValueError: unknown name or option, or a value out of range.
    """
    if name not in SCHEDULES:
        raise ValueError(
            f"schedule must be one of {', '.join(SCHEDULES)}, got {name!r}"
            f"{nearest(str(name), list(SCHEDULES))}"
        )
    curve = SCHEDULES[name]
    given = dict(options or {})
    known = [
        key
        for key, parameter in inspect.signature(curve).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    for key in given:
        if key not in known:
            raise ValueError(
                f"schedule {name!r} has no option {key!r}; it has {', '.join(known) or 'none'}"
                f"{nearest(key, known)}"
            )
    total = epochs * steps
    for key in ("milestones", "warmup"):
        if key in given:
            given[key] = _shares(name, key, given[key], epochs)
    for key, value in given.items():
        _check(name, key, value)
    return lambda step: curve(step, total, peak, **given)


def first_milestone(
    schedule: object, epochs: int, options: Mapping[str, Any] | None
) -> float | None:
    """The first of `milestones`; None where there is none."""
    return next(iter(milestones(schedule, epochs, options)), None)


def milestones(schedule: object, epochs: int, options: Mapping[str, Any] | None) -> list[float]:
    """Epochs before each decay of a schedule with milestones; [] for one without, or a function.

    Args:
        schedule: name of one, or a function.
        epochs: of the run.
        options: of the schedule, as for `make`.
    """
    curve = SCHEDULES.get(schedule) if isinstance(schedule, str) else None
    default = curve and inspect.signature(curve).parameters.get("milestones")
    if default is None:
        return []
    given = (options or {}).get("milestones", default.default)
    return [share * epochs for share in _shares(str(schedule), "milestones", given, epochs)]


def _shares(name: str, key: str, value: Any, epochs: int) -> Any:
    """Shares of the run, of numbers that may be epochs."""
    many = isinstance(value, Sequence) and not isinstance(value, str)
    numbers = list(value) if many else [value]
    shares = []
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or number < 0:
            raise ValueError(f"{key} of schedule {name!r} must be numbers >= 0, got {value!r}")
        # 1 is an epoch, not the end: a decay there would be none.
        shares.append(number / epochs if number >= 1 else float(number))
    if shares != sorted(shares):
        raise ValueError(f"{key} of schedule {name!r} must rise, got {value!r}")
    return shares if many else shares[0]


def _check(name: str, key: str, value: Any) -> None:
    if key == "milestones":
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{key} of schedule {name!r} must be a number, got {value!r}")
    low, high = {
        "peak_at": (0.0, 1.0),
        "warmup": (-1.0, 1.0),
        "final": (-1.0, 1.0),
        "gamma": (0.0, math.inf),
        "start_factor": (0.0, math.inf),
        "end_factor": (0.0, math.inf),
    }[key]
    if not (low < value < high):
        low = 0 if low < 0 else low
        raise ValueError(
            f"{key} of schedule {name!r} must be between {low:g} and {high:g}, got {value:g}"
        )
