"""A picture of adversarial examples beside the clean images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from advfast.attacks import PGDAttack
from advfast.attacks.state import crafting, model_device
from advfast.data import Source
from advfast.files import write_atomic

COLUMNS = 10


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
    _need_matplotlib()
    images, labels = source.batch(_one_of_each_class(source.labels))
    _need_images(images)
    device = model_device(model) or torch.device("cpu")
    images, labels = images.to(device), labels.to(device)
    attack = PGDAttack(model, eps=eps, alpha=None, steps=20, norm=norm, bn="eval", seed=0)
    adversarial = attack(images, labels)
    with crafting(model, "eval"), torch.no_grad():
        predictions = [model(seen).argmax(1) for seen in (images, adversarial)]
    draw_examples(
        path,
        images,
        adversarial,
        labels,
        *predictions,
        eps=eps,
        norm=norm,
        title="PGD-20",
        class_names=class_names,
    )


def draw_examples(
    path: Path,
    images: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    predicted: Tensor,
    predicted_adversarial: Tensor,
    *,
    eps: float,
    norm: str,
    title: str,
    class_names: Sequence[str] | None = None,
) -> None:
    """Draws images, the adversarial ones and the differences below each other, with what the model predicts.

    Args:
        path: the PNG to write.
        images, adversarial: [B, C, H, W] in [0, 1].
        labels, predicted, predicted_adversarial: [B].
        title: name of the attack.
        class_names: labels for the predictions; None for numbers.

    Raises:
        PictureSkipped: matplotlib is not installed, or the data are not images.
    """
    _need_matplotlib()
    _need_images(images)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    difference = adversarial - images
    scale = eps if norm == "linf" else float(difference.abs().max())
    shown = _grey_or_rgb(difference / (2 * max(scale, 1e-12)) + 0.5)
    grey = {"cmap": "gray", "vmin": 0, "vmax": 1}
    rows = (
        ("clean", _grey_or_rgb(images), grey, predicted.tolist()),
        (title, _grey_or_rgb(adversarial), grey, predicted_adversarial.tolist()),
        ("difference", shown, {"cmap": "RdBu_r", "vmin": 0, "vmax": 1}, None),
    )
    figure = Figure(figsize=(1.15 * len(images) + 0.9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(3, len(images), squeeze=False)
    for (row, pictures, style, predictions), axes in zip(rows, grid, strict=True):
        axes[0].set_ylabel(row, fontsize=11)
        for column, ax in enumerate(axes):
            ax.imshow(pictures[column], interpolation="nearest", **style)
            ax.set_xticks([])
            ax.set_yticks([])
            if predictions is not None:
                guess = predictions[column]
                ax.set_title(
                    class_names[guess] if class_names and guess < len(class_names) else str(guess),
                    color="tab:green" if guess == int(labels[column]) else "tab:red",
                    fontsize=10,
                )
    heading = (
        f"what the model predicts (green: right); {norm} eps = {eps:.4g}, "
        f"difference shown from -{scale:.2g} to {scale:.2g}"
    )
    if len(images) < 6:  # too long for a narrow picture
        heading = heading.replace("; ", "\n").replace(", ", "\n")
    figure.suptitle(heading, fontsize=10)
    write_atomic(path, lambda stream: figure.savefig(stream, format="png", dpi=120))


def _need_matplotlib() -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise PictureSkipped(
            "the picture was skipped: matplotlib is not installed (pip install matplotlib)"
        ) from error


def _need_images(images: Tensor) -> None:
    if images.dim() != 4:
        raise PictureSkipped(
            f"the picture was skipped: the samples have shape {tuple(images.shape[1:])}, not (C, H, W)"
        )


def _one_of_each_class(labels: Tensor) -> Tensor:
    """[n <= 10] the number of the first sample of each class, in order of class."""
    firsts = [int((labels == label).nonzero()[0]) for label in labels.unique()[:COLUMNS]]
    return torch.tensor(firsts)


def _grey_or_rgb(images: Tensor):
    """[N, C, H, W] -> numpy [N, H, W] or [N, H, W, 3]."""
    images = images.float().cpu()
    if images.shape[1] == 3:
        return images.clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return images.mean(1).numpy()
