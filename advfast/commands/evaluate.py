"""advfast evaluate."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Config, DataRoot, Debug, Eps, Norm, Quiet, Split, Threads, set_threads


def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder of a run (its best.pt) or a .pt file.")
    ],
    data: Annotated[
        str | None,
        typer.Option(help="Name, path, or file.py:make. [default: the data of the run]"),
    ] = None,
    attacks: Annotated[
        str,
        typer.Option(
            help="clean, pgd-K, fgsm, fgsm-rs, bim-K, mi-fgsm-K, tpgd-K and file.py:name of your own, "
            "with commas."
        ),
    ] = "clean,pgd-20",
    eps: Eps = None,
    norm: Norm = None,
    batch_size: Annotated[int, typer.Option(help="Images a batch.")] = 500,
    split: Split = "test",
    limit: Annotated[int | None, typer.Option(help="Only the first so many samples.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random starts.")] = 0,
    precision: Annotated[str, typer.Option(help="Of the crafting: fp32, bf16 or fp16.")] = "fp32",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results. [default: a new evaluation/ beside the checkpoint]"
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an evaluation in --out.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="file.py:make of a network that is not advfast's own, or a published one's name."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    data_root: DataRoot = None,
    threads: Threads = None,
    quiet: Quiet = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Accuracy of a trained model, clean and attacked; writes JSON, a table and a picture."""
    from advfast import evaluation
    from advfast.userfile import is_user_object, load_object

    from .checkpoints import defaults, open_checkpoint

    set_threads(threads)
    chosen = [word.strip() for word in attacks.split(",") if word.strip()]
    asked: dict[str, Any] = {
        word.rpartition(":")[2] if is_user_object(word) else word: load_object(word)
        if is_user_object(word)
        else word
        for word in chosen
    }
    trained = open_checkpoint(checkpoint, model)
    settings = defaults(
        trained,
        {"data": data, "eps": eps, "norm": norm, "data_root": data_root},
        quiet=quiet,
        fallback={"eps": 8 / 255, "norm": "linf"},
    )
    folder = trained.results_folder("evaluation") if out is None else out
    failed: Exception | None = None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", RuntimeWarning)
        try:
            report = evaluation.evaluate(
                trained.model,
                attacks=asked,
                batch_size=batch_size,
                split=split,
                limit=limit,
                seed=seed,
                precision=precision,
                progress=not quiet,
                out=folder,
                overwrite=overwrite,
                **settings,
            )
        except evaluation.AttackFailed as error:
            if error.report is None:
                raise
            failed, report = error, error.report
    print(json.dumps(report.to_dict(), indent=2) if as_json else report)
    for warning in said:
        print(f"advfast: {warning.message}", file=sys.stderr)
    if not quiet:
        print(
            f"wrote {', '.join(str(file) for file in sorted(folder.glob('evaluation.*')))}",
            file=sys.stderr,
        )
    if failed is not None:
        raise failed
