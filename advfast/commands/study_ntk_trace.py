"""advfast study ntk-trace."""

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

_BY_DATA = "[default: by data set]"


@study.command("ntk-trace")
def ntk_trace(
    data: Annotated[str, typer.Option(help="Name, path, or file.py:make.")] = "digits",
    model: Annotated[
        str | None,
        typer.Option(help="Name of a network, or file.py:make. [default: three convolutions]"),
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Of training, with commas; others are compared with the first.")
    ] = "standard,pgd-at",
    at: Annotated[
        str | None, typer.Option(help="Epochs, such as 0,1/8,1,4. [default: densely at first]")
    ] = None,
    probe: Annotated[int, typer.Option(help="Test images of the kernel.")] = 100,
    attack: Annotated[str, typer.Option(help="Of the attacked kernel.")] = "pgd-10",
    input_norm: Annotated[
        bool, typer.Option("--input-norm", help="A normalisation layer in front.")
    ] = False,
    eps: Eps = None,
    steps: Steps = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    schedule: Annotated[
        str | None, typer.Option(help=f"Such as constant, for a control. {_BY_DATA}")
    ] = None,
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
    """The neural tangent kernel along training, clean and attacked, for several methods."""
    given: dict[str, Any] = {
        "eps": eps, "steps": steps, "epochs": epochs, "batch_size": batch_size, "lr": lr, "schedule": schedule,
    }  # fmt: skip
    from advfast import studies

    use_threads(threads, data)
    show(
        studies.ntk_trace(
            data,
            model,
            methods=methods.split(","),
            at=None if at is None else numbers("at", at, float),
            seeds=numbers("seeds", seeds),
            probe=probe,
            attack=attack,
            input_norm=input_norm,
            data_root=data_root,
            out=folder("ntk-trace", out),
            overwrite=overwrite,
            resume=resume,
            progress=not quiet,
            **{name: value for name, value in given.items() if value is not None},
        )
    )
