"""Temporal ensembling against robust overfitting (Dong et al., ICLR 2022, after Laine & Aila, ICLR 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from advfast.attacks.state import parameter_dtype
from advfast.data import Batch

from ..methods import guide
from ..parallel import Ranks
from .base import Modifier, RunInfo, StepInfo

if TYPE_CHECKING:
    from ..loop import Batches
    from ..methods import Method


class TE(Modifier):
    """Draws predictions on each image to the moving average of what was predicted of it before.

    From epoch `start` on, before the images x of a batch with sample numbers I are attacked: p = softmax f(x) in eval
    mode, of the clean, augmented images; S[I] <- momentum S[I] + (1 - momentum) p; and the batch's guide is S[I] over
    the sums of its rows, so that the zeros that S begins with do not count. Attack and loss of a method that is
    `guided` have w mean (softmax f - guide)^2 more, the mean over samples and classes, w = weight r(e) in epoch e (from
    1): r(e) = exp(-5 (1 - (e - start) / (end - start))^2) from `start` to `end`, 1 afterwards. Before `start`, and in
    epochs of a clean prefix, nothing is done at all.

    S, [N, K] float32 (float64 of such a model), lies on the device, of several ranks each has a block of its rows; it
    is saved with the run, which may go on with another number of ranks. Of a sample that comes twice in a batch (extra
    data are drawn with replacement) the first one counts.

    Args:
        start: an epoch from 1, or below 1 a share of the run: 90 of 200 in the paper, the default 0.45.
        end: likewise: 150 of 200, 0.75. It may lie behind the run.
        weight: the greatest, 0 or more: 300, which over 10 classes is the paper's 30 of a squared l2 distance.
        momentum: of S, at least 0 and below 1: 0.9.

    Raises:
        ValueError: one of them out of range; in a run: a start behind its end, or samples without numbers.
    """

    name = "te"

    guides = True

    def __init__(
        self, start: float = 0.45, end: float = 0.75, weight: float = 300.0, momentum: float = 0.9
    ) -> None:
        for word, value in (("start", start), ("end", end)):
            if not _number(value, 0, math.inf) or (value >= 1 and value != int(value)):
                raise ValueError(
                    f"te: {word} must be an epoch from 1 or a share of the run below 1, got {value!r}"
                )
        if not _number(weight, 0, math.inf):
            raise ValueError(f"te: weight must be a finite number >= 0, got {weight!r}")
        if not _number(momentum, 0, 1):
            raise ValueError(f"te: momentum must be at least 0 and below 1, got {momentum!r}")
        self.start, self.end = float(start), float(end)
        self.weight, self.momentum = float(weight), float(momentum)
        self.active = False
        self._ramp = self.start, self.end
        self._labels: SoftLabels | None = None
        self._method: Method | None = None
        self._weight = torch.zeros(())

    def begin(self, model: nn.Module, run: RunInfo) -> None:
        first, full = (_epoch(value, run.epochs) for value in (self.start, self.end))
        if first > run.epochs:
            raise ValueError(
                f"te: start must be at most the {run.epochs} epochs of the run, got {self.start:g}"
            )
        if full <= first:
            raise ValueError(
                f"te: end must lie behind start, got epochs {first:g} and {full:g} of {run.epochs}"
            )
        if run.samples is None:
            raise ValueError(
                "te keeps a prediction of each sample: it needs the data as tensors or a Dataset, not a "
                "DataLoader of your own"
            )
        device = next(model.parameters()).device
        dtype = torch.float64 if parameter_dtype(model) == torch.float64 else torch.float32
        self._ramp = first, full
        self._labels = SoftLabels(run.samples, run.classes, dtype, device, run.ranks)
        # A tensor that stays where it is: a recorded step reads it.
        self._weight = torch.zeros((), dtype=dtype, device=device)

    def begin_epoch(self, epoch: int, batches: Batches) -> None:
        assert self._labels is not None
        self._labels.whole = batches.whole

    def before_step(self, info: StepInfo) -> None:
        assert self._labels is not None
        epoch, step = divmod(info.step, info.steps_per_epoch)
        ramp = rise(epoch + 1, *self._ramp)
        self.active = ramp > 0 and info.method.guided
        self._method, self._labels.step = info.method, step
        if self.active:
            self._weight.fill_(self.weight * ramp)

    def batch(self, batch: Batch) -> Batch:
        method, labels = self._method, self._labels
        if not self.active or method is None or labels is None:
            return batch
        assert batch.indices is not None
        found = guide.probabilities(method, method.clean_logits, batch.images, "eval")
        return batch._replace(
            guide=labels.follow(batch.indices, found, self.momentum), guide_weight=self._weight
        )

    def extra_passes(self) -> float:
        return float(self.active)

    def graph_key(self) -> Hashable:
        return self.active

    def state_dict(self) -> dict[str, Any]:
        return {} if self._labels is None else {"soft_labels": self._labels.table()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self._labels is not None
        self._labels.take(state["soft_labels"])


class SoftLabels:
    """The averages S, [samples, classes], zeros at first; of several ranks each keeps a block of rows.

    Attributes:
        whole: of several ranks: step of an epoch -> samples of all of them.
        step: the one at hand.
    """

    def __init__(
        self, samples: int, classes: int, dtype: torch.dtype, device: torch.device, ranks: Ranks
    ) -> None:
        self.samples, self.ranks, self.step = samples, ranks, 0
        self.whole: Callable[[int], int] = lambda step: 0
        rows = -(-samples // ranks.world)
        self.first = min(rows * ranks.rank, samples)
        self.rows = torch.zeros(
            (min(rows, samples - self.first), classes), dtype=dtype, device=device
        )

    @torch.no_grad()
    def follow(self, numbers: Tensor, found: Tensor, momentum: float) -> Tensor:
        """Collective: the averages of samples `numbers` [B] take in `found` [B, K]; they over their sums, [B, K]."""
        found = found.to(self.rows.dtype)
        if self.ranks.world == 1:
            return self._updated(numbers, found, momentum)
        total, share = self.whole(self.step), self.ranks.share
        part, read = share.part(total), share.read(total)
        mine = slice(
            0, part.stop - part.start
        )  # nothing of what is read to keep the others company
        everyones = found.new_zeros(total, found.shape[1])
        theirs = numbers.new_zeros(total)
        everyones[part], theirs[part] = found[mine], numbers[mine]
        self.ranks.reduce([everyones, theirs])
        kept = theirs - self.first
        (own,) = torch.where((kept >= 0) & (kept < len(self.rows)))
        guides = torch.zeros_like(everyones)
        guides[own] = self._updated(kept[own], everyones[own], momentum)
        self.ranks.reduce([guides])
        return guides[read]

    def _updated(self, places: Tensor, found: Tensor, momentum: float) -> Tensor:
        # Of a place that comes twice the first one, for all of them: which one is written last is not defined.
        ranked, order = places.sort(stable=True)
        first = order[torch.searchsorted(ranked, places)]
        averages = momentum * self.rows[places] + (1 - momentum) * found[first]
        self.rows.index_copy_(0, places, averages)
        return averages / averages.sum(1, keepdim=True)

    def table(self) -> Tensor:
        """Collective: all rows, the same in every rank."""
        if self.ranks.world == 1:
            return self.rows
        whole = self.rows.new_zeros(self.samples, self.rows.shape[1])
        whole[self.first : self.first + len(self.rows)] = self.rows
        self.ranks.reduce([whole])
        return whole

    def take(self, table: Tensor) -> None:
        """All rows, as `table` gave them."""
        self.rows.copy_(table[self.first : self.first + len(self.rows)])


def rise(epoch: int, start: float, end: float) -> float:
    """r(e) of the weight in an epoch, from 1."""
    if epoch < start:
        return 0.0
    return math.exp(-5 * (1 - min(1.0, (epoch - start) / (end - start))) ** 2)


def _epoch(value: float, epochs: int) -> float:
    # 0.07 * 100 is more than 7 in floating point: it would begin an epoch late.
    return round(value * epochs, 9) if value < 1 else value


def _number(value: object, least: float, below: float) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and least <= value < below  # type: ignore[operator]
