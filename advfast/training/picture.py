"""A picture of adversarial examples beside the clean images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from advfast.attacks import PGDAttack
from advfast.attacks.state import crafting, model_device
from advfast.data import Source

from .files import write_atomic

_COLUMNS = 10


class PictureSkipped(Exception):
    """No picture was drawn; the message says why."""


def draw(
    path: Path,
    model: nn.Module,
    source: Source,
    *,
    eps: float,
    norm: str,
    class_names: Sequence[str] | None = None,
) -> None:
    """Draws the first image of each class, its PGD-20 example, and the difference, with what the model predicts.

    Args:
        path: the PNG to write.
        source: images [N, C, H, W] to show; up to 10 are.
        class_names: labels for the predictions; None for numbers.

    Raises:
        PictureSkipped: matplotlib is not installed, or the data are not images.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PictureSkipped(
            "the picture was skipped: matplotlib is not installed (pip install matplotlib)"
        ) from error
    chosen = _one_of_each_class(source.labels)
    images, labels = source.batch(chosen)
    if images.dim() != 4:
        raise PictureSkipped(
            f"the picture was skipped: the samples have shape {tuple(images.shape[1:])}, not (C, H, W)"
        )
    device = model_device(model) or torch.device("cpu")
    images, labels = images.to(device), labels.to(device)
    attack = PGDAttack(model, eps=eps, alpha=None, steps=20, norm=norm, bn="eval", seed=0)
    adversarial = attack(images, labels)
    with crafting(model, "eval"), torch.no_grad():
        predictions = [model(seen).argmax(1).tolist() for seen in (images, adversarial)]
    difference = adversarial - images
    scale = eps if norm == "linf" else float(difference.abs().max())
    rows = (
        ("clean", _grey_or_rgb(images), {"cmap": "gray", "vmin": 0, "vmax": 1}),
        ("PGD-20", _grey_or_rgb(adversarial), {"cmap": "gray", "vmin": 0, "vmax": 1}),
        (
            "difference",
            _grey_or_rgb(difference / (2 * max(scale, 1e-12)) + 0.5),
            {"cmap": "RdBu_r", "vmin": 0, "vmax": 1},
        ),
    )
    figure = Figure(figsize=(1.15 * len(chosen) + 0.9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(3, len(chosen), squeeze=False)
    for (title, pictures, style), axes, predicted in zip(
        rows, grid, [*predictions, None], strict=True
    ):
        axes[0].set_ylabel(title, fontsize=11)
        for column, ax in enumerate(axes):
            ax.imshow(pictures[column], interpolation="nearest", **style)
            ax.set_xticks([])
            ax.set_yticks([])
            if predicted is not None:
                right = predicted[column] == int(labels[column])
                ax.set_title(
                    class_names[predicted[column]] if class_names else str(predicted[column]),
                    color="tab:green" if right else "tab:red",
                    fontsize=10,
                )
    figure.suptitle(
        f"what the model predicts (green: right); {norm} eps = {eps:.4g}, "
        f"difference shown from -{scale:.2g} to {scale:.2g}",
        fontsize=10,
    )
    write_atomic(path, lambda stream: figure.savefig(stream, format="png", dpi=120))


def _one_of_each_class(labels: Tensor) -> Tensor:
    """[n <= 10] the number of the first sample of each class, in order of class."""
    firsts = [int((labels == label).nonzero()[0]) for label in labels.unique()[:_COLUMNS]]
    return torch.tensor(firsts)


def _grey_or_rgb(images: Tensor):
    """[N, C, H, W] -> numpy [N, H, W] or [N, H, W, 3]."""
    if images.shape[1] == 3:
        return images.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return images.mean(1).cpu().numpy()
