"""A report as plain values, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from advfast.attacks.sanity import Finding, Sweep

from .accuracy import Accuracy
from .confusion import Confusion
from .examples import Example

if TYPE_CHECKING:
    from .report import EvalReport

FORMAT = "advfast-evaluation-2"
_OLDER = ("advfast-evaluation-1",)
"""Formats that are a part of this one."""


def plain(report: EvalReport) -> dict[str, Any]:
    """What JSON takes."""
    return {
        "format": FORMAT,
        "model": report.model,
        "data": report.data,
        "samples": report.samples,
        "eps": report.eps,
        "norm": report.norm,
        "seconds": report.seconds,
        "results": {name: accuracy.to_dict() for name, accuracy in report.results.items()},
        "worst": None if report.worst is None else report.worst.to_dict(),
        "stages": {
            name: {part: accuracy.to_dict() for part, accuracy in parts.items()}
            for name, parts in report.stages.items()
        },
        "findings": [finding.to_dict() for finding in report.findings],
        "warnings": list(report.warnings),
        "errors": report.errors,
        "per_class": {
            name: {
                str(number): {"correct": accuracy.correct, "total": accuracy.total}
                for number, accuracy in classes.items()
            }
            for name, classes in report.per_class.items()
        },
        "class_names": None if report.class_names is None else list(report.class_names),
        "confusion": {name: found.to_dict() for name, found in report.confusion.items()},
        "curves": None if report.curves is None else report.curves.to_dict(),
        "examples": [example.to_dict() for example in report.examples],
        "attacks": report.attacks,
        "attack_seconds": report.attack_seconds,
        "costs": {
            name: {"forwards": cost.forwards, "backwards": cost.backwards}
            for name, cost in report.costs.items()
        },
        "settings": report.settings,
        "reproduce": report.reproduce,
        "fingerprint": report.fingerprint,
        "versions": report.versions,
    }


def fields_of(content: dict[str, Any]) -> dict[str, Any]:
    """The arguments of EvalReport.

    Raises:
        ValueError: `content` is not what `plain` makes.
    """
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if found not in (FORMAT, *_OLDER):
        raise ValueError(
            f"expected an evaluation of format {' or '.join((FORMAT, *_OLDER))}, got {found!r}"
        )
    names = content["class_names"]
    fields = {
        "results": _accuracies(content["results"]),
        "eps": content["eps"],
        "norm": content["norm"],
        "seconds": content["seconds"],
        "worst": None if content["worst"] is None else Accuracy.from_dict(content["worst"]),
        "per_class": {
            name: {int(number): Accuracy.from_dict(one) for number, one in classes.items()}
            for name, classes in content["per_class"].items()
        },
        "class_names": None if names is None else tuple(names),
        "attacks": dict(content["attacks"]),
        "attack_seconds": dict(content["attack_seconds"]),
        "model": content["model"],
        "data": content["data"],
        "settings": dict(content["settings"]),
        "warnings": tuple(content["warnings"]),
        "errors": dict(content["errors"]),
        "versions": dict(content["versions"]),
    }
    return fields if found in _OLDER else {**fields, **_newer(content)}


def _newer(content: dict[str, Any]) -> dict[str, Any]:
    """What the first format did not have."""
    from .report import Cost

    curves = content["curves"]
    return {
        "stages": {name: _accuracies(parts) for name, parts in content["stages"].items()},
        "confusion": {name: Confusion.from_dict(of) for name, of in content["confusion"].items()},
        "costs": {
            name: Cost(int(cost["forwards"]), int(cost["backwards"]))
            for name, cost in content["costs"].items()
        },
        "findings": tuple(Finding.from_dict(one) for one in content["findings"]),
        "curves": None if curves is None else Sweep.from_dict(curves),
        "examples": tuple(Example.from_dict(one) for one in content["examples"]),
        "reproduce": dict(content["reproduce"]),
        "fingerprint": dict(content["fingerprint"]),
    }


def _accuracies(content: dict[str, Any]) -> dict[str, Accuracy]:
    return {name: Accuracy.from_dict(one) for name, one in content.items()}
