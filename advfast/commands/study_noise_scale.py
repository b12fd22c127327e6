"""advfast study noise-scale."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Config, DataRoot, Debug, Quiet, Threads
from .study import (
    Eps,
    Out,
    Overwrite,
    Resume,
    Seeds,
    Steps,
    folder,
    numbers,
    show,
    study,
    use_threads,
)


@study.command(name="noise-scale")
def noise_scale(
    data: Annotated[
        str, typer.Option(help="digits, fashion-mnist, a file or a folder with a test set.")
    ] = "digits",
    lrs: Annotated[str, typer.Option(help="Highest learning rates.")] = "0.05,0.1,0.2,0.4",
    batch_sizes: Annotated[str, typer.Option(help="Images a step.")] = "32,128",
    seeds: Seeds = "0,1,2",
    epochs: Annotated[int, typer.Option(help="Of every run.")] = 40,
    samples: Annotated[int, typer.Option(help="Training images; 0 for all.")] = 500,
    limit: Annotated[
        int, typer.Option(help="Images of either part to measure accuracy on; 0 for all.")
    ] = 1000,
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
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Robust generalisation against learning rate / batch size: a run for each pair of them and each seed.

    The claim of DEAT (Sun et al., KDD 2023): with more noise, that is a higher lr / batch, the robust gap falls, until
    accuracy does.
    """
    from advfast import studies

    use_threads(threads, data)
    given = {"model": model, "eps": eps, "steps": steps, "data_root": data_root}
    show(
        studies.noise_scale(
            data,
            lrs=numbers("lrs", lrs, float),
            batch_sizes=numbers("batch-sizes", batch_sizes),
            seeds=numbers("seeds", seeds),
            epochs=epochs,
            samples=samples or None,
            limit=limit or None,
            optimizer=optimizer,
            schedule=schedule,
            method=method,
            out=folder("noise-scale", out),
            resume=resume,
            overwrite=overwrite,
            progress=not quiet,
            **{name: value for name, value in given.items() if value is not None},
        )
    )
