"""A report as a table for the terminal."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from .accuracy import Accuracy
from .words import many

if TYPE_CHECKING:
    from .report import EvalReport

_CLASSES_SHOWN = 20
_WIDTH = 100


def table_of(report: EvalReport) -> str:
    blocks = [report.heading(), _accuracies(report), _classes(report)]
    blocks += [_finding(report, number) for number in range(len(report.findings))]
    blocks += [f"{name}: no result: {reason}" for name, reason in report.errors.items()]
    blocks += [f"warning: {warning}" for warning in report.warnings]
    return "\n\n".join(block for block in blocks if block)


def _accuracies(report: EvalReport) -> str:
    table = [["attack", "accuracy", "95 % interval", "right", "seconds", "passes"]]
    for name, accuracy in report.rows().items():
        seconds, cost = report.attack_seconds.get(name), report.costs.get(name)
        took = "" if seconds is None else f"{seconds:.1f}"
        passes = "" if cost is None else _passes(cost.forwards, cost.backwards)
        table.append([name, *_cells(accuracy), took, passes])
        for part, after in report.stages.get(name, {}).items():
            table.append([f"  {part}", *_cells(after), "", ""])
    if not report.costs:
        table = [row[:-1] for row in table]
    notes = []
    if report.stages:
        notes.append("indented: after this part of the attack and those before it")
    if report.costs:
        notes.append("passes: images through the model, forwards + backwards")
    return "\n".join([aligned(table), *notes])


def _cells(accuracy: Accuracy) -> list[str]:
    low, high = accuracy.interval
    return [
        f"{100 * accuracy.value:.1f} %",
        f"[{100 * low:.1f}, {100 * high:.1f}]",
        f"{accuracy.correct}/{accuracy.total}",
    ]


def _passes(forwards: int, backwards: int) -> str:
    return f"{many(forwards)} + {many(backwards)}" if backwards else many(forwards)


def _classes(report: EvalReport) -> str:
    if not report.per_class:
        return ""
    attacks = list(report.per_class)
    last = report.per_class[attacks[-1]]
    shown, note = sorted(last), ""
    if len(shown) > _CLASSES_SHOWN:
        shown = sorted(last, key=lambda number: (last[number].value, number))[:_CLASSES_SHOWN]
        note = f"\nthe {_CLASSES_SHOWN} of {len(last)} classes that are lowest under {attacks[-1]}"
    strongest = report.strongest() or attacks[-1]
    confused = report.confusion.get(strongest)
    table = [["class", "samples", *attacks]]
    if confused is not None:
        table[0].append(f"mostly taken for ({strongest})")
    for number in shown:
        cells = [f"{100 * report.per_class[name][number].value:.1f} %" for name in attacks]
        if confused is not None:
            found = confused.mostly(number)
            cells.append("-" if found is None else f"{report.name_of(found[0])}, {found[1]}x")
        table.append([report.name_of(number), str(last[number].total), *cells])
    return aligned(table) + note


def _finding(report: EvalReport, number: int) -> str:
    finding = report.findings[number]
    lines = textwrap.wrap(f"doubtful: {finding.code}: {finding.message}", _WIDTH)
    lines += textwrap.wrap(
        f"try: {finding.advice}", _WIDTH, initial_indent="  ", subsequent_indent="  "
    )
    return "\n".join(lines)


def aligned(table: list[list[str]]) -> str:
    """First column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = []
    for first, *others in table:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip())
    return "\n".join(lines)
