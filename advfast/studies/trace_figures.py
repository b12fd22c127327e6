"""Figures of `ntk_trace`: metrics against the epoch, and the way of the kernels in polar coordinates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from advfast.evaluation.canvas import new_figure

from .result import Row, StudyResult
from .style import colour, marker, plain_axes

_CURVES = {
    "effective_rank": "effective rank",
    "top_share": "largest eigenvalue / trace",
    "specialization": "specialisation",
    "distance": "distance from the reference",
    "velocity": "velocity, 1/epoch",
    "between": "distance from the first",
}
_KINDS = {"clean": "-", "adversarial": "--"}


def draw(result: StudyResult) -> Iterator[tuple[str, Any]]:
    """ "trace" and "polar", as they are written.

    Raises:
        PictureSkipped: matplotlib is not installed.
    """
    yield "trace", _curves(result)
    yield "polar", _polar(result)


def _methods(result: StudyResult) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in result.rows))


def _curves(result: StudyResult) -> Any:
    figure = new_figure(7.2, 4.8)
    for axes, (name, head) in zip(figure.subplots(2, 3).flat, _CURVES.items(), strict=True):
        for number, method in enumerate(_methods(result)):
            means = [row for row in result.summary if row["method"] == method]
            for kind, stroke in _KINDS.items():
                _line(
                    axes, means, f"{kind}_{name}", colour(number), linestyle=stroke, marker=marker(number),
                    markersize=3.5, linewidth=1.2, markerfacecolor=colour(number) if kind == "clean" else "white",
                    label=f"{method}, {'clean' if kind == 'clean' else 'attacked'}",
                )  # fmt: skip
        if name == "velocity" and axes.lines:
            axes.set_yscale("log")
        plain_axes(axes)
        axes.set_title(head, fontsize=8)
    for axes in figure.axes[3:]:
        axes.set_xlabel("epoch", fontsize=8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, fontsize=7.5, frameon=False, loc="outside upper center", ncols=min(4, len(labels))
    )  # fmt: skip
    return figure


def _line(axes: Any, rows: list[Row], column: str, shade: str, **style: Any) -> None:
    """Means over the seeds, in a band of a sample standard deviation to either side."""
    found = [row for row in rows if row[f"{column}_mean"] is not None]
    if not found:
        return
    epochs, means = [row["epoch"] for row in found], [row[f"{column}_mean"] for row in found]
    axes.plot(epochs, means, color=shade, **style)
    spread = [row[f"{column}_std"] or 0.0 for row in found]
    if column.endswith("velocity"):
        return  # on a logarithmic axis a band that reaches 0 has no lower edge
    low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
    axes.fill_between(epochs, low, high, color=shade, alpha=0.12, linewidth=0)


def _polar(result: StudyResult) -> Any:
    figure, start = new_figure(7.2, 3.2), result.settings["reference"]
    from matplotlib.ticker import MaxNLocator

    every = figure.subplots(1, 2, subplot_kw={"projection": "polar"})
    for axes, kind in zip(every, _KINDS, strict=True):
        largest = 0.1
        for number, method in enumerate(_methods(result)):
            means = [
                row
                for row in result.summary
                if row["method"] == method and row["epoch"] >= start and row[f"{kind}_radius_mean"] is not None
            ]  # fmt: skip
            angles = [row[f"{kind}_angle_mean"] for row in means]
            radii = [row[f"{kind}_radius_mean"] for row in means]
            axes.plot(
                angles, radii, color=colour(number), marker=marker(number), markersize=3.5, linewidth=1.2,
                label=method,
            )  # fmt: skip
            if means:  # where it ends
                axes.plot(angles[-1], radii[-1], "o", color=colour(number), markersize=9, fillstyle="none")  # fmt: skip
            largest = max([largest, *angles])
        axes.set_thetamin(0)
        axes.set_thetamax(min(180.0, 1.15 * math.degrees(largest)))
        axes.set_title(f"{'clean' if kind == 'clean' else 'attacked'} images", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_yticks(MaxNLocator(5).tick_values(0, axes.get_rmax())[1:-1])
        axes.set_xticks(
            [math.radians(a) for a in MaxNLocator(5).tick_values(0, axes.get_thetamax())[:-1]]
        )
    handles, labels = every[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7.5, frameon=False, loc="outside lower center", ncols=4)
    figure.suptitle(
        f"from the kernel $K_r$ of epoch {start:g} to the last one $K_T$ (ringed): "
        "radius $|K - K_r| / |K_T - K_r|$, angle between $K$ and $K_r$",
        fontsize=8,
    )
    return figure
