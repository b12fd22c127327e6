"""The runs of a study, one after the other: saved as they come, gone on with after a kill."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from advfast.evaluation.words import duration, versions
from advfast.files import clean_temporaries
from advfast.invocation import asked

from .result import RECORD, Draw, Expectation, Row, StudyResult, load_study

Cell = Mapping[str, Any]
"""What is varied -> value, of one run: texts, numbers, True, False or None."""


def run_grid(
    name: str,
    cells: Iterable[Cell],
    measure: Callable[..., Mapping[str, Any]],
    *,
    settings: Mapping[str, Any],
    expect: Callable[[StudyResult], list[Expectation]] | None = None,
    notes: Callable[[StudyResult], list[str]] | None = None,
    tables: Callable[[StudyResult], dict[str, list[Row]]] | None = None,
    draw: Draw | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    at_once: Sequence[str] = (),
) -> StudyResult:
    """Calls ``measure(**cell)`` for every cell; study.json is written anew after each.

    Args:
        name: of the study.
        cells: all with the same keys.
        measure: returns the measures of a run, all with the same keys, numbers or None.
        settings: arguments of the study that are the same in all cells, as plain values: a study is gone on with only
            where they are the same.
        expect: result -> expectations; called at the end.
        notes: result -> lines to show below the table, likewise.
        tables: result -> further tables; called before those two.
        out: folder; None writes nothing.
        resume: go on with the study in `out`, if there is one: cells that it has are not run again, and cells that are
            no longer asked for leave it.
        overwrite: replace a study in `out`.
        progress: say on standard error what is done and what is left.
        at_once: keys of the cells; those with the same values there that follow each other are written, and told of,
            together: where `measure` computes them so.

    Raises:
        FileExistsError: `out` holds a study, and neither `resume` nor `overwrite` is set.
        ValueError: `resume` without `out`, with `overwrite`, or with other settings than before.
    """
    cells = [dict(cell) for cell in cells]
    if not cells:
        raise ValueError(f"study {name}: there is nothing to run")
    settings = dict(settings)
    known = _known(name, out, settings, resume=resume, overwrite=overwrite)
    varied = tuple(cells[0])
    found = {_key(row, varied): row for row in known}
    left = sum(_key(cell, varied) not in found for cell in cells)
    if progress and left < len(cells):
        print(f"{name}: {len(cells) - left} of {len(cells)} runs are there", file=sys.stderr)
    began, done = time.monotonic(), 0
    rows: list[Row] = []
    result = StudyResult(
        name, settings | {"versions": versions()}, varied, (), rows, draw=draw, reproduce=asked()
    )
    for number, cell in enumerate(cells, 1):
        row = found.pop(_key(cell, varied), None)
        if row is not None:
            rows.append(row)
            continue
        row = {**cell, **measure(**cell)}
        rows.append(row)
        result.measures = tuple(key for key in row if key not in varied)
        done, left = done + 1, left - 1
        shown = {key: cell[key] for key in at_once or varied}
        if at_once and number < len(cells) and shown.items() <= cells[number].items():
            continue
        if out is not None:
            Path(out).mkdir(parents=True, exist_ok=True)
            # With those that come later, so that a kill loses none.
            replace(result, rows=[*rows, *found.values()]).write_record(Path(out))
        if progress:
            words = ", ".join(f"{key} {value}" for key, value in shown.items())
            until = f", {duration((time.monotonic() - began) / done * left)} left" if left else ""
            print(f"{name}: {words}: done ({number} of {len(cells)}{until})", file=sys.stderr)
    result.measures = tuple(key for key in rows[0] if key not in varied)
    if tables is not None:
        result.tables = tables(result)
    if expect is not None:
        result.expectations = expect(result)
    if notes is not None:
        result.notes = notes(result)
    if out is not None:
        result.save(out)
    return result


def check_out(out: str | Path | None, *, resume: bool, overwrite: bool) -> None:
    """What `run_grid` says of its folder, for studies with work to do before it.

    Raises:
        FileExistsError, ValueError: as `run_grid`, but for other settings.
    """
    if resume and (out is None or overwrite):
        raise ValueError(
            "resume needs `out`, the folder of the study to go on with, and no overwrite"
        )
    if out is not None and (Path(out) / RECORD).exists() and not (resume or overwrite):
        raise FileExistsError(
            f"{out} already holds a study; go on with it (resume=True, --resume), replace it (overwrite=True, "
            "--overwrite) or choose another folder"
        )


def _key(row: Mapping[str, Any], varied: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in varied)


def _known(
    name: str, out: str | Path | None, settings: dict[str, Any], *, resume: bool, overwrite: bool
) -> list[Row]:
    """The rows of the study to go on with."""
    check_out(out, resume=resume, overwrite=overwrite)
    if out is None or overwrite:
        return []
    record = Path(out) / RECORD
    if not record.exists():
        return []
    clean_temporaries(out)
    before = load_study(record)
    if before.name != name:
        raise ValueError(f"{out} holds the study {before.name!r}, not {name!r}")
    old = {key: value for key, value in before.settings.items() if key != "versions"}
    differences = [
        f"{key} was {old.get(key)!r} and is now {settings.get(key)!r}"
        for key in {**old, **settings}
        if old.get(key) != settings.get(key)
    ]
    if differences:
        raise ValueError(
            f"{out} holds a study with other settings: {'; '.join(differences)}. Give the same ones to go on with it, "
            "or another folder"
        )
    return before.rows
