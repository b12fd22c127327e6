"""Large inputs in pieces: how many rows a pass may have."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .network import Network
from .plan import Logits

FOLDED_ELEMENTS = 2**21
"""Input elements of a pass into which runs are folded when no limit is given (680 CIFAR images): more rows than that
keep no device busier, and take memory that one run at a time does not."""

_LOOP = 8
"""Tensors like x that the loop holds at most: iterate, input, gradient, centre, result and what options add."""


def most_rows(batch: int, elements: int) -> int:
    """Rows of a pass where no limit is given: the batch, or as many as runs fill up to `FOLDED_ELEMENTS`."""
    return max(batch, FOLDED_ELEMENTS // max(1, elements))


def pieces(batch: int, runs: int, limit: int) -> Iterator[slice]:
    """The batch in pieces of which all runs fit in `limit` rows; where not even one sample's do, of one sample."""
    size = max(1, limit // runs)
    for first in range(0, batch, size):
        yield slice(first, min(first + size, batch))


def bytes_a_row(network: Network, logits: Logits, x: Tensor) -> int:
    """An estimate of what one row takes in a step: what the forward pass keeps, and the tensors of the loop.

    Measured as the difference between two rows and one, so that weights do not count. The largest that is kept counts
    twice more, for the result and the gradient of a layer at work. What a library takes for itself is not seen.
    """
    kept, largest = [], 0
    for rows in (1, 2):
        found: dict[int, int] = {}

        def pack(t: Tensor, found: dict[int, int] = found) -> Tensor:
            storage = t.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
            return t

        logits.rows = rows
        example = x[:1].expand(rows, *x.shape[1:]).to(network.input_dtype).clone()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            network.gradient(example, _first_logit)
        kept.append(sum(found.values()))
        largest = max(found.values(), default=0) - largest
    return max(1, kept[1] - kept[0] + 2 * largest + _LOOP * x[0].numel() * x.element_size())


def _first_logit(logits: Tensor) -> Tensor:
    return logits[:, 0]
