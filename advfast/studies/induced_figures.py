"""Figures of `induced`: error of fresh networks beside the robust gap, and dispersion, against the epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from advfast.evaluation.canvas import new_figure

from .result import StudyResult
from .style import colour, marker, plain_axes


def draw(result: StudyResult) -> Iterator[tuple[str, Any]]:
    """ "ide" and "dispersion", as they are written.

    Raises:
        PictureSkipped: matplotlib is not installed.
    """
    yield "ide", _figure(
        result,
        (
            "error on the perturbed images, and robust gap", "share of images",
            {"ide_test_error": "fresh networks: test error", "robust_gap": "checkpoint: robust gap"},
        ),
        (
            "the checkpoint under PGD", "robust accuracy",
            {"robust_train": "training images", "robust_test": "test images"},
        ),
    )  # fmt: skip
    parts = ("train", "training images"), ("test", "test images")
    yield "dispersion", _figure(
        result,
        (
            "distance of two perturbations", "local dispersion, L2 in pixel units",
            {f"dispersion_{part}": words for part, words in parts},
        ),
        (
            "angle of two perturbations", "cosine",
            {f"cosine_{part}": words for part, words in parts},
        ),
    )  # fmt: skip


def _figure(result: StudyResult, *panels: tuple[str, str, dict[str, str]]) -> Any:
    figure = new_figure(7.2, 3.3)
    for axes, (title, unit, measures) in zip(figure.subplots(1, 2), panels, strict=True):
        first, last = (result.summary[i]["epoch"] for i in (0, -1))
        for number, drop in enumerate(d for d in result.settings["lr_drops"] if first <= d <= last):
            label = "_" if number else "learning rate drops"
            axes.axvline(drop, color="#888888", linewidth=0.9, linestyle=":", zorder=0, label=label)
        for number, (name, label) in enumerate(measures.items()):
            _line(axes, result, name, label, number)
        axes.set_title(title, fontsize=8, pad=30)
        axes.set_xlabel("epoch of the checkpoint", fontsize=8)
        axes.set_ylabel(unit, fontsize=8)
        axes.margins(y=0.08)
        plain_axes(axes)
        axes.grid(axis="y", linewidth=0.4, color="#dddddd")
        axes.legend(
            fontsize=6.5, frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), columnspacing=1.0,
            handlelength=1.8,
        )  # fmt: skip
    return figure


def _line(axes: Any, result: StudyResult, name: str, label: str, number: int) -> None:
    rows = [row for row in result.summary if row[f"{name}_mean"] is not None]
    axes.errorbar(
        [row["epoch"] for row in rows],
        [row[f"{name}_mean"] for row in rows],
        [row[f"{name}_std"] or 0.0 for row in rows],
        color=colour(number), marker=marker(number), markersize=4, linewidth=1.3, capsize=2, label=label,
    )  # fmt: skip
