"""The surest samples that broke: clean image, perturbation, attacked image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from torch import Tensor

from .canvas import new_figure, write_png
from .examples import Example
from .words import NORMS, radius, share

if TYPE_CHECKING:
    from .report import EvalReport

_COLOURS = (1, 3)
_NAME = 14
"""Letters of a class name that fit above an image."""


def shows(examples: Sequence[Example]) -> bool:
    """Whether there are images among them that can be drawn: [C, H, W] or [H, W, C], C = 1 or 3, or [H, W]."""
    return bool(examples) and all(_drawable(one.image) for one in examples)


def _drawable(image: Tensor | None) -> bool:
    if image is None:
        return False
    return image.dim() == 2 or (
        image.dim() == 3 and (image.shape[0] in _COLOURS or image.shape[2] in _COLOURS)
    )


def draw_examples(stream: BinaryIO, report: EvalReport) -> None:
    """Writes a PNG of `report.examples`; a column each.

    Raises:
        PictureSkipped: matplotlib is not installed.
    """
    examples = report.examples
    pairs = [(_pixels(one.image), _pixels(one.attacked)) for one in examples]
    largest = max(float(np.abs(attacked - clean).max()) for clean, attacked in pairs)
    factor = 0.5 / max(largest, 1e-12)
    figure = new_figure(1.35 * len(examples) + 0.7, 5.1)
    grid = figure.subplots(3, len(examples), squeeze=False)
    rows = ("clean", f"perturbation, x{factor:.3g}", f"{examples[0].attack}")
    for label, axes in zip(rows, grid, strict=True):
        axes[0].set_ylabel(label, fontsize=9)
    for column, (one, (clean, attacked)) in enumerate(zip(examples, pairs, strict=True)):
        moved = (attacked - clean) * factor + 0.5
        _show(grid[0][column], clean, "gray")
        _show(grid[1][column], moved, "RdBu_r")
        _show(grid[2][column], attacked, "gray")
        grid[0][column].set_title(
            f"#{one.sample}\n{_class(report, one.label)}\n{share(one.confidence)}",
            color="tab:green", fontsize=8,
        )  # fmt: skip
        taken = _class(report, one.predicted) if one.predicted >= 0 else "not a number"
        grid[2][column].set_title(
            f"{taken}\n{share(one.confidence_attacked)}", color="tab:red", fontsize=8
        )
    figure.suptitle(
        f"broken by {examples[0].attack} although the model was surest of them\n"
        f"{NORMS[report.norm]} eps {radius(report.eps, report.norm)}; class, softmax probability",
        fontsize=9,
    )
    write_png(figure, stream)


def _show(axes: Any, pixels: np.ndarray, colours: str) -> None:
    axes.imshow(pixels.clip(0, 1), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


def _class(report: EvalReport, number: int) -> str:
    name = report.name_of(number)
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}\N{HORIZONTAL ELLIPSIS}"


def _pixels(image: Tensor | None) -> np.ndarray:
    """[H, W] or [H, W, 3] float32."""
    assert image is not None
    image = image.float()
    if image.dim() == 3:
        if image.shape[0] in _COLOURS:
            image = image.permute(1, 2, 0)
        if image.shape[2] == 1:
            image = image[..., 0]
    return image.numpy()
