"""advfast study induced."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Config, DataRoot, Debug, Quiet, Threads, number
from .study import (
    BY_PRESET,
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
    use_threads,
    with_preset,
)

_OF_RECIPE = ("samples", "test_samples", "at", "clip")


@study.command("induced", short_help="Distributions that adversarial training induces.")
def induced(
    source: Annotated[
        str | None,
        typer.Argument(
            help="Folder of a run with kept checkpoints (train --keep-every), a checkpoint, or a recipe. "
            "[default: the recipe of the preset]"
        ),
    ] = None,
    preset: Preset = "small",
    data: Annotated[
        str | None, typer.Option(help="Name, path, or file.py:make. [default: that of the run]")
    ] = None,
    model: Model = None,
    at: Annotated[
        str | None, typer.Option(help="Epochs of the checkpoints, such as 15,20,30. [default: all]")
    ] = None,
    eps: Annotated[
        float | None,
        typer.Option(
            parser=number,
            metavar="NUMBER",
            help="Radius, pixels 0 to 1. [default: that of the run]",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Of PGD. [default: 10]")] = None,
    clip: Annotated[
        bool | None, typer.Option("--clip/--no-clip", help=f"Into 0 to 1 as well. {BY_PRESET}")
    ] = None,
    pairs: Annotated[int | None, typer.Option(help=f"Of starts, an image. {BY_PRESET}")] = None,
    ide_epochs: Annotated[
        int | None, typer.Option(help=f"Of the fresh networks. {BY_PRESET}")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help=f"Of the fresh networks, such as 0,1. {BY_PRESET}")
    ] = None,
    keep_data: Annotated[
        bool, typer.Option("--keep-data", help="Leave the perturbed images in the folder.")
    ] = False,
    data_root: DataRoot = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    out: Out = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    parquet: Parquet = False,
    quiet: Quiet = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Fresh networks on images that the checkpoints of an adversarial training perturbed: does it get harder?

    Besides small and published there is the preset fashion, for Fashion-MNIST on two cores.
    """
    from advfast import studies

    given = {
        "source": source, "data": data, "model": model, "at": None if at is None else numbers("at", at),
        "eps": eps, "steps": steps, "clip": clip, "pairs": pairs, "fresh_epochs": ide_epochs,
        "seeds": None if seeds is None else numbers("seeds", seeds), "data_root": data_root,
    }  # fmt: skip
    arguments = with_preset("induced", preset, given)
    if source is not None:
        # What a preset says of its recipe is not of another run.
        for name in _OF_RECIPE:
            if given.get(name) is None:
                arguments.pop(name, None)
    recipe = arguments["source"]
    use_threads(threads, data or (recipe["data"] if isinstance(recipe, dict) else ""))
    made = studies.induced(
        **arguments, keep_data=keep_data, out=folder("induced", out), overwrite=overwrite, resume=resume,
        dry_run=dry_run, progress=not quiet,
    )  # fmt: skip
    show(made, parquet=parquet)
