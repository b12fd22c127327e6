"""How figures of studies look: colours that colour-blind readers can tell apart, markers, heat maps with numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Of lines and dots, in this order (Okabe & Ito)."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""One for each of `COLOURS`, so that no difference is one of colour alone."""

HEAT = "cividis"
"""Of heat maps: the same to readers with and without colour vision, and monotone in grey."""


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def marker(number: int) -> str:
    return MARKERS[number % len(MARKERS)]


def plain_axes(axes: Any) -> None:
    """Small ticks, no frame at the top and on the right."""
    axes.tick_params(labelsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def heat_map(
    axes: Any,
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    low: float = 0.0,
    high: float = 1.0,
    form: str = "{:.2f}",
) -> Any:
    """Cells with their numbers; None stays white.

    Args:
        values: [len(rows)][len(columns)].
        low, high: ends of the colours.

    Returns:
        The image, for a colour bar.
    """
    import numpy as np

    table = np.array([[np.nan if v is None else v for v in row] for row in values], dtype=float)
    image = axes.imshow(table, cmap=HEAT, vmin=low, vmax=high, aspect="auto")
    for y, row in enumerate(table):
        for x, value in enumerate(row):
            if np.isfinite(value):
                dark = value < (low + high) / 2
                axes.text(
                    x, y, form.format(value), ha="center", va="center", fontsize=7,
                    color="white" if dark else "black",
                )  # fmt: skip
    axes.set_xticks(range(len(columns)), columns, fontsize=7)
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image
