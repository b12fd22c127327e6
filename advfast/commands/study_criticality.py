"""advfast study criticality."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Config, DataRoot, Debug, Quiet, Threads, set_threads
from .study import (
    DryRun,
    Model,
    Out,
    Overwrite,
    Parquet,
    Preset,
    Resume,
    folder,
    numbers,
    show,
    study,
    with_preset,
)


@study.command("criticality", short_help="Which layers a network needs.")
def criticality(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Runs' folders, checkpoints, recipes or file.py:make, each also as label=source. "
            "[default: those of the preset]",
        ),
    ] = None,
    preset: Preset = "small",
    data: Annotated[
        str | None,
        typer.Option(
            help="Name, path, or file.py:make, with test images. [default: that of the runs]"
        ),
    ] = None,
    model: Model = None,
    images: Annotated[int | None, typer.Option(help="Test images. [default: 500]")] = None,
    trials: Annotated[
        int | None, typer.Option(help="Random initialisations of each layer. [default: 3]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a pass. [default: 50]")] = None,
    layers: Annotated[
        str | None, typer.Option(help="Some of conv,linear,bn. [default: conv,linear]")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="module, each layer's own initialisation, or network, that of a network made anew. [default: module]"
        ),
    ] = None,
    stage_depth: Annotated[
        int | None,
        typer.Option(help="Components of a layer's name that make a stage. [default: 1]"),
    ] = None,
    eps: Annotated[
        str | None,
        typer.Option(help="Radius of each network's training, for those that do not say: 0,8/255."),
    ] = None,
    published: Annotated[
        Path | None, typer.Option(help="CSV file of published results, to show beside.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the choice of images. [default: 0]")] = None,
    data_root: DataRoot = None,
    threads: Threads = None,
    out: Out = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    parquet: Parquet = False,
    quiet: Quiet = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Which layers a network needs: each is re-initialised, and the predictions are compared."""
    from advfast import studies

    given: dict[str, Any] = {
        "data": data, "model": model, "images": images, "trials": trials, "batch_size": batch_size,
        "layers": None if layers is None else layers.split(","), "init": init, "stage_depth": stage_depth,
        "eps": None if eps is None else numbers("eps", eps, float), "published": published, "seed": seed,
    }  # fmt: skip
    arguments = with_preset("criticality", preset, given)
    if sources:
        # What the preset says of its own networks and their trainings is not of these.
        arguments = {k: v for k, v in arguments.items() if k not in ("samples", "tested")}
        arguments |= {"models": _labelled(sources), "data": data}
    set_threads(threads)
    result = studies.criticality(
        **arguments, data_root=data_root, out=folder("criticality", out), overwrite=overwrite, resume=resume,
        progress=not quiet, dry_run=dry_run,
    )  # fmt: skip
    show(result, parquet=parquet)


def _labelled(sources: list[str]) -> list[str] | dict[str, str]:
    """label=source of all or of none.

    Raises:
        typer.BadParameter: of some; a label twice.
    """
    pairs = [source.partition("=") for source in sources if not Path(source).exists()]
    if not any(mark for _, mark, _ in pairs):
        return sources
    labels = [label for label, mark, _ in pairs if mark]
    if len(set(labels)) < len(sources):
        raise typer.BadParameter(
            f"give all sources as label=source, each label once, got {' '.join(sources)}"
        )
    return {label: source for label, _, source in pairs}
