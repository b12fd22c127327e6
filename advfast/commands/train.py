"""advfast train."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from .options import Debug, Quiet, config_option, extras, number

if TYPE_CHECKING:
    from advfast.training import TrainResult
    from advfast.training.result import Selected

_BY_DATA = "[default: by data set]"
_OPTIONS = ("schedule_options", "optimizer_options", "method_options", "modifiers")


def _setting(help: str) -> Any:
    return typer.Option(parser=number, metavar="NUMBER", help=help)


def _pairs(help: str) -> Any:
    return typer.Option(metavar="KEY=VALUE", help=f"{help} May be repeated.")


def train(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Option(
            help="digits, fashion-mnist, mnist, cifar10, cifar100, or with a long tail such as cifar10-lt:0.02; an "
            ".npz file, a folder, or file.py:make."
        ),
    ] = "digits",
    model: Annotated[
        str | None,
        typer.Option(help=f"Name of a network, timm:NAME, or file.py:make. {_BY_DATA}"),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="A published one, such as rice2020, wong2020 or wang2023: its settings."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="pgd-at, standard, trades, mart, fgsm-rs, n-fgsm, fgsm, free, yopo, gradalign, atta, reat, at-bsl, "
            "robal, or file.py:Class. [default: pgd-at]"
        ),
    ] = None,
    eps: Annotated[float | None, _setting(f"Radius, pixels 0 to 1. {_BY_DATA}")] = None,
    alpha: Annotated[float | None, _setting("Step size. [default: eps/4]")] = None,
    steps: Annotated[int | None, typer.Option(help=f"PGD steps in training. {_BY_DATA}")] = None,
    norm: Annotated[str | None, typer.Option(help="linf, l2 or l1. [default: linf]")] = None,
    bn: Annotated[
        str | None,
        typer.Option(
            help="Batch norm while crafting: eval, train or train-update. [default: eval]"
        ),
    ] = None,
    norm_layers: Annotated[
        str | None,
        typer.Option(
            help="Batch norm of the network: batch, batch-no-stats or dual-batch. [default: batch]"
        ),
    ] = None,
    method_option: Annotated[list[str] | None, _pairs("Setting of the method.")] = None,
    clean_prefix: Annotated[
        str | None,
        typer.Option(
            metavar="EPOCHS",
            help="Epochs on clean images at the beginning, or auto (auto:KEY=VALUE,...).",
        ),
    ] = None,
    label_smoothing: Annotated[float | None, _setting("0 to 1.")] = None,
    ema: Annotated[
        float | None, _setting("Decay of a moving average of the weights, such as 0.999.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help=f"Passes over the data. {_BY_DATA}")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step. [default: 128]")] = None,
    lr: Annotated[
        float | None,
        _setting(
            f"Highest learning rate. {_BY_DATA[:-1]}; of pnm 10 times, of adapnm a hundredth]"
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help=f"one-cycle, piecewise, cosine, triangular or constant. {_BY_DATA}"),
    ] = None,
    schedule_option: Annotated[
        list[str] | None, _pairs("Setting of the schedule, such as milestones=[100,150].")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="sgd, adamw, pnm (DEAT) or adapnm. [default: sgd]")
    ] = None,
    momentum: Annotated[float | None, _setting("Of SGD. [default: 0.9]")] = None,
    weight_decay: Annotated[float | None, _setting("[default: 0.0005]")] = None,
    norm_decay: Annotated[
        bool | None,
        typer.Option(
            "--norm-decay/--no-norm-decay",
            help="Weight decay on normalisation layers too. [default: yes]",
        ),
    ] = None,
    modifier: Annotated[
        list[str] | None,
        typer.Option(
            "--modifier",
            help="Such as awp:gamma=0.01, swa, cutmix or eps-warmup:epochs=5. May be repeated.",
        ),
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(help="Images of one pass; the gradient is added up. [default: all]"),
    ] = None,
    optimizer_option: Annotated[
        list[str] | None, _pairs("Setting of the optimiser, such as nesterov=true.")
    ] = None,
    clip_grad: Annotated[float | None, _setting("Greatest norm of the gradient.")] = None,
    augment: Annotated[
        str | None, typer.Option(help=f"Such as crop,flip or crop:4,flip,cutout:16. {_BY_DATA}")
    ] = None,
    extra: Annotated[
        str | None, typer.Option(help="More data to train on, such as an .npz of generated images.")
    ] = None,
    extra_share: Annotated[
        float | None, _setting("Of it in each batch, 0 to 1. [default: 0.7]")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Checkpoint to start from, advfast's or a published one.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32, bf16 or fp16. [default: auto]")
    ] = None,
    channels_last: Annotated[
        bool | None,
        typer.Option(
            "--channels-last/--no-channels-last",
            help="NHWC memory format. [default: where it is faster]",
        ),
    ] = None,
    capture: Annotated[
        str | None,
        typer.Option(help="A step as a CUDA graph: auto, required or off. [default: auto]"),
    ] = None,
    sync_bn: Annotated[
        bool,
        typer.Option("--sync-bn", help="Under torchrun: batch norm by the samples of all ranks."),
    ] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Same bits each time, also on a GPU.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Same seed, same weights. [default: 0]")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Several runs, such as 0,1,2, and one table of them.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results. [default: a new one in runs/]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run in --out.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, if there is one.")
    ] = False,
    resume_auto: Annotated[
        bool,
        typer.Option(
            "--resume-auto",
            help="As --resume; without --out in runs/, where a job that is started again finds it.",
        ),
    ] = False,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between savings. [default: after each epoch]")
    ] = None,
    keep_every: Annotated[
        int | None,
        typer.Option(help="Epochs after which a checkpoint stays, in <out>/checkpoints."),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="Stop after so many epochs without a better held-out accuracy."),
    ] = None,
    on_collapse: Annotated[
        str | None,
        typer.Option(
            help="At catastrophic overfitting: stop, with the weights before it, report, or noise "
            "(of n-fgsm with --method-option start=monitor)."
        ),
    ] = None,
    collapse_kernel: Annotated[
        int | None,
        typer.Option(help="Record the kernel of so many training images while looking for it."),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write event files for TensorBoard.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write a trace of a few steps, show what took long.")
    ] = False,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the data set's files. [default: $ADVFAST_DATA]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help=f"CPU threads. {_BY_DATA}")] = None,
    quiet: Quiet = False,
    config: Annotated[Path | None, config_option(*_OPTIONS)] = None,
    debug: Debug = False,
) -> None:
    """Train a network on adversarial images; report clean and PGD-20 test accuracy.

    Writes checkpoints, the history, the results, a picture of adversarial images, and config.yaml, from which
    `--config` makes the same run again.
    """
    arguments: dict[str, Any] = {
        name: value
        for name, value in locals().items()
        if value is not None
        and name
        not in ("context", "config", "debug", "quiet", "seeds", "data", "model", "modifier")
        and not name.endswith("_option")
    }
    from advfast import training
    from advfast.training import methods, optim, parallel
    from advfast.training.presets import preset as preset_of
    from advfast.training.recipes import find

    preset = preset_of(data)
    own = methods.METHODS.get(method or "pgd-at")
    if getattr(own, "defaults", {}).get("steps") == 1:
        # They are those of PGD; this method has its own.
        preset = {k: v for k, v in preset.items() if k != "steps"}
    if recipe is not None:
        # What is published wins over what suits the data set.
        preset = {k: v for k, v in preset.items() if k not in find(recipe).arguments}
    fitted = optim.fitted(preset, arguments)
    if fitted != preset and not quiet and parallel.shows():
        print(
            f"learning rate {fitted['lr']:g}: the {preset['lr']:g} of {data}, which is for SGD, times "
            f"{fitted['lr'] / preset['lr']:g} for {optimizer}",
            file=sys.stderr,
        )
    preset = fitted
    # A given model is no longer the one that the preset's network is for; its attack and length still are.
    arguments = preset | arguments
    if model is not None:
        arguments["model"] = model
    given = {
        "schedule_options": schedule_option,
        "optimizer_options": optimizer_option,
        "method_options": method_option,
    }
    for name, words in given.items():
        found = {**extras(context).get(name, {}), **_parse(name, words)}
        if found:
            arguments[name] = found
    modifiers = [*extras(context).get("modifiers", []), *(modifier or [])]
    if modifiers:
        arguments["modifiers"] = modifiers
    if isinstance(arguments.get("augment"), str):
        arguments["augment"] = [part for part in arguments["augment"].split(",") if part]
    if arguments.pop("resume_auto"):
        if seeds is not None:
            raise ValueError("--resume-auto is for one run: give --seeds with --out and --resume")
        arguments["resume"] = "auto"
    if seeds is not None and seed is not None:
        raise ValueError("--seed and --seeds exclude each other")
    if seeds is not None:
        published = find(recipe).arguments if recipe is not None else {}
        network = arguments.pop("model", published.get("model", "small-cnn"))
        table = training.sweep(network, data, seeds=_seeds(seeds), progress=not quiet, **arguments)
        print(table)
        if table.failed:
            raise typer.Exit(1)
        return
    result = training.train(data=data, progress=not quiet, **arguments)
    if parallel.shows():
        print(_summary(result))


def _parse(name: str, words: list[str] | None) -> dict[str, Any]:
    found = {}
    for word in words or ():
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise typer.BadParameter(
                f"--{name[:-1].replace('_', '-')} must be KEY=VALUE, such as milestones=[100,150], got {word!r}"
            )
        found[key] = yaml.safe_load(value)
    return found


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--seeds must be integers such as 0,1,2, got {text!r}") from None


def _summary(result: TrainResult) -> str:
    config, samples = result.config, result.environment["samples"]
    epochs = {"best": result.best, "last": result.last}
    if result.best.epoch == result.last.epoch:
        epochs = {"best = last": result.best}
    on = "held out" if result.best.test is None else "test"
    robust = "PGD-10" if result.best.test is None else "PGD-20"
    lines = [
        "",
        f"{f'{on} accuracy':<24}{'clean':<26}{robust} ({config['norm']}, eps {config['eps']:.4g})",
    ]
    lines += [f"{f'{name} (epoch {of.epoch})':<24}{_cells(of)}" for name, of in epochs.items()]
    chosen = f"best: chosen on {samples['val'] or 'the'} images held out of training"
    if result.best.test is not None:
        chosen = (
            f"in brackets: 95 % interval for {result.best.test['clean'].total} test images; "
            + chosen
        )
    lines.append(chosen)
    if result.clean_prefix:
        lines.append(_prefix(result.clean_prefix, len(result.history)))
    lines += [
        "",
        f"{result.seconds:.1f} s; {result.path} holds "
        + ", ".join(sorted(file.name for file in result.path.iterdir())),
    ]
    return "\n".join(lines)


def _prefix(found: dict[str, Any], epochs: int) -> str:
    text = f"clean prefix: {found['epochs']} of {epochs} epochs ({found['reason']})"
    if found["saved_seconds"] is None:
        return text
    return (
        f"{text}; against adversarial epochs alone {found['saved']:.1%} of the pass-units and "
        f"{found['saved_seconds']:.1%} of the epochs' time saved"
    )


def _cells(selected: Selected) -> str:
    if selected.test is None:
        clean, robust = (
            f"{100 * selected.metrics[f'val_{name}']:5.1f} %" for name in ("clean", "robust")
        )
        return f"{clean:<26}{robust}"
    cells = []
    for name in ("clean", "pgd-20"):
        accuracy = selected.test[name]
        low, high = accuracy.interval
        cells.append(f"{100 * accuracy.value:5.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
    return f"{cells[0]:<26}{cells[1]}"
