"""The arguments of a run as a YAML file that reproduces it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from advfast.files import write_text

_FROM_PYTHON = " from Python>"

NOT_COMPARED = (
    "recipe",
    "threads",
    "data_root",
    "save_every",
    "keep_every",
    "tensorboard",
    "profile",
)
"""Arguments that may change when a run is resumed: they change nothing that is learnt (threads: only rounding)."""


def plain(value: object) -> Any:
    """The value in lists, dictionaries, numbers and strings; "<kind from Python>" for what has no such form."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    parts = list(value.values()) if isinstance(value, Mapping) else value
    if isinstance(parts, (list, tuple)) and not any(from_python(plain(part)) for part in parts):
        if isinstance(value, Mapping):
            return {str(key): plain(part) for key, part in value.items()}
        return [plain(part) for part in parts]
    return f"<{getattr(value, '__name__', type(value).__name__)}{_FROM_PYTHON}"


def from_python(value: object) -> bool:
    """Whether `plain` had no form for it."""
    return isinstance(value, str) and value.endswith(_FROM_PYTHON)


def write_config(path: Path, arguments: Mapping[str, Any]) -> None:
    """Writes what `advfast train --config` reads.

    An argument that was an object stands as a name that `train` refuses: better than a run that is silently another.
    """
    lines = ["# Makes the same run again: advfast train --config " + path.name]
    lines += [
        f"# {name} was an object: give it in its place from Python"
        for name, value in arguments.items()
        if from_python(value)
    ]
    arguments = dict(arguments)
    recipe = arguments.pop("recipe", None)
    if recipe is not None:
        # No key: it would fill in what was left out on purpose.
        lines.append(f"# from the recipe {recipe}; all its values are here")
    empty = [
        name
        for name, value in arguments.items()
        if value is None or value == {} or (name == "modifiers" and not value)
    ]
    kept = {name: value for name, value in arguments.items() if name not in empty}
    write_text(path, "\n".join(lines) + "\n" + yaml.safe_dump(kept, sort_keys=False))


def check_same(saved: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> None:
    """
    Raises:
        ValueError: the run in `folder` had other arguments; says which.
    """
    differences = [
        f"{name} was {saved.get(name)!r} and is now {asked.get(name)!r}"
        for name in {**saved, **asked}
        if name not in NOT_COMPARED and saved.get(name) != asked.get(name)
    ]
    if differences:
        raise ValueError(
            f"{folder} holds a run with other settings: {'; '.join(differences)}. Give the same "
            "ones to go on with it, or another folder"
        )
