"""What cutmix and mixup have in common: each sample of a batch is mixed with another one of it."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from advfast.data import Batch, randomness

from .base import Modifier, RunInfo, StepInfo


class Mixing(Modifier):
    """Images and labels of a batch mixed with those of a permutation of it, before the images are attacked.

    Labels become probabilities [B, K]: lambda of the sample's own class and 1 - lambda of its partner's. lambda is
    drawn from Beta(alpha, alpha) once a batch; it, the permutation and all else depend on (seed, batch of the run).

    Args:
        alpha: above 0.

    Raises:
        ValueError: alpha out of range.
    """

    purpose: ClassVar[int]
    """Of its random numbers."""

    numbers: ClassVar[int] = 0
    """Uniform random numbers that it needs for a batch besides lambda."""

    makes_soft_labels = True

    def __init__(self, alpha: float = 1.0) -> None:
        number = isinstance(alpha, (int, float)) and not isinstance(alpha, bool)
        if not number or not 0 < alpha < math.inf:
            raise ValueError(f"{self.name}: alpha must be a finite number > 0, got {alpha!r}")
        self.alpha = float(alpha)
        self._classes = 0
        self._drawn = torch.zeros(0)
        self._keys = torch.zeros(0)

    def begin(self, model: nn.Module, run: RunInfo) -> None:
        device = next(model.parameters()).device
        self._classes = run.classes
        self._drawn = torch.zeros(1 + self.numbers, dtype=torch.float64, device=device)
        self._keys = torch.zeros(run.batch_size, dtype=torch.float64, device=device)

    def draw_lambda(self, random: np.random.Generator) -> float:
        return random.beta(self.alpha, self.alpha)

    def before_step(self, info: StepInfo) -> None:
        # A method that repeats a batch gets it mixed in the same way again.
        batch = info.step // info.method.repeats
        random = randomness.generator(info.seed, batch, self.purpose)
        drawn = np.array([self.draw_lambda(random), *random.random(self.numbers)])
        for there, values in ((self._drawn, drawn), (self._keys, random.random(len(self._keys)))):
            here = torch.from_numpy(values)
            # From pinned memory, or the copy would wait for all steps that a GPU has still to do.
            there.copy_(here.pin_memory() if there.is_cuda else here, non_blocking=True)

    def batch(self, batch: Batch) -> Batch:
        count = len(batch.images)
        if count > len(self._keys):
            raise ValueError(
                f"{self.name}: a batch has {count} samples, more than batch_size={len(self._keys)}: "
                "set batch_size to that of the DataLoader"
            )
        partner = self._keys[:count].argsort()
        labels = batch.labels
        if labels.dim() == 1:
            # Not one_hot, which looks at the values: a recorded step cannot.
            classes = torch.arange(self._classes, device=labels.device)
            labels = (labels[:, None] == classes).float()
        images, share = self.mix(batch.images, partner)
        share = share.to(labels.dtype)
        mixed = share * labels + (1 - share) * labels[partner]
        return batch._replace(images=images, labels=mixed)

    def mix(self, images: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
        """(images, share of a sample's own label, 0-d) of images [B, C, H, W] and sample numbers [B]."""
        raise NotImplementedError
