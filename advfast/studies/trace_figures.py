"""Figures of `ntk_trace`: metrics against the epoch, and the way of the kernels in polar coordinates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from advfast.evaluation.canvas import new_figure

from .result import Row, StudyResult
from .style import colour as colour_of

_CURVES = {
    "effective_rank": "effective rank",
    "top_share": "largest eigenvalue / trace",
    "specialization": "specialisation",
    "distance": "distance from the reference",
    "velocity": "velocity, 1/epoch",
    "between": "distance from the first method",
}
_KINDS = ("clean", "adversarial")


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
    figure = new_figure(2.5 * len(_CURVES), 4.8)
    grid = figure.subplots(2, len(_CURVES), sharex=True)
    for axes_row, kind in zip(grid, _KINDS, strict=True):
        for axes, (name, head) in zip(axes_row, _CURVES.items(), strict=True):
            for number, method in enumerate(_methods(result)):
                colour = colour_of(number)
                for seed in dict.fromkeys(row["seed"] for row in result.rows):
                    line = result.select(method=method, seed=seed)
                    _line(axes, line, f"{kind}_{name}", color=colour, alpha=0.3, linewidth=0.8)
                means = [row for row in result.summary if row["method"] == method]
                _line(axes, means, f"{kind}_{name}_mean", color=colour, marker=".", label=method)
            if name == "velocity":
                axes.set_yscale("log")
            axes.tick_params(labelsize=7)
            if kind == "clean":
                axes.set_title(head, fontsize=8)
            else:
                axes.set_xlabel("epoch", fontsize=8)
        axes_row[0].set_ylabel(f"{kind} kernel", fontsize=8)
    grid[0][0].legend(fontsize=7, frameon=False)
    return figure


def _line(axes: Any, rows: list[Row], column: str, **style: Any) -> None:
    found = [(row["epoch"], row[column]) for row in rows if row[column] is not None]
    if found:
        axes.plot(*zip(*found, strict=True), **style)


def _polar(result: StudyResult) -> Any:
    figure, start = new_figure(7.6, 3.9), result.settings["reference"]
    for axes, kind in zip(
        figure.subplots(1, 2, subplot_kw={"projection": "polar"}), _KINDS, strict=True
    ):
        largest = 0.1
        for number, method in enumerate(_methods(result)):
            means = [
                row
                for row in result.summary
                if row["method"] == method and row["epoch"] >= start and row[f"{kind}_radius_mean"] is not None
            ]  # fmt: skip
            angles = [row[f"{kind}_angle_mean"] for row in means]
            radii = [row[f"{kind}_radius_mean"] for row in means]
            axes.plot(angles, radii, ".-", color=colour_of(number), label=method)
            largest = max([largest, *angles])
        axes.set_thetamin(0)
        axes.set_thetamax(min(180.0, 1.15 * 57.3 * largest))
        axes.set_title(f"{kind} kernel", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7, frameon=False, loc="upper left")
    figure.suptitle(
        f"way from the kernel of epoch {start:g}: |K - K_r| / |K_T - K_r|, and angle", fontsize=9
    )
    return figure
