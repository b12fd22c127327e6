"""A dot plot: settings down, measures across, a dot a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advfast.evaluation.canvas import new_figure

from .result import StudyResult
from .style import colour as colour_of
from .style import plain_axes


def dot_plot(
    result: StudyResult, measures: Mapping[str, str], title: str, colour_by: str | None = None
) -> Any:
    """A matplotlib Figure: a row each setting, a column each measure; dots are runs, the stroke is their mean.

    Args:
        measures: column -> its heading; those without any number are left out.
        colour_by: what is varied whose values have a colour each.

    Raises:
        PictureSkipped: matplotlib is not installed.
    """
    settings = result.summary
    shown = {
        name: head
        for name, head in measures.items()
        if any(row[f"{name}_mean"] is not None for row in settings)
    }
    figure = new_figure(2.2 + 1.45 * len(shown), 1.3 + 0.27 * len(settings))
    every = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    values = [] if colour_by is None else list(dict.fromkeys(s[colour_by] for s in settings))
    for axes, (name, head) in zip(every, shown.items(), strict=True):
        for y, setting in enumerate(settings):
            colour = colour_of(values.index(setting[colour_by]) if colour_by else 0)
            rows = result.select(**{other: setting[other] for other in result.others})
            found = [row[name] for row in rows if row[name] is not None]
            axes.plot(found, [y] * len(found), "o", color=colour, markersize=4, alpha=0.6)
            if found:
                axes.plot(setting[f"{name}_mean"], y, "|", color=colour, markersize=13, mew=1.8)
        axes.set_title(head, fontsize=8)
        plain_axes(axes)
        axes.locator_params(axis="x", nbins=4)
        axes.margins(x=0.12)
        axes.grid(axis="y", linewidth=0.4, color="#dddddd")
    every[0].set_yticks(
        range(len(settings)),
        [" · ".join(str(setting[name]) for name in result.others) for setting in settings],
    )
    every[0].set_ylabel(" · ".join(name.replace("_", " ") for name in result.others), fontsize=7)
    every[0].invert_yaxis()
    figure.suptitle(title, fontsize=9)
    return figure
