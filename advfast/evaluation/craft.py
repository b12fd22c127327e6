"""Adversarial images of a whole data set, for a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from advfast.attacks import PGDAttack
from advfast.attacks.state import crafting
from advfast.files import write_atomic

from .attacks import distances
from .inputs import Inputs, batches, check_labels, logits_of
from .picture import COLUMNS
from .report import Accuracy


@dataclass(frozen=True)
class Crafted:
    """Adversarial images and what the model makes of them, on the CPU.

    Attributes:
        images: [N, C, H, W] float32. Not rounded to bytes: that would move them out of the ball.
        labels, predictions, clean_predictions: [N] int64; predictions are on `images`.
        indices: [N] int64, numbers of the samples.
        clean: [up to 10, C, H, W] float32: the first clean images as the model sees them, for a picture.
        largest: greatest distance from a clean image, in the norm of the attack.
    """

    images: Tensor
    labels: Tensor
    predictions: Tensor
    clean_predictions: Tensor
    indices: Tensor
    clean: Tensor
    largest: float

    def accuracies(self, attack: str, target: int | None) -> dict[str, Accuracy]:
        """Of "clean" and of the attack by its name; with a target, also how many of the others are taken for it."""
        rows = {
            name: Accuracy(int((predicted == self.labels).sum()), len(self.labels))
            for name, predicted in (("clean", self.clean_predictions), (attack, self.predictions))
        }
        others = self.predictions[self.labels.ne(-1 if target is None else target)]
        if target is not None and len(others):
            rows[f"taken for {target}"] = Accuracy(int((others == target).sum()), len(others))
        return rows

    def save(self, path: Path) -> None:
        """Writes an .npz file: images, labels, predictions, clean_predictions, indices."""
        names = ("images", "labels", "predictions", "clean_predictions", "indices")
        arrays: Mapping[str, Any] = {name: getattr(self, name).numpy() for name in names}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda stream: np.savez(stream, **arrays))


def craft(
    model: nn.Module,
    of: Inputs,
    attack: PGDAttack,
    *,
    target: int | None,
    batch_size: int,
    limit: int | None,
    progress: bool,
) -> Crafted:
    """The attack on every sample, also on those that are misclassified when clean.

    Args:
        target: the class to reach, for a targeted attack.

    Raises:
        TypeError, ValueError: the data or the model's output are wrong.
    """
    parts: dict[str, list[Tensor]] = {}
    clean: list[Tensor] = []
    largest = 0.0
    with (
        tqdm(
            total=of.samples,
            desc="attacking",
            unit=" images",
            leave=False,
            disable=None if progress else True,  # None: only where standard error is a terminal
        ) as bar,
        crafting(model, "eval"),
        torch.no_grad(),
    ):
        for images, labels, numbers in batches(of, batch_size, limit, model):
            logits = logits_of(model, images)
            check_labels(labels, logits.shape[1])
            if target is not None and not 0 <= target < logits.shape[1]:
                raise ValueError(f"target must be 0 .. {logits.shape[1] - 1}, got {target}")
            aim = labels if target is None else torch.full_like(labels, target)
            adversarial = attack(images, aim, sample_ids=numbers)
            made = {
                "images": adversarial.float(),
                "labels": labels,
                "predictions": logits_of(model, adversarial).argmax(1),
                "clean_predictions": logits.argmax(1),
                "indices": numbers,
            }
            for name, part in made.items():
                parts.setdefault(name, []).append(part.cpu())
            clean.append(images[: COLUMNS if not clean else 0].float().cpu())
            largest = max(largest, float(distances(adversarial, images, attack.norm).max()))
            bar.update(len(labels))
    if not parts:
        raise ValueError("data holds no samples")
    return Crafted(
        **{name: torch.cat(part) for name, part in parts.items()},
        clean=torch.cat(clean),
        largest=largest,
    )
