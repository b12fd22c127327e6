"""The table of a sweep: a row a run, and means with standard deviations over the seeds."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advfast.files import write_json, write_text

from .result import Selected, TrainResult

TABLE, SUMMARY, RECORD = "sweep.csv", "summary.csv", "sweep.json"
FORMAT = "advfast-sweep-1"
SEED = "seed"
COMPLETE, FAILED = "complete", "failed"

Row = dict[str, Any]


def complete_row(name: str, varied: Mapping[str, Any], result: TrainResult) -> Row:
    """The row of a run: varied arguments, epochs, accuracies 0 to 1 of the best and of the last weights, seconds."""
    row: Row = {"run": name, **varied, "status": COMPLETE}
    for which, selected in (("best", result.best), ("last", result.last)):
        row |= {f"{which}_{key}": value for key, value in _measures(selected).items()}
    return row | {"seconds": result.seconds}


def failed_row(name: str, varied: Mapping[str, Any], error: str) -> Row:
    return {"run": name, **varied, "status": FAILED, "error": error}


def _measures(selected: Selected) -> dict[str, float]:
    found: dict[str, float] = {"epoch": selected.epoch}
    found |= {key: value for key, value in selected.metrics.items() if key.startswith("val_")}
    if selected.test is not None:
        found |= {f"test_{attack}": selected.test[attack].value for attack in selected.test}
    return found


@dataclass(frozen=True)
class SweepResult:
    """Outcome of `advfast.sweep`; ``print(result)`` shows the tables.

    Attributes:
        path: folder with a folder for each run, sweep.csv, summary.csv, sweep.json and sweep.png.
        varied: names of the varied arguments, "seed" last.
        rows: a run each: run (name of its folder), the varied arguments, status ("complete" or "failed"), best_epoch,
            best_val_clean, best_val_robust, best_test_<attack>, the same with last_, seconds; error of a failed one.
        arguments: those that are the same in all runs.
    """

    path: Path
    varied: tuple[str, ...]
    rows: list[Row]
    arguments: dict[str, Any]

    @property
    def failed(self) -> list[Row]:
        """Rows of the runs that failed."""
        return [row for row in self.rows if row["status"] == FAILED]

    @property
    def others(self) -> tuple[str, ...]:
        """The varied arguments but the seed: what makes a setting."""
        return tuple(name for name in self.varied if name != SEED)

    @property
    def measures(self) -> list[str]:
        """Columns of numbers, those of any run, in order."""
        plain = {"run", *self.varied, "status", "error"}
        found = dict.fromkeys(key for row in self.rows for key in row if key not in plain)
        found.pop("seconds", None)
        return [*found, "seconds"]

    @property
    def summary(self) -> list[Row]:
        """A setting each: the others, runs (complete), failed, and of each measure <measure>_mean and <measure>_std.

        The deviation is that of a sample (n - 1) over the seeds; None for fewer than two runs.
        """
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows:
            groups.setdefault(tuple(row[name] for name in self.others), []).append(row)
        return [self._setting(key, rows) for key, rows in groups.items()]

    def _setting(self, key: tuple[Any, ...], rows: list[Row]) -> Row:
        complete = [row for row in rows if row["status"] == COMPLETE]
        summary: Row = dict(zip(self.others, key, strict=True))
        summary |= {"runs": len(complete), "failed": len(rows) - len(complete)}
        for measure in self.measures:
            values = [row[measure] for row in complete if row.get(measure) is not None]
            summary[f"{measure}_mean"] = statistics.fmean(values) if values else None
            summary[f"{measure}_std"] = statistics.stdev(values) if len(values) > 1 else None
        return summary

    def accuracies(self, which: str) -> dict[str, str]:
        """Columns with the accuracies of the "best" or the "last" weights, and what to call them.

        On test data; on held-out data where no run had any.
        """
        for part, name in (("test", "test"), ("val", "held out")):
            start = f"{which}_{part}_"
            found = [column for column in self.measures if column.startswith(start)]
            if found:
                return {column: f"{name} {column.removeprefix(start)}" for column in found}
        return {}

    def setting_name(self, row: Row) -> str:
        """ "eps=0.1, steps=7" """
        return ", ".join(f"{name}={_text(row[name])}" for name in self.others) or "all"

    @property
    def averaged(self) -> str:
        """Over which seeds the means are taken."""
        seeds = list(dict.fromkeys(_text(row[SEED]) for row in self.rows))
        return f"mean over seeds {', '.join(seeds)}" if len(seeds) > 1 else f"seed {seeds[0]}"

    def __str__(self) -> str:
        best, last = self.accuracies("best"), self.accuracies("last")
        columns = [*best, *last]
        names = [
            f"{which}: {name}"
            for which, of in (("best", best), ("last", last))
            for name in of.values()
        ]
        runs = [[*self.varied, "best epoch", *names, "seconds"]]
        for row in self.rows:
            cells = [_text(row[name]) for name in self.varied]
            if row["status"] == COMPLETE:
                cells += [_text(row.get("best_epoch"))]
                cells += [_percent(row.get(column)) for column in columns]
                cells += [f"{row['seconds']:.1f}"]
            else:
                cells += [FAILED]
            runs.append(cells)
        lines = _aligned(runs)
        if len(self.failed) < len(self.rows):
            lines += ["", *self._settings_table(columns, names)]
        lines += ["", f"accuracies in %; {self.path} holds {TABLE}, {SUMMARY} and {RECORD}"]
        if self.failed:
            lines.append(f"{len(self.failed)} of {len(self.rows)} runs failed:")
            lines += [f"  {row['run']}: {row['error']}" for row in self.failed]
        return "\n".join(lines)

    def _settings_table(self, columns: Sequence[str], names: Sequence[str]) -> list[str]:
        settings = [[*self.others, "runs", *names]]
        for row in self.summary:
            cells = [_text(row[name]) for name in self.others] + [str(row["runs"])]
            cells += [
                _percent(row[f"{column}_mean"]) + _deviation(row[f"{column}_std"])
                for column in columns
            ]
            settings.append(cells)
        heading = f"{self.averaged}, ± sample standard deviation"
        if all(row["runs"] < 2 for row in self.summary):
            heading = (
                f"{self.averaged}; no standard deviation: it takes two runs of a setting or more"
            )
        return [heading, *_aligned(settings)]

    def to_dict(self) -> dict[str, Any]:
        """What sweep.json holds."""
        return {
            "format": FORMAT,
            "varied": list(self.varied),
            "arguments": self.arguments,
            "runs": self.rows,
            "summary": self.summary,
        }

    def write(self) -> None:
        """Writes sweep.csv, summary.csv and sweep.json anew, each whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        columns = ["run", *self.varied, "status", *self.measures, "error"]
        write_text(self.path / TABLE, _csv(columns, self.rows))
        summary = self.summary
        write_text(self.path / SUMMARY, _csv(list(summary[0]), summary))
        # Last: with it a resumed sweep takes the rows as they stand.
        write_json(self.path / RECORD, self.to_dict())


def _csv(columns: Sequence[str], rows: Sequence[Row]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _deviation(value: float | None) -> str:
    return "" if value is None else f" ± {100 * value:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns to the right, two spaces between them."""
    count = max(len(row) for row in rows)
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(count)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=False))
        for row in rows
    ]
