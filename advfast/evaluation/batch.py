"""All attacks on one batch."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from advfast.attacks.state import crafting

from .attacks import Entry, distances, inspect_results
from .examples import surest
from .inputs import check_labels, logits_of
from .progress import Progress
from .report import EvalReport
from .tally import Outcome, Tally


class AttackFailed(RuntimeError):
    """A callable attack raised or returned something else than images.

    Attributes:
        report: what the other attacks found; None where the attack failed at once.
    """

    def __init__(self, message: str, report: EvalReport | None = None) -> None:
        super().__init__(message)
        self.report = report


def failure(name: str, reason: str) -> str:
    return f"attack {name!r}, called as attack(model, images, labels), failed: {reason}"


class Batch:
    """Some samples, and what the model makes of them when clean.

    Args:
        images: [B, ...] as the model takes them.
        labels, numbers: [B] classes and sample numbers.
        known: labels to check: those of the batch, or of all samples where they are known.

    Raises:
        TypeError, ValueError: pixels outside [0, 1], wrong labels, or the model's output is wrong.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        images: Tensor,
        labels: Tensor,
        numbers: Tensor,
        known: Tensor,
    ) -> None:
        began = time.perf_counter()
        self.model, self.images, self.labels, self.numbers = model, images, labels, numbers
        _check_pixels(images)
        with crafting(model, "eval"):
            self.logits = logits_of(model, images)
        check_labels(known, self.logits.shape[1])
        self.clean = _classes(self.logits)
        self.seconds = time.perf_counter() - began

    def attacked(self, tally: Tally, eps: float, norm: str, progress: Progress) -> Outcome:
        """Every attack of the tally that still runs, on the samples that are right when clean.

        Raises:
            AttackFailed: a callable attack raised in the very first batch.
        """
        outcome = Outcome(self.labels.cpu(), self.logits.shape[1], self.clean.cpu())
        nan_when_clean = int((self.clean < 0).sum())
        with crafting(self.model, "eval"):
            for entry in tally.running():
                progress.begin(len(self.labels))
                outcome.predicted[entry.name], outcome.nans[entry.name] = outcome.clean, 0
                if entry.craft is None:
                    outcome.nans[entry.name] = nan_when_clean
                    outcome.seconds[entry.name] = self.seconds
                else:
                    try:
                        self._attack(entry, outcome, eps, norm, progress)
                    except Exception as error:
                        if not entry.foreign:
                            raise
                        if not tally.samples:
                            reason = f"{type(error).__name__}: {error}"
                            raise AttackFailed(failure(entry.name, reason)) from error
                        tally.failed(entry.name, error)
                        continue
                right = outcome.predicted[entry.name] == outcome.labels
                progress.done(entry, int(right.sum()))
        return outcome

    def _attack(
        self, entry: Entry, outcome: Outcome, eps: float, norm: str, progress: Progress
    ) -> None:
        left = (self.clean == self.labels).nonzero()[:, 0]  # the others are broken already
        if not len(left):
            return
        began = time.perf_counter()
        assert entry.craft is not None
        entry.watch = lambda share, right: progress.within(entry, share, right)
        try:
            images, labels, numbers = self.images[left], self.labels[left], self.numbers[left]
            adversarial = entry.craft(images, labels, numbers)
        finally:
            entry.watch = None
        if entry.foreign:
            inspect_results(entry, adversarial, images, eps, norm)
        logits = logits_of(self.model, adversarial)
        predicted = _classes(logits)
        outcome.predicted[entry.name] = self.clean.index_put((left,), predicted).cpu()
        outcome.nans[entry.name] = int((predicted < 0).sum())
        outcome.seconds[entry.name] = time.perf_counter() - began
        outcome.stages[entry.name] = {
            part: int(still.sum()) for part, still in entry.stages.items()
        }
        broken = (predicted != labels).nonzero()[:, 0]
        outcome.examples[entry.name] = surest(
            entry.name,
            images[broken],
            adversarial[broken],
            labels[broken],
            numbers[broken],
            self.logits[left][broken],
            logits[broken],
            predicted[broken],
            distances(adversarial[broken], images[broken], norm),
        )


def _classes(logits: Tensor) -> Tensor:
    """[B] int32 predicted classes; -1 where there is NaN among the logits."""
    # argmax would take the NaN for the largest, and the sample for right if it stands at the label.
    return logits.argmax(1).int().masked_fill(logits.isnan().any(1), -1)


def _check_pixels(images: Tensor) -> None:
    low, high = (float(value) for value in torch.aminmax(images))
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise ValueError(
            f"images must have pixels in [0, 1], got {low:.6g} to {high:.6g}; "
            "normalisation belongs inside the model"
        )
