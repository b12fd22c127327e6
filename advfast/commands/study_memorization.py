"""advfast study memorization."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Config, DataRoot, Debug, Quiet, Threads, number
from .study import (
    BatchSize,
    DryRun,
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

_BY_PRESET = "[default: by preset]"
_OF_A_TRAINING = (
    "methods", "noise", "epochs", "complexity_noise", "complexity_eps", "complexity_epochs", "samples", "seeds", "at",
    "steps", "batch_size", "lr",
)  # fmt: skip


@study.command("memorization", short_help="Adversarial training on random labels.")
def memorization(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A run's folder, a checkpoint or a recipe to look at, in place of training on random labels."
        ),
    ] = None,
    preset: Preset = "small",
    dry_run: DryRun = False,
    data: Annotated[
        str | None,
        typer.Option(help="Name, path, or file.py:make. [default: by preset, or that of SOURCE]"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name of a network, or file.py:make. [default: by preset]")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Of training, with commas. [default: pgd-at,trades]")
    ] = None,
    noise: Annotated[
        str | None, typer.Option(help="Shares of labels drawn anew, such as 0.5,1. [default: 1]")
    ] = None,
    eps: Annotated[
        str | None,
        typer.Option(help=f"Radii, pixels 0 to 1, such as 0.2,0.1; of SOURCE one. {_BY_PRESET}"),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help=f"Passes over the data. {_BY_PRESET}")] = None,
    complexity_noise: Annotated[
        str | None,
        typer.Option(help="Rates of the networks whose complexity is measured. [default: 0 to 1]"),
    ] = None,
    complexity_eps: Annotated[
        float | None,
        typer.Option(parser=number, metavar="NUMBER", help=f"Their radius. {_BY_PRESET}"),
    ] = None,
    complexity_epochs: Annotated[
        int | None, typer.Option(help=f"Their passes over the data. {_BY_PRESET}")
    ] = None,
    samples: Annotated[int | None, typer.Option(help=f"Training images. {_BY_PRESET}")] = None,
    limit: Annotated[
        int | None,
        typer.Option(help=f"Images for test accuracy, gradients and complexity. {_BY_PRESET}"),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Of labels and runs, such as 0,1. [default: 0]")
    ] = None,
    every: Annotated[
        int | None, typer.Option(help=f"Epochs between kept checkpoints. {_BY_PRESET}")
    ] = None,
    at: Annotated[
        str | None, typer.Option(help=f"Epochs at which gradients are looked at. {_BY_PRESET}")
    ] = None,
    lambdas: Annotated[
        str | None, typer.Option(help="Lengths of the step along the gradient. [default: 0.003..1]")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Of SOURCE: file of the labels it was trained on, labels-*.npy."),
    ] = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    data_root: DataRoot = None,
    threads: Threads = None,
    out: Out = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    parquet: Parquet = False,
    quiet: Quiet = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Adversarial training on random labels: convergence, gradients, and measures of complexity."""
    given: dict[str, Any] = {
        "data": data, "model": model, "methods": None if methods is None else methods.split(","),
        "noise": _floats("noise", noise), "eps": _floats("eps", eps), "epochs": epochs,
        "complexity_noise": _floats("complexity-noise", complexity_noise), "complexity_eps": complexity_eps,
        "complexity_epochs": complexity_epochs, "samples": samples, "limit": limit,
        "seeds": None if seeds is None else numbers("seeds", seeds), "every": every,
        "at": None if at is None else numbers("at", at), "lambdas": _floats("lambdas", lambdas),
        "steps": steps, "batch_size": batch_size, "lr": lr,
    }  # fmt: skip
    from advfast import studies
    from advfast.studies.memorization import NAME

    if source is None:
        arguments = with_preset(NAME, preset, given) | {"labels": labels, "data_root": data_root}
        use_threads(threads, arguments.get("data", "digits"))
    else:
        own = {name: value for name, value in given.items() if value is not None}
        for name in own:
            if name in _OF_A_TRAINING:
                option = name.replace("_", "-")
                raise ValueError(
                    f"--{option} is of training on random labels, and {source} is looked at"
                )
        radii = own.pop("eps", None)
        if radii is not None:
            if len(radii) > 1:
                raise ValueError(f"a source is looked at with one --eps, got {eps}")
            own["eps"] = radii[0]
        arguments = own | {"source": source, "labels": labels, "data_root": data_root}
        use_threads(threads, own.get("data", "digits"))
    result = studies.memorization(
        **arguments,
        out=folder(NAME, out),
        overwrite=overwrite,
        resume=resume,
        dry_run=dry_run,
        progress=not quiet,
    )
    show(result, parquet=parquet)


def _floats(name: str, text: str | None) -> list[float] | None:
    return None if text is None else numbers(name, text, float)
