"""advfast study bn-estimators."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .options import Config, DataRoot, Debug, Quiet, Threads
from .study import (
    BY_PRESET,
    BatchSize,
    DryRun,
    Epochs,
    Eps,
    LearningRate,
    Out,
    Overwrite,
    Parquet,
    Preset,
    Resume,
    Steps,
    folder,
    numbers,
    show,
    study,
    use_threads,
    with_preset,
)


@study.command("bn-estimators")
def bn_estimators(
    data: Annotated[
        str | None, typer.Option(help=f"Name, path, or file.py:make. {BY_PRESET}")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A network with batch normalisation, or file.py:make. [default: by preset: three convolutions]"
        ),
    ] = None,
    preset: Preset = "small",
    method: Annotated[str, typer.Option(help="Of training, one that attacks.")] = "pgd-at",
    eps: Eps = None,
    steps: Steps = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    probe: Annotated[
        int | None, typer.Option(help=f"Test images of the kernel. {BY_PRESET}")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help=f"Test images of the accuracies, the first so many. {BY_PRESET}"),
    ] = None,
    autoattack: Annotated[
        bool, typer.Option("--autoattack/--no-autoattack", help="With AutoAttack.")
    ] = True,
    seeds: Annotated[str | None, typer.Option(help=f"Of the runs. {BY_PRESET}")] = None,
    data_root: DataRoot = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    parquet: Parquet = False,
    out: Out = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Batch norm's estimators, accuracy and the kernel.

    Running or batch statistics, crafting in eval or train mode, input normalised or not: the full factorial for each
    seed, with accuracies and what the neural tangent kernel looks like.
    """
    from advfast import studies

    given: dict[str, Any] = {
        "data": data, "model": model, "eps": eps, "steps": steps, "epochs": epochs, "batch_size": batch_size,
        "lr": lr, "probe": probe, "limit": limit, "data_root": data_root,
        "seeds": None if seeds is None else numbers("seeds", seeds),
    }  # fmt: skip
    arguments = with_preset("bn-estimators", preset, given)
    use_threads(threads, arguments["data"])
    show(
        studies.bn_estimators(
            **arguments, method=method, autoattack=autoattack, out=folder("bn-estimators", out),
            overwrite=overwrite, resume=resume, dry_run=dry_run, progress=not quiet,
        ),
        parquet=parquet,
    )  # fmt: skip
