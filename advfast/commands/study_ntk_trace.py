"""advfast study ntk-trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Config, DataRoot, Debug, Norm, Quiet, Threads
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

_BY_DATA = "[default: by data set]"
_OF_TRAININGS = (
    "methods",
    "seeds",
    "at",
    "epochs",
    "weight_decay",
    "schedule_options",
    "data",
    "model",
)
"""What a preset says that is not of sources."""


@study.command("ntk-trace")
def ntk_trace(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders of runs with kept checkpoints (train --keep-every), checkpoints or recipes, each also as "
            "label=source; several seeds of one label are averaged. [default: a training with each method and seed]"
        ),
    ] = None,
    preset: Preset = "small",
    data: Annotated[
        str | None,
        typer.Option(help="Name, path, or file.py:make. [default: by preset, or that of the runs]"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Name of a network, or file.py:make. [default: by preset: three convolutions]"
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help=f"Of training, with commas; others are compared with the first. {BY_PRESET}"
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(help="Epochs, such as 0,1/8,1,4. [default: densely at first, or all kept]"),
    ] = None,
    keep_every: Annotated[
        int, typer.Option(help="Epochs between the checkpoints of a recipe among the sources.")
    ] = 1,
    reference: Annotated[
        float, typer.Option(help="Distances are from the first epoch from this one on.")
    ] = 1.0,
    probe: Annotated[
        int | None, typer.Option(help=f"Test images of the kernel. {BY_PRESET}")
    ] = None,
    attack: Annotated[str, typer.Option(help="Of the attacked kernel.")] = "pgd-10",
    input_norm: Annotated[
        bool, typer.Option("--input-norm", help="A normalisation layer in front.")
    ] = False,
    eps: Eps = None,
    norm: Norm = None,
    steps: Steps = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    schedule: Annotated[
        str | None, typer.Option(help=f"Such as constant, for a control. {_BY_DATA}")
    ] = None,
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
    """The neural tangent kernel along training.

    Clean and attacked, for several methods of training or several runs.
    """
    from advfast import studies

    given: dict[str, Any] = {
        "data": data, "model": model, "methods": None if methods is None else methods.split(","),
        "at": None if at is None else numbers("at", at, float), "probe": probe, "eps": eps, "norm": norm,
        "steps": steps, "epochs": epochs, "batch_size": batch_size, "lr": lr, "schedule": schedule,
        "seeds": None if seeds is None else numbers("seeds", seeds), "data_root": data_root,
    }  # fmt: skip
    arguments = with_preset("ntk-trace", preset, given)
    if schedule is not None:
        arguments.pop("schedule_options", None)  # of another schedule
    if sources:
        for option, value in (("methods", methods), ("seeds", seeds), ("input-norm", input_norm or None)):  # fmt: skip
            if value is not None:
                raise ValueError(f"--{option} is of trainings, and sources are trained already")
        for name in _OF_TRAININGS:
            if given.get(name) is None:
                arguments.pop(name, None)
        arguments["sources"] = _labelled(sources)
    use_threads(threads, arguments.get("data") or "")
    show(
        studies.ntk_trace(
            **arguments, keep_every=keep_every, reference=reference, attack=attack, input_norm=input_norm,
            out=folder("ntk-trace", out), overwrite=overwrite, resume=resume, dry_run=dry_run, progress=not quiet,
        ),
        parquet=parquet,
    )  # fmt: skip


def _labelled(words: list[str]) -> list[str] | dict[str, list[str]]:
    """label=source of all or of none.

    Raises:
        typer.BadParameter: of some.
    """
    labels: dict[str, list[str]] = {}
    for word in words:
        label, mark, source = word.partition("=")
        if mark and not Path(word).exists():
            labels.setdefault(label, []).append(source)
    if not labels:
        return words
    if sum(map(len, labels.values())) < len(words):
        raise typer.BadParameter(f"give all sources as label=source or none, got {' '.join(words)}")
    return labels
