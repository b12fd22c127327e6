"""Figures without a display and without the state of pyplot."""

from __future__ import annotations

from typing import Any, BinaryIO

from .picture import PictureSkipped

DPI = 120


def new_figure(width: float, height: float) -> Any:
    """A matplotlib Figure of so many inches.

    Raises:
        PictureSkipped: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PictureSkipped(
            "the picture was skipped: matplotlib is not installed (pip install matplotlib)"
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_png(figure: Any, stream: BinaryIO) -> None:
    figure.savefig(stream, format="png", dpi=DPI)


def write_svg(figure: Any, stream: BinaryIO) -> None:
    """The same bytes for the same figure: no date, no random names inside."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "advfast"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
