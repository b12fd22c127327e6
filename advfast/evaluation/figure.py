"""The picture of an evaluation: accuracy under each attack, and of each class."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, BinaryIO

from .picture import PictureSkipped

if TYPE_CHECKING:
    from .report import EvalReport

_BARS = 12
"""Classes that fit as bars with their names; more become a heat map."""

_CLASSES = 100
"""Classes in the heat map: of more, those that are lowest under the last attack."""


def draw_report(stream: BinaryIO, report: EvalReport) -> None:
    """Writes a PNG.

    Raises:
        PictureSkipped: matplotlib is not installed, or there is no result to draw.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PictureSkipped(
            "the picture was skipped: matplotlib is not installed (pip install matplotlib)"
        ) from error
    rows = report.rows()
    if not rows:
        raise PictureSkipped("the picture was skipped: no attack has a result")
    attacks = list(report.per_class)
    classes = sorted(report.per_class[attacks[-1]]) if attacks else []
    heat = len(classes) > _BARS or len(attacks) > 4
    colours = {
        name: colormaps["viridis"](0.1 + 0.75 * i / max(len(rows) - 1, 1))
        for i, name in enumerate(rows)
    }
    inches = [1.2 + 0.8 * len(rows)]
    if classes:
        shown = min(len(classes), _CLASSES)
        inches.append(2.5 + 0.12 * shown if heat else 1.2 + (0.5 + 0.13 * len(attacks)) * shown)
    figure = Figure(figsize=(max(sum(inches), 4.5), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, *right = figure.subplots(1, len(inches), width_ratios=inches, squeeze=False)[0]
    _draw_attacks(left, report, colours)
    for axes in right:
        (_draw_heat if heat else _draw_bars)(axes, report, classes, colours)
    figure.suptitle(report.heading(), fontsize=10)
    figure.savefig(stream, format="png", dpi=120)


def _draw_attacks(axes, report: EvalReport, colours) -> None:
    rows = report.rows()
    for i, (name, accuracy) in enumerate(rows.items()):
        value, (low, high) = 100 * accuracy.value, (100 * bound for bound in accuracy.interval)
        axes.bar(i, value, color=colours[name], width=0.65)
        axes.errorbar(
            i, value, [[max(value - low, 0)], [max(high - value, 0)]], color="black", capsize=4
        )
        axes.text(i, high + 1.5, f"{value:.1f}", ha="center", va="bottom", fontsize=9)
    turned = max(len(name) for name in rows) > 9
    axes.set_xticks(
        range(len(rows)),
        list(rows),
        rotation=30 if turned else 0,
        ha="right" if turned else "center",
        rotation_mode="anchor" if turned else "default",
    )
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.set_ylabel("accuracy, % (95 % interval)")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _draw_bars(axes, report: EvalReport, classes: list[int], colours) -> None:
    attacks = list(report.per_class)
    width = 0.8 / len(attacks)
    for j, name in enumerate(attacks):
        of = report.per_class[name]
        places = [i + (j - (len(attacks) - 1) / 2) * width for i in range(len(classes))]
        axes.bar(
            places, [100 * of[c].value for c in classes], width, label=name, color=colours[name]
        )
    axes.set_xticks(
        range(len(classes)),
        [textwrap.shorten(report.name_of(c), 24).replace(" ", "\n") for c in classes],
        fontsize=9,
    )
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlim(-0.6, len(classes) - 0.4)
    axes.set_xlabel("class")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(loc="upper right", ncols=len(attacks), fontsize=9, framealpha=0.9)


def _draw_heat(axes, report: EvalReport, classes: list[int], colours) -> None:
    attacks = list(report.per_class)
    last = report.per_class[attacks[-1]]
    title = ""
    if len(classes) > _CLASSES:
        title = f"the {_CLASSES} of {len(classes)} classes lowest under {attacks[-1]}"
        classes = sorted(classes, key=lambda c: (last[c].value, c))[:_CLASSES]
    values = [[100 * report.per_class[name][c].value for c in classes] for name in attacks]
    picture = axes.imshow(values, aspect="auto", vmin=0, vmax=100, cmap="viridis")
    axes.set_yticks(range(len(attacks)), attacks)
    every = math.ceil(len(classes) / 50)
    axes.set_xticks(
        range(0, len(classes), every), [str(c) for c in classes[::every]], fontsize=8, rotation=90
    )
    axes.set_xlabel("class")
    axes.set_title(title, fontsize=9)
    axes.figure.colorbar(picture, ax=axes, label="accuracy, %", shrink=0.9)
