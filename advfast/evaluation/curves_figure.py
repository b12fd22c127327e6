"""Accuracy against the radius, and accuracy and loss against the number of steps."""

from __future__ import annotations

import math
from typing import Any, BinaryIO

from advfast.attacks.sanity import Sweep

from .canvas import new_figure, write_png
from .words import NORMS, radius

_BLUE, _RED, _GREY = "#2f6f9f", "#b5482a", "#777777"


def draw_curves(stream: BinaryIO, curves: Sweep, eps: float, norm: str) -> None:
    """Writes a PNG.

    Args:
        eps: of the evaluation, which is marked.

    Raises:
        PictureSkipped: matplotlib is not installed.
    """
    figure = new_figure(9.6, 3.7)
    left, right = figure.subplots(1, 2)
    _radii(left, curves, eps, norm)
    _steps(right, curves)
    figure.suptitle(
        f"PGD on {curves.samples} samples; accuracy among those that are right when clean",
        fontsize=10,
    )
    write_png(figure, stream)


def _percent(axes: Any, colour: str = "black") -> None:
    axes.set_ylim(-3, 105)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("robust accuracy, %", color=colour)
    axes.grid(alpha=0.3)


def _radii(axes: Any, curves: Sweep, eps: float, norm: str) -> None:
    levels = norm == "linf"
    unit = 255 if levels else 1
    axes.plot(
        [unit * value for value in curves.eps],
        [100 * value for value in curves.accuracy],
        marker="o", markersize=4, color=_BLUE,
    )  # fmt: skip
    axes.axvline(unit * eps, color=_GREY, linestyle="--", linewidth=1)
    axes.annotate(
        f"eps of the evaluation, {radius(eps, norm)}",
        (unit * eps, 1), xycoords=("data", "axes fraction"),
        xytext=(4, -5), textcoords="offset points", va="top", fontsize=8, color=_GREY,
    )  # fmt: skip
    axes.set_xlabel(f"{NORMS[norm]} eps, {'in 1/255' if levels else 'in pixel units'}")
    axes.set_xlim(left=0)
    _percent(axes)


def _steps(axes: Any, curves: Sweep) -> None:
    axes.plot(
        curves.steps, [100 * value for value in curves.step_accuracy],
        marker="o", markersize=4, color=_BLUE,
    )  # fmt: skip
    axes.set_xlabel("PGD steps")
    _percent(axes, _BLUE)
    loss = axes.twinx()
    loss.plot(
        curves.steps,
        [value if math.isfinite(value) else math.nan for value in curves.step_loss],
        marker="s", markersize=4, color=_RED,
    )  # fmt: skip
    loss.set_ylabel("mean cross-entropy", color=_RED)
    low, high = loss.get_ylim()
    loss.set_ylim(min(0.0, low), high + 0.05 * (high - low))
    if curves.steps and curves.steps[-1] >= 16 * max(curves.steps[0], 1):
        axes.set_xscale("log")
    axes.set_xticks(curves.steps, [str(steps) for steps in curves.steps])
    axes.minorticks_off()
