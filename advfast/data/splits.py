"""A data set with its parts, and what a user's function may return for one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch.utils.data import DataLoader

from advfast.kernels.pgd.api import nearest

from .sources import Source, as_source

_KEYS = ("train", "val", "test", "class_names")


@dataclass(frozen=True)
class Splits:
    """A data set with the parts that it comes with."""

    name: str
    train: Source | DataLoader
    """A DataLoader only where a user's function returned one."""

    test: Source | DataLoader | None
    class_names: tuple[str, ...] | None
    val: Source | DataLoader | None = None


def as_splits(made: object, name: str, where: str = "data") -> Splits:
    """What a user's function returned.

    Args:
        made: a pair of tensors, a Dataset, a DataLoader or a Source, which is the training data; Splits; or a dict of
            them with the keys "train" and perhaps "val", "test" and "class_names".
        name: of the data set.
        where: begins the messages.

    Raises:
        TypeError, ValueError: it is something else, or its values are wrong.
    """
    if isinstance(made, Splits):
        return made
    if not isinstance(made, Mapping):
        return Splits(name, _part(made, where), None, None)
    unknown = [key for key in made if key not in _KEYS]
    if unknown:
        raise ValueError(
            f"{where}: unknown key {unknown[0]!r}; expected {', '.join(_KEYS)}"
            f"{nearest(str(unknown[0]), _KEYS)}"
        )
    if made.get("train") is None:
        raise ValueError(f"{where}: the dict must have the key 'train', got {', '.join(made)}")
    parts = {
        key: None if made.get(key) is None else _part(made[key], f"{where}: {key}")
        for key in ("train", "val", "test")
    }
    names = made.get("class_names")
    names = None if names is None else tuple(str(entry) for entry in names)
    assert parts["train"] is not None
    return Splits(name, parts["train"], parts["test"], names, parts["val"])


def _part(data: object, where: str) -> Source | DataLoader:
    return data if isinstance(data, DataLoader) else as_source(data, where)
