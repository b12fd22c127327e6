"""Folded and packed weights for the next call, as long as the model's own have not changed in any bit."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advfast.kernels.hash.ops import row_hash_op

from .program import Opened, Program

_MOST_BYTES = 2**26
"""Of a model's weights: twice as much is kept beside them."""
_ROWS = 64


@dataclass
class Kept:
    """What was opened last.

    Attributes:
        marks: identities and versions of the tensors; a change of them says that the weights have changed.
        digest: of all values, once the marks were seen twice; versions do not see a write through `.data`.
    """

    kind: Hashable
    marks: tuple[tuple[int, int], ...]
    digest: Tensor | None
    opened: Opened | None


def _tensors(model: nn.Module) -> list[Tensor]:
    return [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]


def _digest(tensors: list[Tensor]) -> Tensor:
    """64 bits of each part of each tensor: that two states of a network share them all is not to be expected."""
    parts = []
    for tensor in tensors:
        values = tensor.detach().contiguous()
        rows = _ROWS if values.numel() and values.numel() % _ROWS == 0 else 1
        parts.append(row_hash_op(values.view(rows, -1), "auto"))
    return torch.cat(parts)


def open_program(
    kept: Kept | None,
    program: Program,
    model: nn.Module,
    example: Tensor,
    dtype: torch.dtype,
    autocast: bool,
) -> tuple[Opened, Kept | None]:
    """The program with the weights as they are now, and what to hand in at the next call.

    In training the weights change between calls and nothing is compared or kept. On a GPU folding is part of the
    recorded graph.
    """
    opened = None
    tensors = _tensors(model)
    size = sum(t.numel() * t.element_size() for t in tensors)
    unseen = example.device.type != "cpu" or any(t.is_inference() for t in tensors)
    if unseen or not 0 < size <= _MOST_BYTES:
        return program.open(model, example, dtype, autocast=autocast), None
    kind = (dtype, autocast, example.shape[1:])
    marks = tuple((id(t), t._version) for t in tensors)
    seen = kept is not None and kept.kind == kind and kept.marks == marks
    digest = _digest(tensors) if seen else None
    if kept is not None and kept.digest is not None and digest is not None:
        same = kept.digest.shape == digest.shape and torch.equal(kept.digest, digest)
        opened = kept.opened if same else None
    if opened is None:
        opened = program.open(model, example, dtype, autocast=autocast)
    return opened, Kept(kind, marks, digest, opened if seen else None)
