"""What the loop and the runs hold of each sample; rows may be selected and joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from advfast.kernels.pgd.api import Number

_Table = TypeVar("_Table", bound="_Selectable")


def _in_layout_of(result: Tensor, t: Tensor) -> Tensor:
    if t.is_contiguous():
        return result
    if t.dim() == 4:
        return result.contiguous(memory_format=torch.channels_last)
    return result.contiguous(memory_format=torch.channels_last_3d) if t.dim() == 5 else result


def pick(t: Tensor, index: Tensor) -> Tensor:
    """Rows of t, in its memory format."""
    return _in_layout_of(t.index_select(0, index), t)


def join(parts: Sequence[Tensor]) -> Tensor:
    """The rows of all parts, in the memory format of the first; one part alone as it is."""
    return parts[0] if len(parts) == 1 else _in_layout_of(torch.cat(list(parts)), parts[0])


class _Selectable:
    """A data class of tensors, of which the first has the length of all that have a row for each sample."""

    def selected(self: _Table, index: Tensor) -> _Table:
        """These rows, int64."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        length = len(next(iter(values.values())))
        return type(self)(**{k: self._selected(v, index, length) for k, v in values.items()})

    @staticmethod
    def _selected(value: Any, index: Tensor, length: int) -> Any:
        per_row = isinstance(value, Tensor) and value.dim() and value.shape[0] == length
        return pick(value, index) if per_row else value


@dataclass
class Samples(_Selectable):
    """The samples of a batch, as all their runs see them; eps, alpha and mask may have one row for all.

    Attributes:
        x0: [B, ...] the centres of the balls.
        ids: [B] int64, of their random starts.
        reference: [B] labels, [B, K] soft labels or clean logits: what the loss compares with.
        classes: [B] int64, the class that is to be left (targeted: reached).
        towards: [B, T] int64, the classes that runs go towards.
        starts: [B, R, ...] given starts.
    """

    x0: Tensor
    eps: Number
    alpha: Number
    mask: Tensor | None
    ids: Tensor | None
    reference: Tensor | None
    classes: Tensor | None
    towards: Tensor | None
    starts: Tensor | None


@dataclass
class Rows(_Selectable):
    """A row for each run of each sample, all samples of a run together; the fields as in `Samples`, and

    Attributes:
        x: [N, ...] the iterate.
        target_classes: [N] int64, the class that a run goes towards.
    """

    x: Tensor
    x0: Tensor
    eps: Number
    alpha: Number
    mask: Tensor | None
    reference: Tensor | None
    classes: Tensor | None
    target_classes: Tensor | None
