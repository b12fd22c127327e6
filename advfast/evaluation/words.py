"""Numbers of an evaluation as people write them."""

from __future__ import annotations

import platform

import torch

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def versions() -> dict[str, str]:
    """Of advfast, torch and Python."""
    from advfast import __version__

    return {
        "advfast": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def radius(eps: float, norm: str) -> str:
    """In pixel units of [0, 1]; for linf as k/255 where it is a whole number of grey levels."""
    levels = round(255 * eps)
    if norm == "linf" and levels and abs(255 * eps - levels) < 1e-4:
        return f"{levels}/255"
    return f"{eps:.4g}"


def radius_call(eps: float) -> str:
    """A Python expression of exactly this value."""
    levels = round(255 * eps)
    return f"{levels}/255" if levels and levels / 255 == eps else repr(eps)


def duration(seconds: float) -> str:
    """4.2 s, 3:07 min, 2:05:00 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h"


def many(count: int) -> str:
    """12,345 or 3.2 million."""
    return f"{count:,}" if count < 1_000_000 else f"{count / 1e6:.3g} million"


def share(probability: float) -> str:
    """In %; 1 only where it is."""
    return "> 99.9 %" if 0.9995 <= probability < 1 else f"{100 * probability:.1f} %"
