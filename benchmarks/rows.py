"""CSV files of rows, and what is said of them: what the benchmarks on data have in common."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any


def read(path: Path | None) -> list[dict[str, str]]:
    """The rows of a file; none where there is no file."""
    if path is None or not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(rows: list[dict[str, str]], path: Path) -> None:
    """The columns are those of the first row."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def as_text(row: Any) -> dict[str, str]:
    """A dataclass as cells."""
    return {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in asdict(row).items()}


def mean_std(rows: Iterable[Mapping[str, str]], name: str) -> str:
    """Of a share, in percent: the mean and, of several rows, the sample deviation."""
    values = [100 * float(row[name]) for row in rows]
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{deviation}"


def held(true: bool) -> str:
    return "held" if true else "FAILED"
