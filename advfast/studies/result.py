"""What a study found: a row a run, means over the seeds, what was expected, and figures."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advfast.evaluation.canvas import write_png, write_svg
from advfast.evaluation.picture import PictureSkipped
from advfast.files import write_atomic, write_bytes, write_csv, write_json, write_text

from .about import ABOUT
from .report import WORDS, render

if TYPE_CHECKING:
    import pandas

FORMAT = "advfast-study-1"
RECORD, ROWS, SUMMARY, REPORT = "study.json", "rows.csv", "summary.csv", "report.html"
PARQUET = "rows.parquet"
SEED = "seed"

Row = dict[str, Any]
Draw = Callable[["StudyResult"], Iterable[tuple[str, Any]]]
"""result -> (file name without its ending, matplotlib Figure) of each picture; may raise `PictureSkipped`."""


@dataclass(frozen=True)
class Expectation:
    """Something that was written down before the runs.

    Attributes:
        text: what was expected.
        found: the numbers, in words.
        held: whether it came so; None where there were no numbers to tell by.
    """

    text: str
    found: str
    held: bool | None


@dataclass
class StudyResult:
    """Outcome of a study; ``print(result)`` shows it.

    Attributes:
        name: of the study, as on the command line.
        settings: arguments that are the same in all rows, and versions.
        varied: columns of the rows that say what a row is of, "seed" among them where there are seeds.
        measures: columns that were measured.
        rows: a dictionary a run, in order; a value may be None where it could not be measured.
        expectations: each with whether it held.
        notes: what else is to be said of the rows, a line each.
        draw: what draws its figures.
        path: the folder it was written to, if it was.
        reproduce: the command line, or the Python call, that made it.
        tables: further tables, name -> rows; each is written to <name>.csv.
    """

    name: str
    settings: dict[str, Any]
    varied: tuple[str, ...]
    measures: tuple[str, ...]
    rows: list[Row]
    expectations: list[Expectation] = field(default_factory=list)
    draw: Draw | None = None
    path: Path | None = None
    notes: list[str] = field(default_factory=list)
    reproduce: str = ""
    tables: dict[str, list[Row]] = field(default_factory=dict)

    @property
    def others(self) -> tuple[str, ...]:
        """What is varied but the seed: what makes a setting."""
        return tuple(name for name in self.varied if name != SEED)

    @property
    def summary(self) -> list[Row]:
        """A setting each: what is varied, runs, and of each measure <measure>_mean and <measure>_std (n - 1; None for
        fewer than two). A measure that is no number in a row does not count there."""
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows:
            groups.setdefault(tuple(row[name] for name in self.others), []).append(row)
        found = []
        for key, rows in groups.items():
            summary: Row = {**dict(zip(self.others, key, strict=True)), "runs": len(rows)}
            for measure in self.measures:
                values = [row[measure] for row in rows if _is_number(row.get(measure))]
                summary[f"{measure}_mean"] = statistics.fmean(values) if values else None
                summary[f"{measure}_std"] = statistics.stdev(values) if len(values) > 1 else None
            found.append(summary)
        return found

    @property
    def verdict(self) -> str:
        """A line: whether what was expected came."""
        told = [one.held for one in self.expectations if one.held is not None]
        if not told:
            return "nothing was expected that these runs could tell"
        if all(told):
            return f"the signature holds: {len(told)} of {len(told)} expectations held"
        return f"{sum(told)} of {len(told)} expectations held"

    def select(self, **values: Any) -> list[Row]:
        """The rows with these values.

        Raises:
            KeyError: there is no such column.
        """
        return [row for row in self.rows if all(row[name] == v for name, v in values.items())]

    def mean(self, measure: str, **values: Any) -> float:
        """The mean of a measure over the rows with these values.

        Raises:
            KeyError: no such column.
            ValueError: no row has a number there.
        """
        found = [row[measure] for row in self.select(**values) if _is_number(row[measure])]
        if not found:
            raise ValueError(f"no row with {values} has a number for {measure!r}")
        return statistics.fmean(found)

    def frame(self) -> pandas.DataFrame:
        """The rows as a pandas DataFrame.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "a data frame needs pandas (pip install pandas); .rows holds the same as dictionaries"
            ) from error
        return pandas.DataFrame(self.rows, columns=[*self.varied, *self.measures])

    def to_dict(self) -> dict[str, Any]:
        """What study.json holds."""
        return {
            "format": FORMAT,
            "study": self.name,
            "reproduce": self.reproduce,
            "settings": self.settings,
            "varied": list(self.varied),
            "measures": list(self.measures),
            "rows": self.rows,
            "summary": self.summary,
            "expectations": [asdict(expectation) for expectation in self.expectations],
            "notes": self.notes,
            "tables": list(self.tables),
        }

    def figures(self) -> dict[str, bytes]:
        """File name -> content: of each figure a PNG and an SVG.

        Raises:
            PictureSkipped: matplotlib is not installed.
        """
        pictures = {}
        for name, figure in () if self.draw is None or not self.rows else self.draw(self):
            for ending, write in (("png", write_png), ("svg", write_svg)):
                stream = io.BytesIO()
                write(figure, stream)
                pictures[f"{name}.{ending}"] = stream.getvalue()
        return pictures

    def save(self, folder: str | Path, *, parquet: bool = False) -> list[Path]:
        """Writes study.json, rows.csv, summary.csv, `tables`, the figures and report.html, each whole or not at all.

        Args:
            parquet: rows.parquet besides, with the columns of `frame`.

        Returns:
            The files; without figures where matplotlib is not installed.

        Raises:
            ImportError: parquet without pandas and pyarrow, before anything is written.
        """
        if parquet:
            check_parquet()
        folder = self.path = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.write_record(folder)
        files = [folder / RECORD]
        others = {f"{name}.csv": rows for name, rows in self.tables.items()}
        for name, rows in {ROWS: self.rows, SUMMARY: self.summary, **others}.items():
            if rows:
                write_csv(folder / name, rows)
                files.append(folder / name)
        if parquet:
            files.append(self.write_parquet(folder))
        try:
            pictures = self.figures()
        except PictureSkipped:
            pictures = {}
        for name, content in pictures.items():
            write_bytes(folder / name, content)
            files.append(folder / name)
        if self.rows:
            shown = {name: picture for name, picture in pictures.items() if name.endswith(".png")}
            write_text(folder / REPORT, render(self, shown))
            files.append(folder / REPORT)
        return files

    def write_parquet(self, folder: str | Path) -> Path:
        """rows.parquet alone.

        Raises:
            ImportError: pandas or pyarrow is not installed.
        """
        check_parquet()
        file = Path(folder) / PARQUET
        write_atomic(file, lambda stream: self.frame().to_parquet(stream, index=False))
        return file

    def write_record(self, folder: Path) -> None:
        """study.json alone."""
        write_json(folder / RECORD, self.to_dict())

    def table(self) -> list[list[str]]:
        """The summary as text: heads, then a setting a row, of several runs with its deviation."""
        several = any(row["runs"] > 1 for row in self.summary)
        table = [[*self.others, *(("runs",) if several else ()), *self.measures]]
        for row in self.summary:
            cells = [_text(row[name]) for name in self.others]
            cells += [str(row["runs"])] if several else []
            for measure in self.measures:
                cells.append(_mean(row[f"{measure}_mean"], row[f"{measure}_std"]))
            table.append(cells)
        return table

    def __str__(self) -> str:
        if not self.rows:
            return f"{self.name}: no rows yet"
        table = self.table()
        # Whichever way it is narrower: a setting a line, or a measure a line.
        upright, turned = aligned(table), aligned(list(zip(*table, strict=True)))
        lines = min(upright, turned, key=lambda lines: max(map(len, lines)))
        if any(row["runs"] > 1 for row in self.summary):
            lines += ["", "mean ± sample standard deviation over the seeds"]
        if self.notes:
            lines += ["", *self.notes]
        if self.expectations:
            lines += ["", "expected, and what came:"]
        for expectation in self.expectations:
            lines.append(f"  {WORDS[expectation.held]}: {expectation.text} ({expectation.found})")
        if self.path is not None:
            lines += [
                "",
                f"{self.path} holds " + ", ".join(sorted(p.name for p in self.path.glob("*.*"))),
            ]
        return "\n".join(lines)


def check_parquet() -> None:
    """
    Raises:
        ImportError: pandas or pyarrow is not installed.
    """
    for module in ("pandas", "pyarrow"):
        if importlib.util.find_spec(module) is None:
            raise ImportError(
                f"{PARQUET} needs pandas and pyarrow, and {module} is not installed: pip install pandas pyarrow; "
                f"{ROWS} holds the same"
            )


def load_study(path: str | Path, draw: Draw | None = None) -> StudyResult:
    """A study from its folder or its study.json.

    Args:
        draw: what draws its figures anew; None: that of the study of this name, if advfast has one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a study's.
    """
    path = Path(path)
    path = path / RECORD if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a study's record: {error}") from error
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a study's record: expected the format {FORMAT!r}")
    return StudyResult(
        content["study"],
        content["settings"],
        tuple(content["varied"]),
        tuple(content["measures"]),
        content["rows"],
        [Expectation(**found) for found in content["expectations"]],
        draw_of(content["study"]) if draw is None else draw,
        path.parent,
        content["notes"],
        content.get("reproduce", ""),
        {name: _read_csv(path.parent / f"{name}.csv") for name in content.get("tables", [])},
    )


def _read_csv(path: Path) -> list[Row]:
    """What `write_csv` wrote: numbers, texts, True, False and None; [] where there is no file, of an empty table."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return [{k: _value(v) for k, v in row.items()} for row in csv.DictReader(stream)]


def _value(text: str) -> Any:
    if text in ("", "True", "False"):
        return {"": None, "True": True, "False": False}[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def draw_of(name: str) -> Draw | None:
    """What draws a study of advfast: `draw` of its module; None for a study that is not of advfast."""
    if name not in ABOUT:
        return None

    def draw(result: StudyResult) -> Iterable[tuple[str, Any]]:
        module = importlib.import_module(f".{name.replace('-', '_')}", __package__)
        yield from module.draw(result)

    return draw


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns to the right, two spaces between them."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _mean(mean: float | None, deviation: float | None) -> str:
    """The deviation to two digits, and the mean to as many places."""
    if mean is None or not deviation or not math.isfinite(deviation):
        return _text(mean) if deviation is None else f"{_text(mean)} ± {_text(deviation)}"
    places = max(0, 1 - math.floor(math.log10(deviation)))
    return f"{mean:.{places}f} ± {deviation:.{places}f}"
