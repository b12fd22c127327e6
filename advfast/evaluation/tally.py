"""What an evaluation counted, sample by sample, so that what was done counts even when it ends early."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from advfast.attacks.sanity import Finding, Sweep

from .accuracy import Accuracy
from .attacks import Entry, Outside
from .examples import Example, merged


@dataclass
class Outcome:
    """What one batch came to; tensors on the CPU.

    Attributes:
        labels: [B] int64.
        classes: number of logits.
        clean: [B] int32 class predicted on the clean images, -1 where the logits contain NaN.
        predicted: attack -> the same on its images; those that are wrong when clean are not attacked.
        nans: attack -> samples with NaN among their logits.
        seconds: attack -> wall time.
        stages: attack -> part -> samples still right after it.
        examples: attack -> samples that it broke, see `examples.surest`.
    """

    labels: Tensor
    classes: int
    clean: Tensor
    predicted: dict[str, Tensor] = field(default_factory=dict)
    nans: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    stages: dict[str, dict[str, int]] = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)

    @property
    def clean_right(self) -> int:
        return int((self.clean == self.labels).sum())


class Tally:
    """The outcomes of all batches so far, and what was found about the model.

    Attributes:
        entries: the attacks.
        errors: attack -> what it raised, in words; it is left out from then on.
        raised: the first of these exceptions, where it was raised in this process.
        samples, batches: how many went through all attacks.
        classes: number of logits.
        stopped: why the evaluation ended before its time.
        findings, curves: of the sanity checks.
        notes: further warnings.
    """

    def __init__(self, made: Sequence[Entry]) -> None:
        self.entries = list(made)
        names = [entry.name for entry in made]
        self._labels: list[Tensor] = []
        self._clean: list[Tensor] = []
        self._predicted: dict[str, list[Tensor]] = {name: [] for name in names}
        self._correct = dict.fromkeys(names, 0)
        self._nans = dict.fromkeys(names, 0)
        self._seconds = dict.fromkeys(names, 0.0)
        self._stages: dict[str, list[dict[str, int]]] = {name: [] for name in names}
        self._examples: dict[str, list[Example]] = {name: [] for name in names}
        self.errors: dict[str, str] = {}
        self.raised: Exception | None = None
        self.samples = self.batches = self.classes = 0
        self.stopped = ""
        self.findings: tuple[Finding, ...] = ()
        self.curves: Sweep | None = None
        self.notes: list[str] = []

    def running(self) -> Iterator[Entry]:
        return (entry for entry in self.entries if entry.name not in self.errors)

    def correct(self, name: str) -> int:
        """Samples so far that are right under an attack."""
        return self._correct[name]

    def seconds(self, name: str) -> float:
        """Wall time of an attack so far."""
        return self._seconds[name]

    def nans(self, name: str) -> int:
        return self._nans[name]

    def failed(self, name: str, error: Exception) -> None:
        self.errors[name] = f"{type(error).__name__}: {error}"
        self.raised = self.raised or error

    def add(self, outcome: Outcome) -> None:
        self._labels.append(outcome.labels)
        self._clean.append(outcome.clean)
        self.classes = max(self.classes, outcome.classes)
        self.samples += len(outcome.labels)
        self.batches += 1
        for entry in self.running():
            name = entry.name
            predicted = outcome.predicted[name]
            self._predicted[name].append(predicted)
            self._correct[name] += int((predicted == outcome.labels).sum())
            self._nans[name] += outcome.nans[name]
            self._seconds[name] += outcome.seconds.get(name, 0.0)
            self._stages[name].append({"": outcome.clean_right, **outcome.stages.get(name, {})})
            self._examples[name] = merged(self._examples[name], outcome.examples.get(name, []))

    def labels(self) -> Tensor:
        """[N] int64."""
        return torch.cat(self._labels)

    def clean(self) -> Tensor:
        """[N] int32 classes predicted on the clean images."""
        return torch.cat(self._clean)

    def predicted(self, name: str) -> Tensor:
        """[N] int32 classes predicted on the images of an attack."""
        return torch.cat(self._predicted[name])

    def examples(self, name: str) -> list[Example]:
        return self._examples[name]

    def stages(self, name: str) -> dict[str, Accuracy]:
        """Part of an attack -> samples that are still right after it and those before it; {} for an attack of one."""
        parts = dict.fromkeys(part for batch in self._stages[name] for part in batch if part)
        totals = dict.fromkeys(parts, 0)
        for batch in self._stages[name]:
            still = batch[""]
            for part in parts:
                # A batch that was broken before a part never came to it.
                still = batch.get(part, still)
                totals[part] += still
        return {part: Accuracy(count, self.samples) for part, count in totals.items()}

    def state(self) -> dict[str, Any]:
        """Everything, as plain values and tensors."""
        return {
            "labels": self.labels(),
            "clean": self.clean(),
            "predicted": {entry.name: self.predicted(entry.name) for entry in self.running()},
            "nans": dict(self._nans),
            "seconds": dict(self._seconds),
            "stages": {name: list(of) for name, of in self._stages.items()},
            "examples": {
                name: [one.to_dict(images=True) for one in of]
                for name, of in self._examples.items()
            },
            "errors": dict(self.errors),
            "batches": self.batches,
            "classes": self.classes,
            "findings": [finding.to_dict() for finding in self.findings],
            "curves": None if self.curves is None else self.curves.to_dict(),
            "notes": list(self.notes),
            "entries": {entry.name: _entry_state(entry) for entry in self.entries},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`, into a new tally of the same attacks.

        Raises:
            KeyError, TypeError: something is missing.
        """
        self._labels, self._clean = [state["labels"]], [state["clean"]]
        self._predicted |= {name: [of] for name, of in state["predicted"].items()}
        self._correct |= {
            name: int((of == state["labels"]).sum()) for name, of in state["predicted"].items()
        }
        self._nans, self._seconds = dict(state["nans"]), dict(state["seconds"])
        self._stages = {name: list(of) for name, of in state["stages"].items()}
        self._examples = {
            name: [Example.from_dict(one) for one in of] for name, of in state["examples"].items()
        }
        self.errors = dict(state["errors"])
        self.samples = len(state["labels"])
        self.batches, self.classes = state["batches"], state["classes"]
        self.findings = tuple(Finding.from_dict(one) for one in state["findings"])
        self.curves = None if state["curves"] is None else Sweep.from_dict(state["curves"])
        self.notes = list(state["notes"])
        for entry in self.entries:
            _restore_entry(entry, state["entries"][entry.name])


_COUNTED = ("nonfinite", "forwards", "backwards")


def _entry_state(entry: Entry) -> dict[str, Any]:
    counted = {name: getattr(entry, name) for name in _COUNTED}
    return {**counted, "outside": asdict(entry.outside), "wrote": sorted(entry.wrote)}


def _restore_entry(entry: Entry, state: Mapping[str, Any]) -> None:
    for name in _COUNTED:
        setattr(entry, name, state[name])
    entry.outside, entry.wrote = Outside(**state["outside"]), set(state["wrote"])
