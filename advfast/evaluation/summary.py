"""The report of what was counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from advfast.attacks.sanity import Finding, compare

from .accuracy import Accuracy
from .attacks import Entry, complaints
from .confusion import confusion
from .report import Cost, EvalReport
from .tally import Tally


def summarise(
    tally: Tally,
    *,
    eps: float,
    norm: str,
    seconds: float,
    model: str,
    data: str,
    class_names: tuple[str, ...] | None,
    settings: Mapping[str, Any],
    reproduce: Mapping[str, str],
    fingerprint: Mapping[str, Any],
) -> EvalReport:
    """Of the batches so far, at least one."""
    labels = tally.labels()
    totals = torch.bincount(labels, minlength=tally.classes).tolist()
    worst = tally.clean() == labels
    results, per_class, confused, stages = {}, {}, {}, {}
    for entry in tally.running():
        predicted = tally.predicted(entry.name)
        right = predicted == labels
        worst &= right
        results[entry.name] = Accuracy(int(right.sum()), tally.samples)
        correct = torch.bincount(labels[right], minlength=tally.classes).tolist()
        per_class[entry.name] = {
            number: Accuracy(correct[number], total) for number, total in enumerate(totals) if total
        }
        confused[entry.name] = confusion(labels, predicted, tally.classes)
        parts = tally.stages(entry.name)
        if len(parts) > 1:
            stages[entry.name] = parts
    shown = _strongest(tally)
    return EvalReport(
        results=results,
        eps=eps,
        norm=norm,
        seconds=seconds,
        worst=Accuracy(int(worst.sum()), tally.samples),
        per_class=per_class,
        class_names=class_names,
        attacks={entry.name: entry.words for entry in tally.entries},
        attack_seconds={entry.name: tally.seconds(entry.name) for entry in tally.running()},
        model=model,
        data=data,
        settings=dict(settings),
        warnings=tuple(_warnings(tally, eps, norm)),
        errors=dict(tally.errors),
        stages=stages,
        confusion=confused,
        costs={
            entry.name: Cost(entry.forwards, entry.backwards)
            for entry in tally.running()
            if entry.forwards
        },
        findings=tuple(_findings(tally, results, stages)),
        curves=tally.curves,
        examples=() if shown is None else tuple(tally.examples(shown.name)),
        reproduce=dict(reproduce),
        fingerprint=dict(fingerprint),
    )


def _strongest(tally: Tally) -> Entry | None:
    """The attack with the lowest accuracy, of equals the last, whose examples are shown."""
    attacks = [entry for entry in tally.running() if entry.craft is not None][::-1]
    return min(attacks, key=lambda entry: tally.correct(entry.name), default=None)


def _findings(
    tally: Tally,
    results: Mapping[str, Accuracy],
    stages: Mapping[str, Mapping[str, Accuracy]],
) -> Iterator[Finding]:
    """Of the checks on the first batch, and of what the attacks say about one another."""
    yield from tally.findings
    told = {finding.code for finding in tally.findings}
    if tally.curves is not None:
        yield from (one for one in tally.curves.findings if one.code not in told)
    for parts in stages.values():
        yield from compare(_values(parts), samples=tally.samples)
    yield from compare({}, _values(results), samples=tally.samples)


def _values(of: Mapping[str, Accuracy]) -> dict[str, float]:
    return {name: accuracy.value for name, accuracy in of.items()}


def _warnings(tally: Tally, eps: float, norm: str) -> Iterator[str]:
    if tally.stopped:
        yield tally.stopped
    yield from tally.notes
    for entry in tally.running():
        nans = tally.nans(entry.name)
        if nans:
            yield f"{entry.name}: {nans} samples have NaN among their logits; counted as wrong"
        yield from complaints(entry, eps, norm)
