"""Figures of `criticality`: layers by models, stages, and the published networks beside them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from advfast.evaluation.canvas import new_figure

from .criticality_tables import MEASURED, PUBLISHED, STAGES, WHOLE, stage_rows
from .result import Row, StudyResult
from .style import colour, heat_map, marker, plain_axes

_MEASURE = "criticality (1 - mean cosine)"


def draw(result: StudyResult) -> Iterator[tuple[str, Any]]:
    """ "layers" and "stages", and where the table of stages has published networks "published", as they are written.

    Raises:
        PictureSkipped: matplotlib is not installed.
    """
    yield "layers", _layers(result)
    yield "stages", _stages(result)
    table = result.tables.get(STAGES, [])
    own, other = ([r for r in table if r["source"] == name] for name in (MEASURED, PUBLISHED))
    if other:
        yield "published", _published(own, other)


def _layers(result: StudyResult) -> Any:
    means = {(row["layer"], row["model"]): row["criticality_mean"] for row in result.summary}
    stages = {row["layer"]: row["stage"] for row in result.rows}
    layers, models = list(stages), list(dict.fromkeys(row["model"] for row in result.rows))
    figure = new_figure(2.6 + 0.85 * len(models), 1.1 + 0.19 * len(layers))
    axes = figure.subplots()
    values = [[means.get((layer, model)) for model in models] for layer in layers]
    image = heat_map(axes, values, layers, [_wrapped(model) for model in models])
    for y, (before, after) in enumerate(itertools.pairwise(layers), 1):
        if stages[before] != stages[after]:
            axes.axhline(y - 0.5, color="white", linewidth=2)
    axes.set_ylabel("layer, from the input to the logits", fontsize=8)
    _bar(figure, image, axes)
    return figure


def _stages(result: StudyResult) -> Any:
    rows = stage_rows(result.rows)
    radii = {row["eps"] for row in rows if row["eps"] is not None}
    models = list(dict.fromkeys(row["model"] for row in rows))
    names = [name for name in dict.fromkeys(row["stage"] for row in rows) if name != WHOLE]
    several = len(radii) > 1
    figure = new_figure(5.0 + 2.3 * several, 3.1)
    panels = figure.subplots(1, 1 + several, squeeze=False, width_ratios=[2, 1][: 1 + several])[0]
    for number, model in enumerate(models):
        own = {row["stage"]: row for row in rows if row["model"] == model}
        at = [x for x, name in enumerate(names) if name in own]
        shift = 0.12 * (number - (len(models) - 1) / 2) / max(len(models) / 3, 1)
        panels[0].errorbar(
            [x + shift for x in at], [own[names[x]]["criticality_mean"] for x in at],
            yerr=[own[names[x]]["criticality_std"] or 0.0 for x in at], label=model, color=colour(number),
            marker=marker(number), markersize=4.5, linewidth=1.2, capsize=2,
        )  # fmt: skip
    panels[0].set_xticks(range(len(names)), names, rotation=30 if len(names) > 7 else 0)
    panels[0].set_xlabel("stage", fontsize=8)
    panels[0].set_ylabel(_MEASURE, fontsize=8)
    panels[0].legend(fontsize=7, frameon=False)
    if several:
        for number, model in enumerate(models):
            whole = next(r for r in rows if r["model"] == model and r["stage"] == WHOLE)
            if whole["eps"] is not None:
                panels[1].errorbar(
                    whole["eps"], whole["criticality_mean"], yerr=whole["criticality_std"] or 0.0,
                    color=colour(number), marker=marker(number), markersize=5, capsize=2,
                )  # fmt: skip
        panels[1].set_xlabel("radius eps of training (pixels, 0 to 1)", fontsize=8)
        panels[1].set_ylabel("average of all layers", fontsize=8)
        panels[1].margins(x=0.15)
    for axes in panels:
        plain_axes(axes)
        axes.grid(axis="y", linewidth=0.4, color="#dddddd")
    low = min(row["criticality_mean"] - (row["criticality_std"] or 0.0) for row in rows)
    panels[0].set_ylim(min(0.5, low) - 0.05, 1.03)
    return figure


def _published(own: Sequence[Row], other: Sequence[Row]) -> Any:
    """Models by stages: the study's own above, the published ones below, the least critical first."""
    order = sorted(
        (row for row in other if row["stage"] == WHOLE), key=lambda row: row["criticality_mean"]
    )
    models = [*dict.fromkeys(row["model"] for row in own), *(row["model"] for row in order)]
    names = [n for n in dict.fromkeys(row["stage"] for row in (*other, *own)) if n != WHOLE]
    names = [*names, WHOLE]
    mine = len(models) - len(order)
    means = {(0, row["model"], row["stage"]): row["criticality_mean"] for row in own}
    means |= {(1, row["model"], row["stage"]): row["criticality_mean"] for row in other}
    values = [
        [means.get((int(y >= mine), model, name)) for name in names]
        for y, model in enumerate(models)
    ]
    longest = max(map(len, models))
    figure = new_figure(1.6 + 0.06 * longest + 0.5 * len(names), 1.1 + 0.19 * len(models))
    axes = figure.subplots()
    image = heat_map(axes, values, models, names)
    axes.axhline(mine - 0.5, color="white", linewidth=4)
    axes.axvline(len(names) - 1.5, color="white", linewidth=2)
    axes.set_xlabel("stage", fontsize=8)
    axes.set_ylabel("published networks, and above them this study's", fontsize=8)
    _bar(figure, image, axes)
    return figure


def _bar(figure: Any, image: Any, axes: Any) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30)
    bar.set_label(_MEASURE, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)


def _wrapped(name: str) -> str:
    """On several lines where it is long."""
    lines: list[str] = [""]
    for word in name.replace("_", " ").split(" "):
        if len(lines[-1]) + len(word) > 11 and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
