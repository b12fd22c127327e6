"""advfast study ntk-trace."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .options import Config, DataRoot, Debug, Quiet, Threads, number, set_threads
from .study import Out, Overwrite, Resume, Seeds, folder, numbers, show, study

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
    from advfast.training.presets import PRESETS

    set_threads(threads if threads is not None else PRESETS.get(data, {}).get("threads"))
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
