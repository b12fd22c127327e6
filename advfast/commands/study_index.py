"""advfast study index and advfast study redraw: pages of studies that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Debug
from .study import Parquet, study


@study.command(short_help="A page of all studies below a folder.")
def index(
    folder: Annotated[Path, typer.Argument(help="With studies below it.")] = Path("studies"),
    debug: Debug = False,
) -> None:
    """A page of all studies below a folder: index.html, and README.md for GitHub."""
    from advfast import studies

    for file in studies.index(folder):
        print(file)


@study.command(short_help="Figures and pages anew, from study.json.")
def redraw(
    folders: Annotated[list[Path], typer.Argument(help="Of a study each.")],
    parquet: Parquet = False,
    debug: Debug = False,
) -> None:
    """Tables, figures and report.html of a study anew, from its study.json."""
    from advfast import studies

    found = [studies.load_study(folder) for folder in folders]
    for result in found:
        assert result.path is not None  # it was read from there
        for file in result.save(result.path, parquet=parquet):
            print(file)
