"""advfast study: one sub-command a published study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import number, set_threads

if TYPE_CHECKING:
    from advfast.studies import StudyResult

study = typer.Typer(
    name="study",
    help="Published studies, each with a table, figures and what was expected beforehand.",
    rich_markup_mode=None,
)


@study.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


Out = Annotated[
    Path | None,
    typer.Option(help="Folder for the results. [default: studies/ and the study's name]"),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a study in that folder.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the study in that folder, if there is one.")
]
_BY_DATA = "[default: by data set]"
BY_PRESET = "[default: by preset]"
Eps = Annotated[
    float | None,
    typer.Option(parser=number, metavar="NUMBER", help=f"Radius, pixels 0 to 1. {_BY_DATA}"),
]
Steps = Annotated[int | None, typer.Option(help=f"PGD steps in training. {_BY_DATA}")]
Epochs = Annotated[int | None, typer.Option(help=f"Passes over the data. {_BY_DATA}")]
BatchSize = Annotated[int | None, typer.Option(help=f"Images a step. {_BY_DATA}")]
LearningRate = Annotated[
    float | None,
    typer.Option(parser=number, metavar="NUMBER", help=f"Highest learning rate. {_BY_DATA}"),
]
Preset = Annotated[
    str,
    typer.Option(
        help="Settings that the other options change: small, minutes on two cores, or published, those of "
        "the paper, for a GPU."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and stop.")]
Model = Annotated[
    str | None,
    typer.Option(help="file.py:make of networks that checkpoints do not name."),
]
Seeds = Annotated[str, typer.Option(help="Of the runs, such as 0,1,2.")]


def _check_parquet(wanted: bool) -> bool:
    if wanted:
        from advfast.studies.result import check_parquet

        check_parquet()  # before any work
    return wanted


Parquet = Annotated[
    bool,
    typer.Option(
        "--parquet", callback=_check_parquet, help="rows.parquet besides; needs pandas and pyarrow."
    ),
]


def folder(name: str, out: Path | None) -> Path:
    return Path("studies") / name if out is None else out


def with_preset(name: str, preset: str, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a study: those of the preset, and in their place what was given (not None).

    Raises:
        ValueError: no such preset.
    """
    from advfast.studies import preset as preset_of

    own = {key: value for key, value in given.items() if value is not None}
    return preset_of(name, preset) | own


def use_threads(threads: int | None, data: str) -> None:
    """Those that were asked for, or that suit the data set."""
    from advfast.training.presets import preset

    set_threads(threads if threads is not None else preset(data).get("threads"))


def numbers(name: str, text: str, kind: type = int) -> list:
    """ "0,1,2" as numbers; fractions such as 8/255 where they are floats.

    Raises:
        typer.BadParameter: another text.
    """
    try:
        found = [int(part) if kind is int else number(part) for part in text.split(",")]
    except (ValueError, typer.BadParameter):
        raise typer.BadParameter(f"--{name} must be numbers with commas, got {text!r}") from None
    return found


def show(result: StudyResult, *, parquet: bool = False) -> None:
    """Prints it; nothing where there was only its cost to say (`--dry-run`)."""
    if not result.rows:
        return
    if parquet and result.path is not None:
        result.write_parquet(result.path)
    print(result)
