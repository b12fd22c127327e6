"""advfast study bn-estimators."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .options import Config, DataRoot, Debug, Quiet, Threads, number, set_threads
from .study import Out, Overwrite, Resume, Seeds, folder, numbers, show, study

_BY_DATA = "[default: by data set]"


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
    eps: Annotated[
        float | None,
        typer.Option(parser=number, metavar="NUMBER", help=f"Radius, pixels 0 to 1. {_BY_DATA}"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help=f"PGD steps in training. {_BY_DATA}")] = None,
    epochs: Annotated[int | None, typer.Option(help=f"Passes over the data. {_BY_DATA}")] = None,
    batch_size: Annotated[int | None, typer.Option(help=f"Images a step. {_BY_DATA}")] = None,
    lr: Annotated[
        float | None,
        typer.Option(parser=number, metavar="NUMBER", help=f"Highest learning rate. {_BY_DATA}"),
    ] = None,
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
    from advfast.training.presets import PRESETS

    set_threads(threads if threads is not None else PRESETS.get(data, {}).get("threads"))
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
