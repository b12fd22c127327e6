"""Pictures of training: the course of one run, and the results of several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advfast.evaluation import EvalReport
from advfast.evaluation.picture import PictureSkipped
from advfast.files import write_atomic

if TYPE_CHECKING:
    from .sweep_result import SweepResult

_MOST_MARKERS = 40
"""Epochs up to which every point has a marker."""

_MOST_TICKS = 10

_MOST_SETTINGS = 40
"""Settings of a sweep that still have readable names on one axis."""

_LONGEST_NAME = 36

_COLOURS = {"train": "tab:gray", "clean": "tab:blue", "robust": "tab:red"}


def draw_curves(
    path: str | Path,
    history: Sequence[Mapping[str, Any]],
    *,
    title: str,
    best_epoch: int,
    final: EvalReport | Mapping[str, float] | None = None,
) -> None:
    """Draws accuracy, loss and learning rate by epoch.

    Args:
        path: the PNG to write.
        history: a row an epoch with epoch, lr, train_loss, train_accuracy, val_clean and val_robust (accuracies 0 to
            1); what is missing or None in a row leaves a gap.
        title: above the picture.
        best_epoch: marked in every panel.
        final: test accuracy of the best weights under each attack, drawn as points at that epoch.

    Raises:
        ValueError: the history is empty.
        PictureSkipped: matplotlib is not installed.
    """
    if not history:
        raise ValueError("history must hold at least one epoch, got none")
    figure = _figure((9.6, 4.6))
    left, right = figure.subfigures(1, 2, width_ratios=(1.5, 1))
    accuracy = left.subplots()
    loss, rate = right.subplots(2, 1, sharex=True)
    epochs = [row["epoch"] for row in history]
    style: dict[str, Any] = {"linewidth": 1.6}
    if len(epochs) <= _MOST_MARKERS:
        style |= {"marker": "o", "markersize": 3.5}
    for key, label, colour in (
        ("train_accuracy", "train (images trained on)", _COLOURS["train"]),
        ("val_clean", "held out, clean", _COLOURS["clean"]),
        ("val_robust", "held out, attacked", _COLOURS["robust"]),
    ):
        accuracy.plot(epochs, _column(history, key, 100), label=label, color=colour, **style)
    values = {} if final is None else {name: _value(final[name]) for name in final}
    for index, (name, value) in enumerate(values.items()):
        accuracy.plot(
            best_epoch,
            100 * value,
            "*",
            markersize=12,
            markeredgecolor="black",
            markeredgewidth=0.7,
            color=_COLOURS["clean"] if name == "clean" else f"C{2 + index}",
            label=f"test, {name}: {100 * value:.1f} %",
            zorder=5,
        )
    accuracy.set_ylim(-2, 102)
    accuracy.set_ylabel("accuracy, %")
    accuracy.set_xlabel("epoch")
    loss.plot(epochs, _column(history, "train_loss"), color=_COLOURS["train"], **style)
    loss.set_ylabel("training loss")
    rate.plot(epochs, _column(history, "lr"), color="tab:green", **style)
    rate.set_ylabel("learning rate")
    rate.set_xlabel("epoch")
    rate.set_ylim(bottom=0)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    for axes in (accuracy, loss, rate):
        axes.axvline(
            best_epoch,
            color="black",
            linestyle=":",
            linewidth=1,
            label=f"best epoch: {best_epoch}" if axes is accuracy else None,
        )
        axes.grid(alpha=0.25)
        if len(epochs) <= _MOST_TICKS:
            axes.set_xticks(epochs)
        padding = max(0.5, 0.02 * (max(epochs) - min(epochs)))
        axes.set_xlim(min(epochs) - padding, max(epochs) + padding)
    accuracy.legend(fontsize=8, loc="best", framealpha=0.85)
    figure.suptitle(title, fontsize=11)
    write_atomic(Path(path), lambda stream: figure.savefig(stream, format="png", dpi=120))


def draw_sweep(path: str | Path, result: SweepResult) -> None:
    """Draws each accuracy of each setting: the mean over the seeds, with the sample standard deviation as a bar.

    Test accuracies of the best weights, or those on the held-out split where there was no test set.

    Args:
        path: the PNG to write.
        result: of `advfast.sweep`.

    Raises:
        PictureSkipped: matplotlib is not installed; no run is complete, or there are too many settings to show.
    """
    measures = result.accuracies("best")
    settings = [row for row in result.summary if row["runs"]]
    if not settings or not measures:
        raise PictureSkipped("the picture was skipped: no run of the sweep is complete")
    if len(settings) > _MOST_SETTINGS:
        raise PictureSkipped(
            f"the picture was skipped: {len(settings)} settings do not fit, at most {_MOST_SETTINGS} do"
        )
    figure = _figure((max(4.8, 1.8 + 0.9 * len(settings)), 4.2))
    axes = figure.subplots()
    width = 0.8 / len(measures)
    for index, (column, label) in enumerate(measures.items()):
        # A setting whose runs lack this measure has no bar.
        shown = [
            (place, row) for place, row in enumerate(settings) if row[f"{column}_mean"] is not None
        ]
        places = [place + (index - (len(measures) - 1) / 2) * width for place, _ in shown]
        means = [100 * row[f"{column}_mean"] for _, row in shown]
        spread = [100 * (row[f"{column}_std"] or 0.0) for _, row in shown]
        colour = _COLOURS["clean"] if label.endswith("clean") else f"C{2 + index}"
        axes.bar(places, means, 0.92 * width, color=colour, alpha=0.85, label=label)
        if any(spread):
            axes.errorbar(places, means, spread, fmt="none", ecolor="black", capsize=3, lw=1)
        for place, mean, deviation in zip(places, means, spread, strict=True):
            axes.annotate(
                f"{mean:.1f}",
                (place, mean + deviation),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=7 if len(measures) < 4 else 6,
            )
    names = [_short(result.setting_name(row)) for row in settings]
    slanted = max(len(name) for name in names) > 12 and len(names) > 3
    axes.set_xticks(
        range(len(names)),
        names,
        fontsize=9,
        rotation=30 if slanted else 0,
        ha="right" if slanted else "center",
    )
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("accuracy of the best weights, %")
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, ncols=min(len(measures), 3), loc="upper center")
    several = any(row["runs"] > 1 for row in settings)
    note = "; whiskers: sample standard deviation" if several else ""
    axes.set_title(result.averaged + note, fontsize=10)
    write_atomic(Path(path), lambda stream: figure.savefig(stream, format="png", dpi=120))


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."


def _figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PictureSkipped(
            "the curves were skipped: matplotlib is not installed (pip install matplotlib)"
        ) from error
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _value(accuracy: Any) -> float:
    """Of an Accuracy, or a number."""
    return float(getattr(accuracy, "value", accuracy))


def _column(history: Sequence[Mapping[str, Any]], key: str, scale: float = 1.0) -> list[float]:
    """NaN, which is drawn as a gap, where there is no number."""
    values = (row.get(key) for row in history)
    return [math.nan if value is None else scale * float(value) for value in values]
