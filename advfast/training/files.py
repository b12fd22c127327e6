"""Files of a run, each written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

CONFIG, HISTORY, RESULTS = "config.json", "history.csv", "results.json"
BEST, LAST, PICTURE = "best.pt", "last.pt", "adversarial.png"
_ALL = (CONFIG, HISTORY, RESULTS, BEST, LAST, PICTURE)


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes through a temporary file beside `path`: a crash leaves the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_atomic(path, lambda stream: stream.write(text.encode()))


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomic(path, lambda stream: stream.write(text.getvalue().encode()))


def run_folder(out: str | Path | None, name: str, overwrite: bool) -> Path:
    """Makes the folder of a run: `out`, or the first of runs/<name>, runs/<name>-2, ... that is free.

    Raises:
        FileExistsError: `out` holds a run already and `overwrite` is False.
        OSError: the folder cannot be made.
    """
    if out is None:
        number = 1
        while True:
            folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                number += 1
    folder = Path(out)
    found = [folder / file for file in _ALL if (folder / file).exists()]
    if found and not overwrite:
        raise FileExistsError(
            f"{folder} already holds a run ({found[0].name}); choose another folder or overwrite it "
            "(overwrite=True, --overwrite)"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"cannot make the folder {folder} for the results: {error}") from error
    for file in found:
        # Else a run that stops early would leave files of two runs side by side.
        file.unlink()
    return folder
