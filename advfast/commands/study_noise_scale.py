"""advfast study noise-scale."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Config, DataRoot, Debug, Quiet, Threads
from .study import (
    BY_PRESET,
    DryRun,
    Eps,
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


@study.command(name="noise-scale")
def noise_scale(
    data: Annotated[
        str | None,
        typer.Option(
            help=f"digits, fashion-mnist, a file or a folder with a test set. {BY_PRESET}"
        ),
    ] = None,
    preset: Preset = "small",
    lrs: Annotated[str | None, typer.Option(help=f"Highest learning rates. {BY_PRESET}")] = None,
    batch_sizes: Annotated[str | None, typer.Option(help=f"Images a step. {BY_PRESET}")] = None,
    seeds: Annotated[str | None, typer.Option(help=f"Of the runs. {BY_PRESET}")] = None,
    epochs: Annotated[int | None, typer.Option(help=f"Of every run. {BY_PRESET}")] = None,
    samples: Annotated[
        int | None, typer.Option(help=f"Training images; 0 for all. {BY_PRESET}")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help=f"Images of either part to measure accuracy on; 0 for all. {BY_PRESET}"),
    ] = None,
    optimizer: Annotated[
        str, typer.Option(help="sgd, adamw, pnm or adapnm. The rates are given for it.")
    ] = "sgd",
    schedule: Annotated[
        str, typer.Option(help="one-cycle, piecewise, cosine, triangular or constant.")
    ] = "piecewise",
    method: Annotated[str, typer.Option(help="As of advfast train.")] = "pgd-at",
    model: Annotated[
        str | None, typer.Option(help="Name of a network. [default: by data set]")
    ] = None,
    eps: Eps = None,
    steps: Steps = None,
    data_root: DataRoot = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    parquet: Parquet = False,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Robust gap against learning rate / batch size.

    A run for each pair of them and each seed. The claim of DEAT (Sun et al., KDD 2023): with more noise, that is a
    higher lr / batch, the robust gap falls, until accuracy does.
    """
    from advfast import studies

    given = {
        "data": data, "lrs": None if lrs is None else numbers("lrs", lrs, float),
        "batch_sizes": None if batch_sizes is None else numbers("batch-sizes", batch_sizes),
        "seeds": None if seeds is None else numbers("seeds", seeds), "epochs": epochs,
        "model": model, "eps": eps, "steps": steps, "data_root": data_root,
    }  # fmt: skip
    arguments = with_preset("noise-scale", preset, given)
    for name, value in (("samples", samples), ("limit", limit)):
        if value is not None:
            arguments[name] = value or None
    use_threads(threads, arguments["data"])
    show(
        studies.noise_scale(
            **arguments, optimizer=optimizer, schedule=schedule, method=method, out=folder("noise-scale", out),
            resume=resume, overwrite=overwrite, dry_run=dry_run, progress=not quiet,
        ),
        parquet=parquet,
    )  # fmt: skip
