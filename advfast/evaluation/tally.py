"""Counts of an evaluation, sample by sample, so that what was done counts even when it ends early."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .attacks import Entry, complaints
from .report import Accuracy, EvalReport


class Tally:
    """Which samples were right under which attack.

    Attributes:
        failures: attack -> what it raised; it is left out from then on.
        samples: number of samples that went through all attacks.
        stopped: why the evaluation ended before its time.
    """

    def __init__(self, made: Sequence[Entry]) -> None:
        self._entries = list(made)
        self._right: dict[str, list[Tensor]] = {entry.name: [] for entry in made}
        self._clean: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._nans = {entry.name: 0 for entry in made}
        self._seconds = {entry.name: 0.0 for entry in made}
        self._correct = {entry.name: 0 for entry in made}
        self._classes = 0
        self.failures: dict[str, Exception] = {}
        self.samples = 0
        self.stopped = ""

    def running(self) -> Iterator[Entry]:
        return (entry for entry in self._entries if entry.name not in self.failures)

    def correct(self, name: str) -> int:
        return self._correct[name]

    def add(
        self,
        labels: Tensor,
        classes: int,
        clean: Tensor,
        right: dict[str, Tensor],
        nans: dict[str, int],
        seconds: dict[str, float],
    ) -> None:
        """A batch: labels [B], right when clean [B], right under each attack [B], on the CPU."""
        self._labels.append(labels)
        self._clean.append(clean)
        self._classes = max(self._classes, classes)
        self.samples += len(labels)
        for entry in self.running():
            self._right[entry.name].append(right[entry.name])
            self._correct[entry.name] += int(right[entry.name].sum())
            self._nans[entry.name] += nans[entry.name]
            self._seconds[entry.name] += seconds.get(entry.name, 0.0)

    def report(
        self,
        *,
        eps: float,
        norm: str,
        seconds: float,
        model: str,
        data: str,
        class_names: tuple[str, ...] | None,
        settings: dict[str, Any],
    ) -> EvalReport:
        labels = torch.cat(self._labels)
        totals = torch.bincount(labels, minlength=self._classes).tolist()
        worst = torch.cat(self._clean)
        results, per_class = {}, {}
        for entry in self.running():
            right = torch.cat(self._right[entry.name])
            worst = worst & right
            results[entry.name] = Accuracy(int(right.sum()), self.samples)
            correct = torch.bincount(labels[right], minlength=self._classes).tolist()
            per_class[entry.name] = {
                number: Accuracy(correct[number], total)
                for number, total in enumerate(totals)
                if total
            }
        return EvalReport(
            results=results,
            eps=eps,
            norm=norm,
            seconds=seconds,
            worst=Accuracy(int(worst.sum()), self.samples),
            per_class=per_class,
            class_names=class_names,
            attacks={entry.name: entry.words for entry in self._entries},
            attack_seconds={entry.name: self._seconds[entry.name] for entry in self.running()},
            model=model,
            data=data,
            settings=settings,
            warnings=tuple(self._warnings(eps, norm)),
            errors={
                name: f"{type(error).__name__}: {error}" for name, error in self.failures.items()
            },
        )

    def _warnings(self, eps: float, norm: str) -> Iterator[str]:
        if self.stopped:
            yield f"ended early ({self.stopped}); the numbers are of those"
        for entry in self.running():
            nans = self._nans[entry.name]
            if nans:
                yield f"{entry.name}: {nans} samples have NaN among their logits; counted as wrong"
            yield from complaints(entry, eps, norm)
