"""How this was asked for: the command line or the call, for records of results."""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

_ASKED: ContextVar[str] = ContextVar("asked", default="")
_FLAGS = ("--resume", "--overwrite", "--quiet", "--debug", "--dry-run")
"""Flags of a command line that its results do not depend on."""
_ARGUMENTS = ("out", "resume", "overwrite", "progress", "dry_run")
"""The same of a call."""


def asked() -> str:
    """A shell command or a Python expression; "" where neither is known."""
    return _ASKED.get()


@contextmanager
def asking(text: str) -> Iterator[None]:
    token = _ASKED.set(text)
    try:
        yield
    finally:
        _ASKED.reset(token)


def command(words: Sequence[str]) -> str:
    """The shell command of `advfast` with these words, without flags that results do not depend on."""
    return shlex.join(["advfast", *(word for word in words if word not in _FLAGS)])


def recorded(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A function whose call is what `asked` says within it, unless a command line led to it."""

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if asked():
            return function(*args, **kwargs)
        given = inspect.signature(function).bind(*args, **kwargs).arguments
        with asking(_expression(function, given)):
            return function(*args, **kwargs)

    return run


def _expression(function: Callable[..., Any], given: Mapping[str, Any]) -> str:
    kinds = {p.name: p.kind for p in inspect.signature(function).parameters.values()}
    shown: dict[str, Any] = {}
    for name, value in given.items():
        shown |= value if kinds[name] is inspect.Parameter.VAR_KEYWORD else {name: value}
    words = (f"{name}={_value(v)}" for name, v in shown.items() if name not in _ARGUMENTS)
    package = ".".join(function.__module__.split(".")[:2])
    return f"{package}.{function.__name__}({', '.join(words)})"


def _value(value: object) -> str:
    """As Python writes it; what has no such form by its kind."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, Path):
        return repr(str(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_value(part)}" for key, part in value.items()) + "}"
    if isinstance(value, (list, tuple, range)):
        return f"[{', '.join(map(_value, value))}]"
    return f"<{getattr(value, '__name__', type(value).__name__)}>"
