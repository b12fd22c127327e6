"""Accuracy of a model, and where foolbox's sample images are."""

from __future__ import annotations

from typing import Any, NoReturn

from .models import Model
from .tensors import unwrapped


def accuracy(fmodel: Model, inputs: Any, labels: Any) -> float:
    """Share of inputs [B, ...] that are classified as their labels [B]."""
    images, _ = unwrapped(inputs)
    classes, _ = unwrapped(labels, "labels")
    logits, _ = unwrapped(fmodel(images.detach()))
    return (logits.argmax(-1) == classes).float().mean().item()


def samples(*_: Any, **__: Any) -> NoReturn:
    """Not here: the sample images belong to foolbox."""
    raise NotImplementedError(
        "advfast ships no sample images: pass your own tensors, read a data set by advfast.data, or "
        "call foolbox.samples, which takes this model"
    )
