"""Random draws of the Square attack: of each sample by itself, or the published implementation's for the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from advfast.attacks.rows import _Selectable
from advfast.kernels.pgd.reference import philox

_WORD = 0xFFFFFFFF
_FIRST_BLOCK = 1 << 31
"""Of the counters here: other draws of a sample have lower ones."""
_RUN_BLOCKS = 1 << 16
"""Counters of a restart."""
_START = _WORD
"""Number of the stream of a run's start; a query's is its number."""
_AHEAD = 64
"""Queries that are drawn at once: small operations cost as much as large ones."""
_AHEAD_ROWS = 2**16


@dataclass
class Drawn:
    """What one query moves where; of a block of q queries, with an axis [q] behind the first.

    Attributes:
        places: [n, 2] int64, top row and left column of the window.
        others: the same of a second window of that size; None for linf.
        turned: [n] bool, the pattern of l2 and l1 lies on its side.
        signs: [n, C] in the dtype of the images.
    """

    places: Tensor
    others: Tensor | None
    turned: Tensor | None
    signs: Tensor

    def at(self, *index: Any) -> Drawn:
        """That part of all of them."""
        others = None if self.others is None else self.others[index]
        turned = None if self.turned is None else self.turned[index]
        return Drawn(self.places[index], others, turned, self.signs[index])


@dataclass
class _Ahead(_Selectable):
    """ids: [n]; words: [n, q, 4]; bits: [n, q, 1 + C] bool."""

    ids: Tensor
    words: Tensor
    bits: Tensor


class Draws(Protocol):
    """The draws of one run."""

    def start(self, count: int) -> Tensor:
        """[n, count] signs in the dtype of the images, 1 or -1: what the run starts from."""

    def query(self, number: int, rooms: tuple[int, int]) -> Drawn:
        """Of queries in their order. rooms: how many rows and columns the window can be moved by."""

    def keep(self, index: Tensor) -> None:
        """The other rows take no further part."""


class KeyedDraws:
    """Philox, keyed by (seed, sample id, query, restart): a sample's draws do not depend on the others'."""

    def __init__(
        self, ids: Tensor, seed: int, restart: int, channels: int, norm: str, dtype: torch.dtype
    ) -> None:
        self._ids, self._channels, self._norm, self._dtype = ids, channels, norm, dtype
        key = torch.tensor(seed, dtype=torch.int64, device=ids.device)
        self._key = key & _WORD, (key >> 32) & _WORD
        self._block = _FIRST_BLOCK + restart * _RUN_BLOCKS
        self._ahead: _Ahead | None = None
        self._first = self._last = 0

    def start(self, count: int) -> Tensor:
        words = self._words(torch.full((1,), _START, device=self._ids.device), 1, count)
        return self._signs(_bits(words.flatten(1), count))

    def query(self, number: int, rooms: tuple[int, int]) -> Drawn:
        return self.block(number, 1, rooms).at(slice(None), 0)

    def block(self, first: int, count: int, rooms: tuple[int, int]) -> Drawn:
        """[n, q, ...] of the next q queries, as many of `count` as are drawn together."""
        if self._ahead is None or not self._first <= first < self._last:
            self._draw(first)
        assert self._ahead is not None
        at = slice(first - self._first, first - self._first + count)
        words, bits = self._ahead.words[:, at], self._ahead.bits[:, at]
        # Every place inside the image is as likely as any other.
        most = torch.tensor(rooms * 2, device=words.device) + 1
        places = (words * most) >> 32
        signs = self._signs(bits[..., 1:])
        if self._norm == "linf":
            return Drawn(places[..., :2], None, None, signs)
        return Drawn(places[..., :2], places[..., 2:], bits[..., 0], signs)

    def keep(self, index: Tensor) -> None:
        self._ids = self._ids[index]
        if self._ahead is not None:
            self._ahead = self._ahead.selected(index)

    def _draw(self, first: int) -> None:
        count = max(1, min(_AHEAD, _AHEAD_ROWS // max(1, len(self._ids))))
        numbers = torch.arange(first, first + count, device=self._ids.device)
        words = self._words(numbers, 2, 1 + self._channels)
        bits = _bits(words[:, :, 1:].flatten(2), 1 + self._channels)
        self._ahead = _Ahead(self._ids, words[:, :, 0], bits)
        self._first, self._last = first, first + count

    def _words(self, streams: Tensor, at: int, bits: int) -> Tensor:
        """[n, q, blocks, 4]: of `at - 1` blocks, and of those that hold so many bits."""
        blocks = at - 1 + -(-bits // 128)
        block = self._block + torch.arange(blocks, device=self._ids.device)
        ids = self._ids[:, None, None]
        counter = (block[None, None], streams[None, :, None], ids & _WORD, (ids >> 32) & _WORD)
        return philox(counter, self._key)

    def _signs(self, bits: Tensor) -> Tensor:
        return bits.to(self._dtype) * 2 - 1


def _bits(words: Tensor, count: int) -> Tensor:
    """The first bits of [..., w] words, the lowest of a word first: [..., count] bool."""
    words, shifts = words[..., : -(-count // 32)], torch.arange(32, device=words.device)
    return (((words[..., None] >> shifts) & 1) > 0).flatten(-2)[..., :count]


class PublishedDraws:
    """Those of the published implementation on a CPU, from a generator seeded as it seeds torch's own.

    A query's windows, and for linf its signs, are the same for all rows; the last row and column are reached only by
    windows that fill the image.
    """

    def __init__(
        self, rows: int, generator: torch.Generator, channels: int, norm: str, like: Tensor
    ) -> None:
        self._rows, self._generator, self._channels = rows, generator, channels
        self._norm, self._like = norm, like

    def start(self, count: int) -> Tensor:
        return self.signs(self._rows, count)

    def signs(self, *shape: int) -> Tensor:
        drawn = torch.sign(2 * torch.rand(shape, generator=self._generator) - 1)
        return drawn.to(self._like.device, self._like.dtype)

    def turned(self) -> bool:
        return bool(torch.rand(1, generator=self._generator) > 0.5)

    def query(self, number: int, rooms: tuple[int, int]) -> Drawn:
        places = self._place(rooms)
        if self._norm == "linf":
            return Drawn(places, None, None, self.signs(1, self._channels).expand(self._rows, -1))
        others, turned = self._place(rooms), self.turned()
        rows = torch.full((self._rows,), turned, device=self._like.device)
        return Drawn(places, others, rows, self.signs(self._rows, self._channels))

    def keep(self, index: Tensor) -> None:
        self._rows = len(index)

    def _place(self, rooms: tuple[int, int]) -> Tensor:
        place = [int(room * torch.rand(1, generator=self._generator)) for room in rooms]
        return torch.tensor([place], device=self._like.device).expand(self._rows, 2)
