"""The command line. Bad input ends with one line on standard error and a non-zero exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from advfast.training import TrainResult
    from advfast.training.result import Selected

app = typer.Typer(
    name="advfast",
    help="Fast adversarial training and analysis of adversarially trained networks.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
_BY_DATA = "[default: by data set]"
_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: words after the program's name; None for those of this process.

    Returns:
        Exit code: 0, 1 for an error, 2 for wrong usage, 130 when interrupted.
    """
    words = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(words, prog_name="advfast", standalone_mode=False) or 0
    except typer.Exit as end:
        code = end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:
        if "--debug" in words:
            raise
        # What typer itself raises for wrong options; its classes moved between versions.
        usage = getattr(error, "format_message", None)
        expected = isinstance(error, (ValueError, TypeError, ArithmeticError, OSError, ImportError))
        message = usage() if usage else str(error)
        if not usage and (not expected or not message):
            message = f"{type(error).__name__}: {message} (--debug shows where)"
        print(f"advfast: error: {' '.join(message.split())}", file=sys.stderr)
        return 2 if usage else 1
    if (
        code == _INTERRUPTED
    ):  # typer hands an interrupt over as a code or as an exception, by version
        print("advfast: interrupted", file=sys.stderr)
    return code


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from advfast import __version__

        print(__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


def _number(text: str) -> float:
    """A number or a fraction such as 8/255."""
    numerator, slash, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator) if slash else float(numerator)
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"expected a number such as 0.1 or 8/255, got {text!r}") from None


@app.command()
def train(
    data: Annotated[str, typer.Option(help="digits or fashion-mnist.")] = "digits",
    model: Annotated[str, typer.Option(help="Name of the network.")] = "small-cnn",
    method: Annotated[str, typer.Option(help="pgd-at or standard.")] = "pgd-at",
    eps: Annotated[
        float | None,
        typer.Option(parser=_number, metavar="NUMBER", help=f"Radius, pixels 0 to 1. {_BY_DATA}"),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(parser=_number, metavar="NUMBER", help="Step size. [default: eps/4]"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help=f"PGD steps in training. {_BY_DATA}")] = None,
    norm: Annotated[str, typer.Option(help="linf, l2 or l1.")] = "linf",
    epochs: Annotated[int | None, typer.Option(help=f"Passes over the data. {_BY_DATA}")] = None,
    batch_size: Annotated[int | None, typer.Option(help=f"Images a step. {_BY_DATA}")] = None,
    lr: Annotated[float | None, typer.Option(help=f"Highest learning rate. {_BY_DATA}")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same weights.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results. [default: a new one in runs/]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run in --out.")] = False,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the data set's files. [default: $ADVFAST_DATA]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help=f"CPU threads. {_BY_DATA}")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    debug: _Debug = False,
) -> None:
    """Train a network on adversarial images; report clean and PGD-20 test accuracy.

    Writes checkpoints, the history, the results and a picture of adversarial images.
    """
    import torch

    from advfast import training
    from advfast.training.presets import PRESETS

    preset = PRESETS.get(data, {})
    given = {"eps": eps, "steps": steps, "epochs": epochs, "batch_size": batch_size, "lr": lr}
    settings: dict[str, Any] = {
        name: preset.get(name) if value is None else value for name, value in given.items()
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    threads = preset.get("threads") if threads is None else threads
    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads must be 1 or more, got {threads}")
        torch.set_num_threads(threads)
    result = training.train(
        model,
        data,
        method=method,
        alpha=alpha,
        norm=norm,
        seed=seed,
        out=out,
        overwrite=overwrite,
        data_root=data_root,
        progress=not quiet,
        **settings,
    )
    print(_summary(result))


def _summary(result: TrainResult) -> str:
    config = result.config
    samples = config["samples"]
    epochs = {"best": result.best, "last": result.last}
    if result.best.epoch == result.last.epoch:
        epochs = {"best = last": result.best}
    attack = f"PGD-20 ({config['norm']}, eps {config['eps']:.4g})"
    lines = ["", f"{'test accuracy':<24}{'clean':<26}{attack}"]
    lines += [f"{f'{name} (epoch {of.epoch})':<24}{_cells(of)}" for name, of in epochs.items()]
    lines += [
        f"in brackets: 95 % interval for {samples['test']} test images; "
        f"best: chosen on {samples['val']} images held out of training",
        "",
        f"{result.seconds:.1f} s; {result.path} holds "
        + ", ".join(sorted(file.name for file in result.path.iterdir())),
    ]
    return "\n".join(lines)


def _cells(selected: Selected) -> str:
    assert selected.test is not None  # every built-in data set has a test set
    cells = []
    for name in ("clean", "pgd-20"):
        accuracy = selected.test[name]
        low, high = accuracy.interval
        cells.append(f"{100 * accuracy.value:5.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
    return f"{cells[0]:<26}{cells[1]}"


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    debug: _Debug = False,
) -> None:
    """Show what was built and what can run here."""
    import advfast

    found = advfast.info()
    print(json.dumps(found, indent=2, default=str) if as_json else _table(found))


def _table(found: dict[str, Any]) -> str:
    """One line a fact; then for each op which implementation runs, and why another one does not."""
    lines = []
    for name, value in found.items():
        if name == "ops":
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key}: {part}" for key, part in value.items())
        lines.append(f"{name:<10}{value}")
    ops: dict[str, dict[str, str]] = found["ops"]
    impls = list(next(iter(ops.values())))
    lines += ["", f"{'op':<16}" + "".join(f"{impl:<11}" for impl in impls)]
    reasons: dict[str, str] = {}
    for op, states in ops.items():
        row = f"{op:<16}"
        for impl in impls:
            runs = states[impl] == "available"
            row += f"{'yes' if runs else 'no':<11}"
            if not runs:
                reasons[impl] = states[impl]
        lines.append(row.rstrip())
    lines += [f"no {impl}: {reason}" for impl, reason in reasons.items()]
    return "\n".join(lines)
