"""advfast study co-features."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .options import Config, DataRoot, Debug, Quiet, Threads
from .study import (
    BatchSize,
    DryRun,
    Epochs,
    LearningRate,
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


@study.command("co-features", short_help="Catastrophic overfitting by an injected feature.")
def co_features(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A checkpoint or a run's folder, which is probed and nothing trained; or a recipe to train by.",
            show_default=False,
        ),
    ] = None,
    preset: Preset = "small",
    data: Annotated[
        str | None,
        typer.Option(help="Name, path, or file.py:make. [default: the preset's, or the source's]"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="conv-4, conv-2, the name of a network, or file.py:make. [default: by data set]"
        ),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Such as fgsm,gradalign:lam=0.2,pgd-at.")
    ] = None,
    betas: Annotated[
        str | None, typer.Option(help="Amplitudes of the feature, such as 0,0.1 or 0,4/255.")
    ] = None,
    eps: Annotated[
        str | None, typer.Option(help="Radii, pixels 0 to 1, such as 0.25 or 6/255,8/255.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Of the runs, such as 0,1,2.")] = "0",
    kind: Annotated[
        str | None, typer.Option(help="injected, orthogonal, reverse or original (no feature).")
    ] = None,
    clip: Annotated[
        bool, typer.Option("--clip", help="Cut injected images and attacks at 0 and 1.")
    ] = False,
    bandwidth: Annotated[
        int | None, typer.Option(help="Of a low-pass in front of the network. [default: none]")
    ] = None,
    control: Annotated[
        bool,
        typer.Option(
            "--control", help="The negative control: two convolutions, eps 0.15, no collapse."
        ),
    ] = False,
    samples: Annotated[
        int | None, typer.Option(help="Training images. [default: the preset's]")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Test images, the first so many.")] = None,
    restarts: Annotated[int | None, typer.Option(help="Of PGD-50.")] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
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
    """Catastrophic overfitting by a feature that tells the classes apart but is not robust.

    Training by each method on images that carry the feature, for each amplitude beta and radius eps: who collapses.
    """
    from advfast import studies
    from advfast.studies.co_features_methods import listed

    given: dict[str, Any] = {
        "data": data,
        "model": model,
        "methods": None if methods is None else listed(methods),
        "betas": None if betas is None else numbers("betas", betas, float),
        "eps": None if eps is None else numbers("eps", eps, float),
        "kind": kind,
        "bandwidth": bandwidth,
        "samples": samples,
        "limit": limit,
        "restarts": restarts,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
    }
    if control and preset != "small":
        raise ValueError(f"--control is a preset of its own: leave out --preset {preset}")
    name = "control" if control else preset
    arguments = with_preset("co-features", name, given)
    if source is not None:
        # Of the preset the grid alone: data, network and training are the source's.
        kept = {"betas", "eps", "methods"}
        arguments = {k: v for k, v in arguments.items() if k in kept or given.get(k) is not None}
    use_threads(threads, str(arguments.get("data", "digits")))
    made = studies.co_features(
        source=source,
        seeds=numbers("seeds", seeds),
        clip=clip,
        data_root=data_root,
        out=folder("co-features", out),
        overwrite=overwrite,
        resume=resume,
        progress=not quiet,
        dry_run=dry_run,
        **arguments,
    )
    show(made, parquet=parquet)
