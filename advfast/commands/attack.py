"""advfast attack."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import (
    Config,
    DataRoot,
    Debug,
    Eps,
    Norm,
    Quiet,
    Split,
    Threads,
    number,
    set_threads,
)

if TYPE_CHECKING:
    from advfast.evaluation.craft import Crafted


def attack(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder of a run (its best.pt) or a .pt file.")
    ],
    data: Annotated[
        str | None,
        typer.Option(help="Name, path, or file.py:make. [default: the data of the run]"),
    ] = None,
    steps: Annotated[int, typer.Option(help="PGD steps.")] = 20,
    eps: Eps = None,
    alpha: Annotated[
        float | None,
        typer.Option(parser=number, metavar="NUMBER", help="Step size. [default: eps/4]"),
    ] = None,
    norm: Norm = None,
    restarts: Annotated[int, typer.Option(help="Runs from different starts; the best counts.")] = 1,
    loss: Annotated[str, typer.Option(help="ce, margin, dlr or kl.")] = "ce",
    target: Annotated[
        int | None, typer.Option(help="Class to reach. [default: any but the label]")
    ] = None,
    targets: Annotated[
        int,
        typer.Option(
            help="Runs, each towards one of the most likely wrong classes; 0: away from the label."
        ),
    ] = 0,
    early_stop: Annotated[
        bool,
        typer.Option("--early-stop", help="An image that is misclassified (reached) stays so."),
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Images a batch.")] = 500,
    split: Split = "test",
    limit: Annotated[int | None, typer.Option(help="Only the first so many samples.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random starts.")] = 0,
    precision: Annotated[str, typer.Option(help="Of the crafting: fp32, bf16 or fp16.")] = "fp32",
    out: Annotated[
        Path | None,
        typer.Option(
            help="The .npz file, with a .png beside it. "
            "[default: adversarial.npz in a new attack/ beside the checkpoint]"
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="file.py:make of a network that is not advfast's own, or a published one's name."
        ),
    ] = None,
    data_root: DataRoot = None,
    threads: Threads = None,
    quiet: Quiet = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Make adversarial images with PGD and write them, with labels and predictions, to an .npz file.

    The file holds images [N, C, H, W] float32, labels, predictions (on these images), clean_predictions and indices
    (numbers of the samples), each [N] int64. They are not rounded to bytes: that would move them out of the ball.
    """
    from advfast.attacks import PGDAttack
    from advfast.attacks.checks import check_choice, check_count
    from advfast.evaluation.craft import craft
    from advfast.evaluation.inputs import SPLITS, inputs
    from advfast.kernels.pgd.api import check_norm

    from .checkpoints import defaults, open_checkpoint

    set_threads(threads)
    check_count("batch_size", batch_size, 1)
    check_choice("split", split, SPLITS)
    if limit is not None:
        check_count("limit", limit, 1)
    if out is not None and out.suffix != ".npz":
        raise ValueError(f"--out must name an .npz file, got {out}")
    if out is not None and not overwrite:
        for file in (out, out.with_suffix(".png")):
            if file.exists():
                raise FileExistsError(
                    f"{file} is there already; choose another file or --overwrite"
                )
    trained = open_checkpoint(checkpoint, model)
    settings = defaults(
        trained,
        {"data": data, "eps": eps, "norm": norm, "data_root": data_root},
        quiet=quiet,
        fallback={"eps": 8 / 255, "norm": "linf"},
    )
    eps, norm = float(settings["eps"]), check_norm("attack", settings["norm"])
    pgd = PGDAttack(
        trained.model,
        eps,
        alpha,
        steps,
        norm=norm,
        restarts=restarts,
        loss=loss,
        targeted=target is not None,
        targets=targets,
        early_stop=early_stop,
        seed=seed,
        precision=precision,
    )
    of = inputs(settings["data"], split, settings["data_root"], limit)
    path = trained.results_folder("attack") / "adversarial.npz" if out is None else out
    made = craft(
        trained.model,
        of,
        pgd,
        target=target,
        batch_size=batch_size,
        limit=limit,
        progress=not quiet,
    )
    made.save(path)
    written = [path, *_picture(path, made, eps, norm, steps, of.class_names)]
    print(f"{of.words}: {len(made.labels)} samples")
    rows = made.accuracies(f"pgd-{steps}", target)
    width = max(len(name) for name in rows)
    for name, accuracy in rows.items():
        print(f"{name:<{width}}  {accuracy}")
    print(f"largest perturbation: {norm} {made.largest:.6g} (eps {eps:.6g})")
    if not quiet:
        print(f"wrote {', '.join(str(file) for file in written)}", file=sys.stderr)


def _picture(
    path: Path,
    made: Crafted,
    eps: float,
    norm: str,
    steps: int,
    class_names: tuple[str, ...] | None,
) -> list[Path]:
    """The first images beside the clean ones, if they can be drawn."""
    from advfast.evaluation.picture import PictureSkipped, draw_examples

    file, shown = path.with_suffix(".png"), len(made.clean)
    try:
        draw_examples(
            file,
            made.clean,
            made.images[:shown],
            made.labels[:shown],
            made.clean_predictions[:shown],
            made.predictions[:shown],
            eps=eps,
            norm=norm,
            title=f"PGD-{steps}",
            class_names=class_names,
        )
    except PictureSkipped as reason:
        print(f"advfast: {reason}", file=sys.stderr)
        return []
    return [file]
