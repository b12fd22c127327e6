"""advfast study bn-estimators."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .options import Config, DataRoot, Debug, Quiet, Threads
from .study import (
    BatchSize,
    Epochs,
    Eps,
    LearningRate,
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


@study.command("bn-estimators")
def bn_estimators(
    data: Annotated[str, typer.Option(help="Name, path, or file.py:make.")] = "digits",
    model: Annotated[
        str | None,
        typer.Option(
            help="A network with batch normalisation, or file.py:make. [default: three convolutions]"
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="Of training, one that attacks.")] = "pgd-at",
    eps: Eps = None,
    steps: Steps = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    probe: Annotated[int, typer.Option(help="Test images of the kernel.")] = 100,
    limit: Annotated[
        int, typer.Option(help="Test images of the accuracies, the first so many.")
    ] = 1000,
    autoattack: Annotated[
        bool, typer.Option("--autoattack/--no-autoattack", help="With AutoAttack.")
    ] = True,
    seeds: Seeds = "0,1,2",
    data_root: DataRoot = None,
    threads: Threads = None,
    out: Out = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    quiet: Quiet = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Batch normalisation by running or batch statistics, crafting in eval or train mode, input normalised or not.

    The full factorial for each seed: accuracies, and what the neural tangent kernel looks like.
    """
    given: dict[str, Any] = {
        "eps": eps,
        "steps": steps,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
    }
    from advfast import studies

    use_threads(threads, data)
    show(
        studies.bn_estimators(
            data,
            model,
            method=method,
            seeds=numbers("seeds", seeds),
            probe=probe,
            limit=limit,
            autoattack=autoattack,
            data_root=data_root,
            out=folder("bn-estimators", out),
            overwrite=overwrite,
            resume=resume,
            progress=not quiet,
            **{name: value for name, value in given.items() if value is not None},
        )
    )
