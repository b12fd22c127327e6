"""Long-tailed training sets made of balanced ones, and what their classes are called."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .noisy import NAME as NOISY
from .sources import Source, as_source
from .splits import Splits

LEAST_HELD_OUT, MOST_HELD_OUT = 10, 2000
"""Images of each class, and in all, that a held-out part of the images which are left out has."""

_NAME = re.compile(r"(?P<base>.+)-lt(?::(?P<imbalance>[^:]*)(?::(?P<head>[^:]*))?)?", re.IGNORECASE)


class Groups(NamedTuple):
    """Class numbers by their number of training samples: the largest third, the rest, the smallest."""

    head: tuple[int, ...]
    medium: tuple[int, ...]
    tail: tuple[int, ...]


def long_tail_counts(classes: int, head: int, imbalance: float) -> list[int]:
    """n_c = int(head * imbalance ** (c / (C - 1))), the samples of each class (Cui et al., CVPR 2019).

    Args:
        classes: C, at least 2.
        head: samples of class 0.
        imbalance: those of the last class over those of the first, above 0 and at most 1.

    Raises:
        ValueError: one is out of range, or a class would have no sample.
    """
    number = isinstance(imbalance, (int, float)) and not isinstance(imbalance, bool)
    if not number or not 0 < imbalance <= 1:
        raise ValueError(
            "imbalance is the size of the smallest class over that of the largest: it must be above 0 and at most 1, "
            f"got {imbalance!r}"
        )
    if isinstance(head, bool) or not isinstance(head, int) or head < 1:
        raise ValueError(f"head must be an integer >= 1, got {head!r}")
    if classes < 2:
        raise ValueError(f"a long tail needs at least 2 classes, the data have {classes}")
    counts = [int(head * imbalance ** (number / (classes - 1))) for number in range(classes)]
    if counts[-1] < 1:
        raise ValueError(
            f"imbalance={imbalance} leaves class {counts.index(0)} without a sample: of {head} in the largest class it "
            f"must be at least {1 / head:.3g}"
        )
    return counts


def long_tail_split(
    labels: Tensor, imbalance: float, *, head: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The sample numbers of a long-tailed part, and of the rest.

    Classes are taken in the order of their labels, class 0 is the largest. Of class c the first n_c of a shuffle by
    (seed, c) are taken (see `long_tail_counts`), so that of two parts with one seed the smaller is in the larger.

    Args:
        labels: [N] integer classes 0 .. C-1, each at least once.
        imbalance: size of the last class over that of the first.
        head: samples of class 0; None is the size of the smallest class of `labels` (CIFAR-10: 5,000).
        seed: of the shuffle.

    Returns:
        (kept, left out): int64, sorted, disjoint, together 0 .. N-1.

    Raises:
        ValueError: see `long_tail_counts`; a class has fewer samples than it is to give.
    """
    labels = labels.cpu()
    there = torch.bincount(labels).tolist()
    if min(there, default=0) == 0:
        missing = there.index(0) if there else 0
        raise ValueError(f"class {missing} has no sample: the labels must be 0 .. C-1")
    counts = long_tail_counts(len(there), min(there) if head is None else head, imbalance)
    kept = torch.zeros(len(labels), dtype=torch.bool)
    for number, (count, most) in enumerate(zip(counts, there, strict=True)):
        if count > most:
            raise ValueError(
                f"head={head} asks for {count} samples of class {number}, which has {most}"
            )
        members = (labels == number).nonzero()[:, 0]
        order = np.random.default_rng((seed, number)).permutation(most)
        kept[members[torch.from_numpy(order[:count])]] = True
    return kept.nonzero()[:, 0], (~kept).nonzero()[:, 0]


def long_tail(data: object, imbalance: float, *, head: int | None = None, seed: int = 0) -> Source:
    """The long-tailed part of a data set, see `long_tail_split`.

    Args:
        data: a pair (images, labels), a torch Dataset or a Source.
        imbalance, head, seed: see `long_tail_split`.

    Raises:
        TypeError, ValueError: bad data; see `long_tail_split`.
    """
    source = as_source(data)
    return source.subset(long_tail_split(source.labels, imbalance, head=head, seed=seed)[0])


def long_tail_groups(counts: Sequence[int] | Tensor) -> Groups:
    """Classes by their number of samples: head, medium and tail, each in the order of the labels.

    The tail is the C - 1 - 2 floor(C/3) smallest classes (at least one), as REAT's code has it: 3 of 10, 33 of 100; the
    head the floor(C/3) largest. Of classes that are equally large the later one is the smaller.

    Args:
        counts: samples of each class, at least 2 classes.
    """
    sizes = [int(count) for count in counts]
    classes, third = len(sizes), len(sizes) // 3
    if classes < 2:
        raise ValueError(f"a long tail has at least 2 classes, got {classes}")
    order = sorted(range(classes), key=lambda number: (-sizes[number], number))
    first = min(2 * third + 1, classes - 1)
    parts = order[:third], order[third:first], order[first:]
    return Groups(*(tuple(sorted(part)) for part in parts))


def base_name(name: str) -> str:
    """The data set that a long-tailed or noisy one is made of; another name as it is."""
    found = _NAME.fullmatch(name) or NOISY.fullmatch(name)
    return found["base"].lower() if found else name


def named_long_tail(
    name: str, readers: Sequence[str], read: Callable[[str], Splits]
) -> Splits | None:
    """The data set of a name "BASE-lt:IMBALANCE" or "BASE-lt:IMBALANCE:HEAD"; None for a name of another kind.

    The test set is that of the base, balanced and untouched. The held-out part is balanced too where the images that
    are left out have at least 10 of every class: then it has equally many of each, at most 2,000 in all. Else it is
    None (as where class 0 is used up), and training holds out a part of the long-tailed images.

    Args:
        readers: names of the built-in data sets.
        read: one of them.

    Raises:
        ValueError: a number in it is none; see `long_tail_split`.
    """
    found = _NAME.fullmatch(name)
    if found is None or found["base"].lower() not in readers:
        return None
    base = found["base"].lower()
    try:
        imbalance = float(found["imbalance"])
        head = None if found["head"] is None else int(found["head"])
    except (TypeError, ValueError):
        raise ValueError(
            f"{name!r} must be {base}-lt:IMBALANCE, such as {base}-lt:0.05, or {base}-lt:IMBALANCE:HEAD with the "
            "size of the largest class"
        ) from None
    splits = read(base)
    source = splits.train
    assert not isinstance(source, DataLoader)
    kept, rest = long_tail_split(source.labels, imbalance, head=head)
    chosen = _balanced(source.labels, rest)
    called = f"{base}-lt-{imbalance:g}" + ("" if head is None else f"-{head}")
    val = None if chosen is None else source.subset(chosen)
    return replace(splits, name=called, train=source.subset(kept), val=val)


def _balanced(labels: Tensor, among: Tensor) -> Tensor | None:
    """Equally many samples of each class, the first of them; None where one has too few."""
    classes = int(labels.max()) + 1
    found = [among[labels[among] == number] for number in range(classes)]
    size = min(min(map(len, found)), max(MOST_HELD_OUT // classes, 1))
    if size < LEAST_HELD_OUT:
        return None
    return torch.cat([part[:size] for part in found]).sort().values
