"""What the commands share: option types, numbers such as 8/255, and the YAML file behind --config.

A command takes ``config: Config = None``; the keys of the file are then the names of its options, and what is given on
the command line wins. A command that also takes keys which are no options (nested mappings, say) writes
``config: Annotated[Path | None, config_option("schedule_options")] = None`` and reads them with `extras`.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from advfast.kernels.pgd.api import nearest

_EXTRAS = "advfast.extras"
_COMMAND_LINE_ONLY = ("config", "debug")


def number(text: str) -> float:
    """A number or a fraction such as 8/255."""
    numerator, slash, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator) if slash else float(numerator)
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"expected a number such as 0.1 or 8/255, got {text!r}") from None


def set_threads(threads: int | None) -> None:
    """The number of threads that torch computes with on a CPU; None leaves it."""
    import torch

    if threads is None:
        return
    if threads < 1:
        raise ValueError(f"--threads must be 1 or more, got {threads}")
    torch.set_num_threads(threads)


class _UniqueKeys(yaml.SafeLoader):
    """YAML keeps the last of two equal keys in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} is there twice", problem_mark=node.start_mark
                )
        return super().construct_mapping(node, deep)


def read_config(path: str | Path) -> dict[str, Any]:
    """All keys of a YAML file, hyphens made underscores; keys without a value are left out.

    Raises:
        FileNotFoundError, OSError: the file cannot be read.
        ValueError: it is not a YAML mapping of names.
    """
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(
            f"{path} must hold lines such as `eps: 8/255`, got {type(content).__name__}"
        )
    config: dict[str, Any] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name in config:
            raise ValueError(f"{path} gives {name} twice, with a hyphen and with an underscore")
        config[name] = value
    return {name: value for name, value in config.items() if value is not None}


def config_option(*extra: str) -> Any:
    """The --config option of a command.

    Args:
        extra: keys that the file may have besides the options; their values are not checked here.
    """

    def fill(context: typer.Context, path: Path | None) -> Path | None:
        if path is None or context.resilient_parsing:
            return path
        content = read_config(path)
        kinds = _kinds(context)
        for name in content:
            if name not in kinds and name not in extra:
                known = sorted({*kinds, *extra})
                raise ValueError(
                    f"{path}: `{name}` is no option of {context.info_name}"
                    f"{nearest(name, known) or '; expected ' + ', '.join(known)}"
                )
        context.meta[_EXTRAS] = {name: content[name] for name in content if name not in kinds}
        context.default_map = {
            name: _as_word(path, name, value, kinds[name])
            for name, value in content.items()
            if name in kinds
        }
        return path

    return typer.Option(
        "--config",
        callback=fill,
        is_eager=True,
        help="YAML file with options of this command, such as `eps: 8/255`; the command line wins.",
    )


def extras(context: typer.Context) -> dict[str, Any]:
    """The keys of the file behind --config that are no options."""
    return dict(context.meta.get(_EXTRAS, {}))


def given(context: typer.Context) -> set[str]:
    """Names of the options that were given, on the command line or in the file behind --config."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {
        name
        for name, source in sources.items()
        if source is not None and source.name in ("COMMANDLINE", "DEFAULT_MAP")
    }


def _kinds(context: typer.Context) -> dict[str, type]:
    """Option -> bool, int, float, str or Path, from the annotations of the command's function."""
    function = inspect.unwrap(typing.cast(Any, context.command.callback))
    kinds = {}
    for name, hint in typing.get_type_hints(function).items():
        parts = [hint]
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
            parts = [part for part in typing.get_args(hint) if part is not type(None)]
        if parts[0] in (bool, int, float, str, Path) and name not in _COMMAND_LINE_ONLY:
            kinds[name] = parts[0]
    return kinds


def _as_word(path: Path, name: str, value: object, kind: type) -> str | bool:
    """The value as it would be written on the command line; a flag stays a bool."""
    expected = {
        bool: "true or false",
        int: "an integer",
        float: "a number such as 0.1 or 8/255",
        str: "a text",
        Path: "a path",
    }[kind]
    problem = ValueError(f"{path}: {name} must be {expected}, got {value!r}")
    if kind is bool:
        if not isinstance(value, bool):
            raise problem
        return value
    if isinstance(value, (bool, Mapping)):
        raise problem
    if kind is int and not isinstance(value, int):
        raise problem
    if kind is float:
        try:
            return repr(number(str(value)))
        except typer.BadParameter:
            raise problem from None
    if isinstance(value, list):
        if kind is not str or not all(isinstance(part, (str, int, float)) for part in value):
            raise problem
        return ",".join(str(part) for part in value)
    return str(value)


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads. [default: torch's]")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Config = Annotated[Path | None, config_option()]
DataRoot = Annotated[
    Path | None, typer.Option(help="Folder of the data set's files. [default: $ADVFAST_DATA]")
]
Eps = Annotated[
    float | None,
    typer.Option(
        parser=number, metavar="NUMBER", help="Radius, pixels 0 to 1. [default: that of the run]"
    ),
]
Norm = Annotated[str | None, typer.Option(help="linf, l2 or l1. [default: that of the run]")]
Split = Annotated[str, typer.Option(help="test, val or train of the data.")]
