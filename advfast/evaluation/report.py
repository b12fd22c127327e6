"""What an evaluation found."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advfast.attacks.sanity import Finding, Sweep
from advfast.files import write_bytes, write_json, write_text

from .accuracy import Accuracy as Accuracy
from .confusion import Confusion
from .content import fields_of, plain
from .examples import Example
from .text import table_of
from .words import radius
from .words import versions as versions

JSON, TEXT, FIGURE = "evaluation.json", "evaluation.txt", "evaluation.png"
PAGE, CURVES, EXAMPLES = "evaluation.html", "evaluation-curves.png", "evaluation-examples.png"


@dataclass(frozen=True)
class Cost:
    """Images that went through the model in an attack, `backwards` of them with a gradient."""

    forwards: int
    backwards: int


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
        stages: attack -> part -> Accuracy after that part and those before it, of an attack of several parts.
        confusion: attack -> what the samples of each class were taken for under it.
        costs: attack -> images that went through the model, where the attack counts them.
        findings: reasons to doubt the robust accuracies, each with what to try.
        curves: PGD against its radius and its steps on the first batch; None where it was not asked for.
        examples: the surest of the samples that the strongest attack broke, surest first.
        reproduce: "call" and, from the command line, "command": what gives this report again.
        fingerprint: settings, weights and data, where it was written to a folder; see `evaluate` on `resume`.
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
    stages: dict[str, dict[str, Accuracy]] = field(default_factory=dict)
    confusion: dict[str, Confusion] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    curves: Sweep | None = None
    examples: tuple[Example, ...] = ()
    reproduce: dict[str, str] = field(default_factory=dict)
    fingerprint: dict[str, Any] = field(default_factory=dict)

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

    def strongest(self) -> str | None:
        """The attack with the lowest accuracy, other than "clean", of equals the last; None without any."""
        attacked = [name for name in reversed(self.results) if name != "clean"]
        return min(attacked, key=lambda name: self.results[name].correct, default=None)

    def name_of(self, number: int) -> str:
        """A class in words: its number, and its name if known."""
        names = self.class_names
        known = names is not None and number < len(names) and names[number] != str(number)
        return f"{number} {names[number]}" if names is not None and known else str(number)

    def heading(self) -> str:
        """What was evaluated, in one line."""
        parts = [part for part in (self.model, self.data) if part]
        what = f"{' on '.join(parts)}: " if parts else ""
        return f"{what}{self.samples} samples, {self.norm} eps {radius(self.eps, self.norm)}"

    def __str__(self) -> str:
        return table_of(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `from_dict` takes them back."""
        return plain(self)

    @classmethod
    def from_dict(cls, written: dict[str, Any]) -> EvalReport:
        """The report that `to_dict` was made from, also by an older version; without the images of the examples.

        Raises:
            ValueError: it is no such dictionary.
        """
        return cls(**fields_of(written))

    def html(self) -> str:
        """One page that opens without a network, figures inside.

        Without matplotlib it has no figures.
        """
        from .page import render

        return render(self)

    def save(self, folder: str | Path, *, page: bool = False) -> list[Path]:
        """Writes evaluation.json, evaluation.txt and evaluation.png, each whole or not at all; replaces older ones.

        Without matplotlib there is no PNG, and a warning says so.

        Args:
            page: also evaluation.html, and, where there is something to draw, evaluation-curves.png and
                evaluation-examples.png.

        Returns:
            The files.

        Raises:
            OSError: a file cannot be written, with the reason; those before it are there.
        """
        from .figures import drawn

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / JSON, self.to_dict())
        write_text(folder / TEXT, f"{self}\n")
        written = [folder / JSON, folder / TEXT]
        figures, reason = drawn(self, (FIGURE, CURVES, EXAMPLES) if page else (FIGURE,))
        for name in (FIGURE, CURVES, EXAMPLES):
            # What is there already would be of an older evaluation.
            (folder / name).unlink(missing_ok=True)
        for name, picture in figures.items():
            write_bytes(folder / name, picture)
            written.append(folder / name)
        if page:
            from .page import render

            write_text(folder / PAGE, render(self, figures))
            written.append(folder / PAGE)
        else:
            (folder / PAGE).unlink(missing_ok=True)
        if reason:
            python_warnings.warn(reason, RuntimeWarning, stacklevel=2)
        return written
