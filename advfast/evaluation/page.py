"""A report as one HTML page: styles and figures inside, no scripts, nothing from a network."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .confusion import Confusion
from .words import NORMS, duration, many, radius, share

if TYPE_CHECKING:
    from .report import EvalReport

_TEMPLATE = Path(__file__).with_name("page.html")
_CLASSES = 100
"""Classes in a table: of more, those that are lowest under the strongest attack."""

_MISTAKES = 30
"""Kinds of mistake in a list."""


def render(report: EvalReport, figures: Mapping[str, bytes] | None = None) -> str:
    """The page.

    Args:
        report: what it is about; its texts are escaped.
        figures: file name -> PNG, as `figures.drawn` makes them; None draws them.
    """
    from jinja2 import Environment, StrictUndefined

    from .figures import drawn
    from .report import CURVES, EXAMPLES, FIGURE

    if figures is None:
        figures, _ = drawn(report, (FIGURE, CURVES, EXAMPLES))
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    uris = {
        name: f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        for name, picture in figures.items()
    }
    return template.render(
        report=report,
        share=share,
        radius=f"{NORMS.get(report.norm, report.norm)} eps = {radius(report.eps, report.norm)}",
        rows=_rows(report),
        words={name: words for name, words in report.attacks.items() if words},
        classes=_classes(report),
        confusions=[
            {"attack": name, **_confusion(report, found)}
            for name, found in report.confusion.items()
            if found.mistakes
        ],
        figure=uris.get(FIGURE),
        curves=uris.get(CURVES),
        examples=uris.get(EXAMPLES),
        took=duration(report.seconds),
        call=report.reproduce.get("call"),
        command=report.reproduce.get("command"),
    )


def _rows(report: EvalReport) -> list[dict[str, Any]]:
    """Of the table of attacks, parts below their attack."""
    rows = []
    for name, accuracy in report.rows().items():
        seconds, cost = report.attack_seconds.get(name), report.costs.get(name)
        rows.append(
            {
                "name": name,
                "part": False,
                "took": "" if seconds is None else duration(seconds),
                "forwards": "" if cost is None else many(cost.forwards),
                "backwards": "" if cost is None else many(cost.backwards),
                **_cells(accuracy),
            }
        )
        for part, after in report.stages.get(name, {}).items():
            blank = dict.fromkeys(("took", "forwards", "backwards"), "")
            rows.append({"name": part, "part": True, **blank, **_cells(after)})
    return rows


def _cells(accuracy: Any) -> dict[str, Any]:
    low, high = accuracy.interval
    return {
        "percent": 100 * accuracy.value,
        "low": 100 * low,
        "high": 100 * high,
        "right": f"{accuracy.correct} / {accuracy.total}",
    }


def _classes(report: EvalReport) -> dict[str, Any]:
    """The table of classes: heads, rows of (name, samples, accuracies in %), a note."""
    attacks = list(report.per_class)
    if not attacks:
        return {"heads": [], "rows": [], "note": ""}
    lowest = report.strongest()
    if lowest not in attacks:
        lowest = attacks[-1]
    of = report.per_class[lowest]
    shown, note = sorted(of), ""
    if len(shown) > _CLASSES:
        shown = sorted(of, key=lambda number: (of[number].value, number))[:_CLASSES]
        note = f"The {_CLASSES} of {len(of)} classes that are lowest under {lowest}."
    rows = [
        {
            "name": report.name_of(number),
            "samples": of[number].total,
            "percent": [100 * report.per_class[attack][number].value for attack in attacks],
        }
        for number in shown
    ]
    return {"heads": attacks, "rows": rows, "note": note}


def _confusion(report: EvalReport, found: Confusion) -> dict[str, Any]:
    """A matrix with the share of its row in each cell, or the most frequent mistakes."""
    names = [report.name_of(number) for number in range(found.classes)]
    if found.matrix is None:
        mistakes = [
            {"true": names[true], "predicted": names[predicted], "count": count}
            for true, predicted, count in found.mistakes[:_MISTAKES]
        ]
        return {"names": [], "rows": [], "mistakes": mistakes}
    rows = []
    for true, counts in enumerate(found.matrix):
        total = sum(counts)
        if not total:
            continue
        cells = [
            {"count": count, "heat": count / total, "right": predicted == true}
            for predicted, count in enumerate(counts)
        ]
        rows.append({"name": names[true], "cells": cells})
    return {"names": names, "rows": rows, "mistakes": []}
