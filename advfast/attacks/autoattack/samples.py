"""The samples of an evaluation, checked, and what the model makes of them when clean."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from advfast.attacks import checks
from advfast.attacks.search.oracle import Oracle
from advfast.attacks.state import bare_model, model_device

from .state import Run


@dataclass(frozen=True)
class Samples:
    """
    Attributes:
        images: [N, ...] float, on any device.
        given: [N] int64 or [N, K] probabilities, where the images are.
        ids: [N] int64, where the images are.
        device: of the model.
    """

    images: Tensor
    given: Tensor
    ids: Tensor
    device: torch.device

    @property
    def labels(self) -> Tensor:
        """[N] int64."""
        return checks.classes_of(self.given)

    def example(self, count: int) -> Tensor:
        """The first ones, where the model is."""
        return self.images[:count].to(self.device)


def check_samples(
    images: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    model: Callable[[Tensor], Tensor],
    device: torch.device | str | None,
) -> Samples:
    """
    Raises:
        TypeError, ValueError: what was wrong, expected and got. Whether the labels fit the model `clean_pass` sees.
    """
    images = checks.check_images(images, None).detach()
    if isinstance(labels, Tensor):
        labels = labels.to(images.device)
        if labels.dim() == 2 and not labels.is_floating_point() and not labels.is_complex():
            labels = labels.float()  # one-hot, of integers
    given = checks.check_labels(labels, images)
    if len(images):
        checks.check_values(images, (0.0, 1.0), given, None)
    if ids is None:
        ids = torch.arange(len(images), device=images.device)
    elif ids.dtype != torch.int64 or ids.shape != images.shape[:1]:
        raise ValueError(
            f"sample_ids must be int64 of shape ({len(images)},), got {ids.dtype} of shape {tuple(ids.shape)}"
        )
    place = model_device(bare_model(model))
    if place is None:
        place = images.device if device is None else torch.device(device)
    return Samples(images, given, ids.to(images.device), place)


def clean_pass(samples: Samples, judge: Oracle, batch_size: int) -> tuple[Run, Tensor]:
    """(a run in which nothing has been attacked yet; logits [N, K] of the images), where the images are.

    Raises:
        TypeError, ValueError: the model returns something else, labels out of range.
    """
    images, labels = samples.images, samples.labels
    began, before = time.perf_counter(), judge.forwards
    parts = []
    for first in range(0, len(images), batch_size):
        batch = images[first : first + batch_size].to(samples.device)
        logits = judge.logits(batch.to(judge.wide))
        if not first:
            if logits.shape[1] < 2:
                raise ValueError(
                    f"the model must have at least 2 classes, got logits of shape {tuple(logits.shape)}"
                )
            checks.check_values(images, (0.0, 1.0), samples.given, logits.shape[1])
        parts.append(logits.to(images.device))
    if not parts:
        nothing = torch.zeros(0, dtype=torch.bool, device=images.device)
        run = Run(images.clone(), labels.clone(), nothing, {"clean": nothing.clone()})
        run.seconds, run.forwards, run.backwards = {"clean": 0.0}, {"clean": 0}, {"clean": 0}
        return run, torch.zeros(0, 0, device=images.device)
    clean = torch.cat(parts)
    predicted = clean.argmax(1)
    # argmax takes a NaN for the largest: it would count as right where it stands at the label.
    right = (predicted == labels) & ~clean.isnan().any(1)
    run = Run(torch.empty_like(images).copy_(images), predicted, right, {"clean": right.clone()})
    run.seconds = {"clean": time.perf_counter() - began}
    run.forwards, run.backwards = {"clean": judge.forwards - before}, {"clean": 0}
    return run, clean
