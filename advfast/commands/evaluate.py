"""advfast evaluate."""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Config, DataRoot, Debug, Eps, Norm, Quiet, Split, Threads, set_threads

if TYPE_CHECKING:
    from .checkpoints import Trained

_SANITY: dict[str, str | bool] = {"auto": "auto", "full": True, "off": False}


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
            help="clean, pgd-K, cw-K, autoattack, autoattack-plus, autoattack-rand, their parts (apgd-ce, apgd-t, "
            "fab-t, square, ...), fgsm, fgsm-rs, bim-K, mi-fgsm-K, tpgd-K and file.py:name of your own, with commas."
        ),
    ] = "clean,pgd-20",
    eps: Eps = None,
    norm: Norm = None,
    batch_size: Annotated[int, typer.Option(help="Images a batch.")] = 500,
    split: Split = "test",
    limit: Annotated[int | None, typer.Option(help="Only the first so many samples.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random starts.")] = 0,
    precision: Annotated[str, typer.Option(help="Of the crafting: fp32, bf16 or fp16.")] = "fp32",
    sanity: Annotated[
        str,
        typer.Option(
            help="Checks for robustness that is not there: auto (the cheap ones), full (also accuracy "
            "against eps and steps) or off."
        ),
    ] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results. [default: a new evaluation/ beside the checkpoint]"
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="As --out, with one page of everything (evaluation.html) and figures."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an evaluation in that folder.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with an evaluation there that was interrupted; without a folder, the latest "
            "beside the checkpoint.",
        ),
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
    from advfast.attacks.checks import check_choice
    from advfast.evaluation.request import Request
    from advfast.userfile import is_user_object, load_object

    from .checkpoints import defaults, open_checkpoint

    set_threads(threads)
    check_choice("--sanity", sanity, tuple(_SANITY))
    if out is not None and report is not None and out.absolute() != report.absolute():
        raise ValueError("--out and --report name two folders; one of them is enough")
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
    chosen_by = {
        "attacks": ",".join(chosen),
        **settings,
        "batch_size": batch_size,
        "split": split,
        "limit": limit,
        "seed": seed,
        "precision": precision,
        "sanity": sanity,
        "model": model,
    }
    folder = report or out or _folder(trained, resume)
    request = Request(
        trained.model,
        attacks=asked,
        batch_size=batch_size,
        split=split,
        limit=limit,
        seed=seed,
        precision=precision,
        sanity=_SANITY[sanity],
        progress=not quiet,
        out=folder,
        overwrite=overwrite,
        report=report is not None,
        resume=resume,
        command=_command(checkpoint, chosen_by),
        **settings,
    )
    _run(request, folder, as_json, quiet)


def _run(request: Any, folder: Path, as_json: bool, quiet: bool) -> None:
    """Evaluates and says what came out, also where something failed on the way."""
    from advfast.evaluation import AttackFailed
    from advfast.evaluation.run import run

    failed: Exception | None = None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", RuntimeWarning)
        try:
            found = run(request)
        except (AttackFailed, OSError) as error:
            there = getattr(error, "report", None)
            if there is None:
                raise
            failed, found = error, there
    print(json.dumps(found.to_dict(), indent=2) if as_json else found)
    for warning in said:
        print(f"advfast: {warning.message}", file=sys.stderr)
    if not quiet:
        files = ", ".join(str(file) for file in sorted(folder.glob("evaluation*")))
        print(f"wrote {files}", file=sys.stderr)
    if failed is not None:
        raise failed


def _folder(trained: Trained, resume: bool) -> Path:
    """A new one beside the checkpoint; to resume, the latest of an evaluation that was interrupted, if there is one."""
    from advfast.evaluation.saved import STATE

    interrupted = [file.parent for file in trained.folder.glob(f"evaluation*/{STATE}")]
    if resume and interrupted:
        return max(interrupted, key=lambda folder: (folder / STATE).stat().st_mtime)
    return trained.results_folder("evaluation")


_DEFAULTS = {"split": "test", "seed": 0, "precision": "fp32", "sanity": "auto", "batch_size": 500}


def _command(checkpoint: Path, options: Mapping[str, Any]) -> str:
    """The command line that gives the same numbers, with what came from the run's config written out."""
    from advfast.evaluation.words import radius_call

    words = ["advfast", "evaluate", str(checkpoint)]
    for name, value in options.items():
        if value is not None and value != _DEFAULTS.get(name):
            text = radius_call(value) if name == "eps" else str(value)
            words += [f"--{name.replace('_', '-')}", text]
    return shlex.join(words)
