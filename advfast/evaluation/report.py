"""What an evaluation found."""

from __future__ import annotations

import math
import platform
import warnings as python_warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from advfast.files import write_atomic, write_json, write_text

from .figure import draw_report
from .picture import PictureSkipped

_FORMAT = "advfast-evaluation-1"
_Z95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""

_CLASSES_SHOWN = 20
JSON, TEXT, FIGURE = "evaluation.json", "evaluation.txt", "evaluation.png"


def versions() -> dict[str, str]:
    from advfast import __version__

    return {
        "advfast": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class Accuracy:
    """`correct` of `total` samples."""

    correct: int
    total: int

    @property
    def value(self) -> float:
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval: the uncertainty from the number of samples, not from training."""
        n, p, z = self.total, self.value, _Z95
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} %  (95 % interval {100 * low:.1f} .. {100 * high:.1f}, n = {self.total})"

    def to_dict(self) -> dict[str, Any]:
        return {
            "accuracy": self.value,
            "correct": self.correct,
            "total": self.total,
            "interval_95": list(self.interval),
        }


@dataclass(frozen=True)
class EvalReport:
    """Accuracy under each attack: ``report["pgd-20"].value``.

    Attributes:
        results: attack -> Accuracy, in the order asked for.
        eps: radius of the attacks, pixel units.
        norm: norm of the attacks.
        seconds: wall time of everything.
        worst: samples that are right when clean and under every attack; also ``report["worst"]``.
        per_class: attack -> class -> Accuracy, for the classes that occur.
        class_names: name of each class, if known.
        attacks: attack -> what it is, in words.
        attack_seconds: attack -> wall time.
        model, data: what was evaluated, in words.
        settings: batch_size, seed, precision, limit.
        warnings: what makes a number doubtful, in words; empty when all is well.
        errors: attack -> why it has no result.
        versions: of advfast, torch and Python.
    """

    results: dict[str, Accuracy]
    eps: float
    norm: str
    seconds: float
    worst: Accuracy | None = None
    per_class: dict[str, dict[int, Accuracy]] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    attacks: dict[str, str] = field(default_factory=dict)
    attack_seconds: dict[str, float] = field(default_factory=dict)
    model: str = ""
    data: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    errors: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)

    @property
    def samples(self) -> int:
        """Number of samples that the accuracies are of."""
        accuracy = next(iter(self.results.values()), self.worst)
        return 0 if accuracy is None else accuracy.total

    def __getitem__(self, attack: str) -> Accuracy:
        if attack == "worst" and attack not in self.results and self.worst is not None:
            return self.worst
        if attack not in self.results:
            reason = self.errors.get(attack)
            known = ", ".join(self.results)
            raise KeyError(
                f"{attack!r} failed: {reason}" if reason else f"{attack!r} is none of {known}"
            )
        return self.results[attack]

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def rows(self) -> dict[str, Accuracy]:
        """The results, then "worst" where there is more than one attack to be the worst of."""
        rows = dict(self.results)
        attacked = [name for name in rows if name != "clean"]
        if self.worst is not None and len(attacked) > 1 and "worst" not in rows:
            rows["worst"] = self.worst
        return rows

    def name_of(self, number: int) -> str:
        """A class in words: its number, and its name if known."""
        names = self.class_names
        known = names is not None and number < len(names) and names[number] != str(number)
        return f"{number} {names[number]}" if names is not None and known else str(number)

    def __str__(self) -> str:
        blocks = [self._heading(), _aligned(self._accuracies()), self._classes()]
        blocks += [f"{name}: no result: {reason}" for name, reason in self.errors.items()]
        blocks += [f"warning: {warning}" for warning in self.warnings]
        return "\n\n".join(block for block in blocks if block)

    def _heading(self) -> str:
        parts = [part for part in (self.model, self.data) if part]
        what = f"{' on '.join(parts)}: " if parts else ""
        return f"{what}{self.samples} samples, {self.norm} eps {self.eps:.4g}"

    def _accuracies(self) -> list[list[str]]:
        table = [["attack", "accuracy", "95 % interval", "right", "seconds"]]
        for name, accuracy in self.rows().items():
            low, high = accuracy.interval
            seconds = self.attack_seconds.get(name)
            table.append(
                [
                    name,
                    f"{100 * accuracy.value:.1f} %",
                    f"[{100 * low:.1f}, {100 * high:.1f}]",
                    f"{accuracy.correct}/{accuracy.total}",
                    "" if seconds is None else f"{seconds:.1f}",
                ]
            )
        return table

    def _classes(self) -> str:
        if not self.per_class:
            return ""
        attacks = list(self.per_class)
        last = self.per_class[attacks[-1]]
        shown, note = sorted(last), ""
        if len(shown) > _CLASSES_SHOWN:
            shown = sorted(last, key=lambda number: (last[number].value, number))[:_CLASSES_SHOWN]
            note = (
                f"\nthe {_CLASSES_SHOWN} of {len(last)} classes that are lowest under {attacks[-1]}"
            )
        table = [["class", "samples", *attacks]]
        for number in shown:
            cells = [f"{100 * self.per_class[name][number].value:.1f} %" for name in attacks]
            table.append([self.name_of(number), str(last[number].total), *cells])
        return _aligned(table) + note

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `from_dict` takes them back."""
        return {
            "format": _FORMAT,
            "model": self.model,
            "data": self.data,
            "samples": self.samples,
            "eps": self.eps,
            "norm": self.norm,
            "seconds": self.seconds,
            "results": {name: accuracy.to_dict() for name, accuracy in self.results.items()},
            "worst": None if self.worst is None else self.worst.to_dict(),
            "per_class": {
                name: {
                    str(number): {"correct": accuracy.correct, "total": accuracy.total}
                    for number, accuracy in classes.items()
                }
                for name, classes in self.per_class.items()
            },
            "class_names": None if self.class_names is None else list(self.class_names),
            "attacks": self.attacks,
            "attack_seconds": self.attack_seconds,
            "settings": self.settings,
            "warnings": list(self.warnings),
            "errors": self.errors,
            "versions": self.versions,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> EvalReport:
        """The report that `to_dict` was made from.

        Raises:
            ValueError: `content` is no such dictionary.
        """
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            got = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"expected an evaluation of format {_FORMAT}, got {got!r}")
        names = content["class_names"]
        return cls(
            results={name: _accuracy(found) for name, found in content["results"].items()},
            eps=content["eps"],
            norm=content["norm"],
            seconds=content["seconds"],
            worst=None if content["worst"] is None else _accuracy(content["worst"]),
            per_class={
                name: {int(number): _accuracy(found) for number, found in classes.items()}
                for name, classes in content["per_class"].items()
            },
            class_names=None if names is None else tuple(names),
            attacks=dict(content["attacks"]),
            attack_seconds=dict(content["attack_seconds"]),
            model=content["model"],
            data=content["data"],
            settings=dict(content["settings"]),
            warnings=tuple(content["warnings"]),
            errors=dict(content["errors"]),
            versions=dict(content["versions"]),
        )

    def save(self, folder: str | Path) -> list[Path]:
        """Writes evaluation.json, evaluation.txt and evaluation.png, each whole or not at all; replaces older ones.

        Without matplotlib there is no PNG, and a warning says so.

        Returns:
            The files.

        Raises:
            OSError: a file cannot be written, with the reason; those before it are there.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / JSON, self.to_dict())
        write_text(folder / TEXT, f"{self}\n")
        written = [folder / JSON, folder / TEXT]
        try:
            write_atomic(folder / FIGURE, lambda stream: draw_report(stream, self))
        except PictureSkipped as reason:
            (folder / FIGURE).unlink(missing_ok=True)  # it would be of an older evaluation
            python_warnings.warn(str(reason), RuntimeWarning, stacklevel=2)
        else:
            written.append(folder / FIGURE)
        return written


def _accuracy(content: dict[str, Any]) -> Accuracy:
    return Accuracy(int(content["correct"]), int(content["total"]))


def _aligned(table: list[list[str]]) -> str:
    """First column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = []
    for first, *others in table:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip())
    return "\n".join(lines)
