"""The figures of a report as PNGs in memory."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .curves_figure import draw_curves
from .examples_figure import draw_examples, shows
from .figure import draw_report
from .picture import PictureSkipped
from .report import CURVES, EXAMPLES, FIGURE

if TYPE_CHECKING:
    from .report import EvalReport


def drawn(report: EvalReport, names: Iterable[str]) -> tuple[dict[str, bytes], str]:
    """(file name -> PNG, of those asked for that there is something to draw of; why others are missing, or "")."""
    pictures: dict[str, bytes] = {}
    reason = ""
    for name in names:
        stream = io.BytesIO()
        try:
            if name == FIGURE:
                draw_report(stream, report)
            elif name == CURVES and report.curves is not None and report.curves.steps:
                draw_curves(stream, report.curves, report.eps, report.norm)
            elif name == EXAMPLES and shows(report.examples):
                draw_examples(stream, report)
            else:
                continue
        except PictureSkipped as error:
            reason = reason or str(error)
            continue
        pictures[name] = stream.getvalue()
    return pictures, reason
