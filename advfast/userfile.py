"""The user's own code, named on the command line as path/file.py:name."""

from __future__ import annotations

import importlib.util
import sys
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from advfast.kernels.pgd.api import nearest

_MARK = ".py:"


class UserFileError(ValueError):
    """The user's file failed; the message names it, the line, and what was raised there (which is the cause)."""


def is_user_object(text: object) -> bool:
    """Whether it has the form path/file.py:name."""
    return isinstance(text, str) and _MARK in text


def load_object(text: str, *, to_call: bool = False) -> Any:
    """What a user's file defines under a name.

    The file runs as a module of its own, once for all names in it as long as it is not changed; modules beside it can
    be imported while it runs.

    Args:
        text: path/file.py:name.
        to_call: a callable is wanted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not of this form, or nothing in the file has this name.
        TypeError: not callable, and `to_call`.
        UserFileError: the file raised something.
    """
    path, name = _split(text)
    module = _module(path)
    if not hasattr(module, name):
        defined = _defined(module)
        raise ValueError(
            f"{path} defines no {name!r}, only {', '.join(defined) or 'nothing'}"
            f"{nearest(name, defined)}"
        )
    found = getattr(module, name)
    if to_call and not callable(found):
        raise TypeError(f"{text} must be a function or class, got {type(found).__name__}")
    return found


def call(text: str, *arguments: object, **named: object) -> Any:
    """The result of the user's function path/file.py:name; modules beside the file can be imported while it runs.

    Raises:
        as `load_object`; UserFileError also where the function raised something.
    """
    found = load_object(text, to_call=True)
    path, _ = _split(text)
    with _running(path):
        return found(*arguments, **named)


def _split(text: str) -> tuple[Path, str]:
    stem, mark, name = text.rpartition(_MARK)
    if not mark or not stem or not name.isidentifier():
        raise ValueError(f"expected path/file.py:name, got {text!r}")
    path = Path(stem + ".py").expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return path.resolve(), name


def _module(path: Path) -> ModuleType:
    # A name that no other module has, even if two of the user's files have the same one; under it pickle finds the
    # classes that the file defines.
    name = f"advfast_user_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    stat = path.stat()
    stamp = stat.st_mtime_ns, stat.st_size
    module = sys.modules.get(name)
    if module is not None and getattr(module, "__advfast_stamp__", None) == stamp:
        return module
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _running(path):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    module.__dict__["__advfast_stamp__"] = stamp
    return module


@contextmanager
def _running(path: Path) -> Iterator[None]:
    """With the folder of the file importable; what is raised is told with the file and the line."""
    folder = str(path.parent)
    sys.path.insert(0, folder)
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, SyntaxError):
            place, what = f"{error.filename}, line {error.lineno}", error.msg
        else:
            lines = [
                frame.lineno
                for frame in traceback.extract_tb(error.__traceback__)
                if frame.filename == str(path)
            ]
            place = f"{path}, line {lines[-1]}" if lines else str(path)
            what = str(error)
        raise UserFileError(f"{place}: {type(error).__name__}: {what}") from error
    finally:
        sys.path.remove(folder)


def _defined(module: ModuleType) -> list[str]:
    """Names that the file made itself, without what it imported."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and getattr(value, "__module__", module.__name__) == module.__name__
    ]
