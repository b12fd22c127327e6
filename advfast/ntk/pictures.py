"""Pictures of kernels: heat maps sorted by class, and spectra."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from advfast.evaluation.picture import PictureSkipped
from advfast.files import write_atomic

from . import metrics
from .labels import centred
from .metrics import Kernel

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""Okabe and Ito's, which the colour-blind tell apart."""
_STYLES = ("-", "--", "-.", ":")
_NOISE = 1e-8
"""Eigenvalues below this share of the largest are rounding, and not drawn."""


def draw_heat(
    path: Path,
    kernels: Mapping[str, Kernel],
    labels: Tensor,
    *,
    title: str = "",
    class_names: Sequence[str] | None = None,
) -> None:
    """Draws the trace kernel of each, as cosines: as it is, and centred over the samples; samples sorted by class.

    Args:
        path: the PNG to write.
        kernels: a row of the picture each, by name.
        labels: classes int [N].

    Raises:
        PictureSkipped: matplotlib is not installed.
    """
    figure_class = _figure()
    order = torch.argsort(labels, stable=True)
    columns: list[list[Tensor]] = [[], []]
    for kernel in kernels.values():
        k = metrics.matrix(kernel)[order][:, order].cpu()
        columns[0].append(_cosines(k))
        columns[1].append(_cosines(centred(k)))
    figure = figure_class(figsize=(9.6, 1.3 + 4.6 * len(kernels)), layout="constrained")
    grid = figure.subplots(len(kernels), 2, squeeze=False)
    low = min(float(k.min()) for k in columns[0])
    off = ~torch.eye(len(labels), dtype=torch.bool)
    extreme = max((float(k[off].abs().max()) for k in columns[1]), default=1.0) or 1.0
    scales = (
        {"cmap": "viridis", "vmin": low, "vmax": 1},
        {"cmap": "PuOr", "vmin": -extreme, "vmax": extreme},
    )
    heads = ("cosine of the gradients", "cosine of the gradients less their mean")
    for column, (scale, head) in enumerate(zip(scales, heads, strict=True)):
        for row, name in enumerate(kernels):
            axes = grid[row][column]
            drawn = axes.imshow(columns[column][row].numpy(), interpolation="nearest", **scale)
            _classes(axes, labels[order].cpu(), class_names, "white" if column == 0 else "black")
            axes.set_ylabel(name if column == 0 else "", fontsize=11)
        beyond = "both" if column and extreme < 1 else "neither"
        figure.colorbar(
            drawn,
            ax=list(grid[:, column]),
            label=head,
            location="bottom",
            aspect=30,
            shrink=0.9,
            extend=beyond,
        )
    figure.suptitle(title, fontsize=10)
    write_atomic(path, lambda stream: figure.savefig(stream, format="png", dpi=120))


def draw_spectrum(
    path: Path, spectra: Mapping[str, Tensor], *, title: str = "", unit: str = "trace"
) -> None:
    """Draws eigenvalues over their number, log-log, and the share of the trace that the first k have together.

    Args:
        path: the PNG to write.
        spectra: eigenvalues [M] by the kernel's name, the largest first.

    Raises:
        PictureSkipped: matplotlib is not installed.
    """
    figure = _figure()(figsize=(9.6, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    most = 1
    for i, (name, values) in enumerate(spectra.items()):
        colour, style = _COLOURS[i % len(_COLOURS)], _STYLES[i % len(_STYLES)]
        shown = values[values > _NOISE * values[0]].tolist()
        numbers = range(1, len(shown) + 1)
        most = max(most, len(values))
        rank = metrics.entropy_rank(values)
        mark = "o" if len(shown) <= 20 else ""
        left.plot(
            numbers, shown, color=colour, linestyle=style, marker=mark, markersize=4, label=name
        )
        share = (values.cumsum(0) / values.sum()).tolist()
        right.plot(
            range(1, len(share) + 1), share, color=colour, linestyle=style, marker=mark, markersize=4, label=name
        )  # fmt: skip
        right.axvline(rank, color=colour, linestyle=style, linewidth=0.9, alpha=0.7)
        right.text(
            rank,
            0.03 + 0.08 * i,
            f" effective rank {rank:.1f} ",
            color=colour,
            fontsize=9,
            va="bottom",
            ha="left" if rank < most**0.6 else "right",
        )
    left.set_yscale("log")
    left.set_ylabel("eigenvalue")
    right.set_ylabel("share of the trace of the first k")
    right.set_ylim(0, 1.03)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlim(0.95, max(most, 2) * 1.05)
        axes.set_xlabel("number k of the eigenvalue")
        axes.grid(which="major", alpha=0.3)
        axes.set_axisbelow(True)
    left.legend(loc="lower left", fontsize=9)
    figure.suptitle(title, fontsize=10)
    write_atomic(path, lambda stream: figure.savefig(stream, format="png", dpi=120))


def _figure():
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PictureSkipped(
            "the pictures were skipped: matplotlib is not installed (pip install matplotlib)"
        ) from error

    def make(**arguments):
        figure = Figure(**arguments)
        FigureCanvasAgg(figure)
        return figure

    return make


def _cosines(k: Tensor) -> Tensor:
    """K_ij / sqrt(K_ii K_jj); 0 where a gradient is zero."""
    scale = k.diagonal().clamp(min=0).sqrt()
    return (k / torch.outer(scale, scale)).nan_to_num(0, 0, 0).clamp(-1, 1)


def _classes(axes, labels: Tensor, names: Sequence[str] | None, colour: str) -> None:
    """Lines between the classes, and their names at the middle of each."""
    found, counts = torch.unique_consecutive(labels, return_counts=True)
    ends = counts.cumsum(0)
    for edge in ends[:-1].tolist() if len(found) <= 50 else []:
        axes.axhline(edge - 0.5, color=colour, linewidth=0.6, alpha=0.8)
        axes.axvline(edge - 0.5, color=colour, linewidth=0.6, alpha=0.8)
    every = math.ceil(len(found) / 20)
    middles = (ends - counts / 2 - 0.5).tolist()[::every]
    words = [
        names[label] if names and label < len(names) else str(label)
        for label in found.tolist()[::every]
    ]
    long = max(map(len, words)) > 3
    axes.set_xticks(middles, words, fontsize=8, rotation=90 if long else 0)
    axes.set_yticks(middles, words, fontsize=8)
    axes.tick_params(length=0)
