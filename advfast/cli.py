"""The command line. Bad input ends with one line on standard error and a non-zero exit code."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .commands.attack import attack
from .commands.evaluate import evaluate
from .commands.info import info
from .commands.ntk import ntk
from .commands.study import study

# These register themselves on `study`.
from .commands.study_bn_estimators import bn_estimators as _bn_estimators  # noqa: F401
from .commands.study_co_features import co_features as _co_features  # noqa: F401
from .commands.study_criticality import criticality as _criticality  # noqa: F401
from .commands.study_index import index as _index  # noqa: F401
from .commands.study_induced import induced as _induced  # noqa: F401
from .commands.study_memorization import memorization as _memorization  # noqa: F401
from .commands.study_noise_scale import noise_scale as _noise_scale  # noqa: F401
from .commands.study_ntk_trace import ntk_trace as _ntk_trace  # noqa: F401
from .commands.train import train
from .invocation import asking, command

app = typer.Typer(
    name="advfast",
    help="Fast adversarial training and analysis of adversarially trained networks.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

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
        with asking(command(words)):
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
    if code == _INTERRUPTED:  # typer hands it over as a code or as an exception, by version
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


for _command in (train, evaluate, attack, ntk, info):
    app.command()(_command)
app.add_typer(study)
