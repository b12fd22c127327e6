"""REAT: re-balancing adversarial training on long-tailed data (Li et al., arXiv 2307.10205)."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from advfast.attacks import losses
from advfast.attacks.state import crafting
from advfast.data import Batch, long_tail_groups

from .. import names
from .at_bsl import ATBSL
from .base import Backward, Settings, Step
from .tail import Features, linear_layer, tail_penalty

if TYPE_CHECKING:
    from ..loop import Batches

RBL = ("released", "logit-adjust", "step-scale")
TAILS = ("released", "pairwise", "off")
LEAST_STEP, MOST_STEP = 0.5, 2.0
"""Of alpha, in step-scale: ten steps of eps/8 still cross the ball, and steps above eps/2 gain nothing."""


class REAT(ATBSL):
    """CE(f(x') + log n, y) + tail_weight TAIL, on images of an attack that is balanced by what it led to before.

    The attack ("RBL") weighs class c by w_c = 1 / E_c, scaled to a mean of 1, with the effective number E_c = (1 -
    b_c^a_c) / (1 - b_c), b_c = (n_c - 1) / n_c: a_c is how often the images of the last epoch's attacks were classified
    as c, by the train-mode logits before each step, and n_c (the training images of c) before there was one. The counts
    a [C] are saved with the run and written to ae_predictions.csv, a row an epoch; they sum to the images trained on.

    TAIL draws features together by KL divergences of their softmax, anchored at the samples of the rarest classes; see
    `tail_penalty`. Options:

    * rbl: "released": cross-entropy weighted by w_y, as in the authors' code. A positive weight of a sample changes no
      sign, and no direction of its gradient: with bn="eval" the images are those of plain cross-entropy up to rounding.
      "logit-adjust": CE(z + log w, y), which pushes towards the classes that were predicted rarely. "step-scale": plain
      cross-entropy, with a step of w_y alpha, held between alpha/2 and 2 alpha;
    * tail: "released": one number for each anchor, as the authors' code computes it; "pairwise": a term for each pair,
      as it is described; "off";
    * tail_weight: 1;
    * tail_classes: class numbers; None is `long_tail_groups(n).tail`, the last third as published;
    * features: name of the module whose input [B, D] the features are; None is the last nn.Linear;
    * counts: n, where the data do not tell.

    The attack starts uniformly in the ball. Of several processes TAIL is that of the whole batch.

    Raises:
        ValueError: an option out of range, or `micro_batch` with TAIL, which is of the whole batch; before a run
            starts, as `ATBSL`, or no such module.
    """

    options = ("rbl", "tail", "tail_weight", "tail_classes", "features", "counts")
    soft_labels = False

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        self.rbl = self._choice("rbl", RBL)
        self.tail = self._choice("tail", TAILS)
        self.tail_weight = self.number("tail_weight", 1.0)
        if self.tail != "off" and settings.micro_batch is not None:
            raise ValueError(
                f"tail={self.tail!r} compares all samples of a batch: micro_batch must be None, got "
                f"{settings.micro_batch}; or give tail='off'"
            )
        kinds = {"released": self.weighted, "logit-adjust": self.adjusted, "step-scale": "ce"}
        self.pgd = self.attack(loss=kinds[self.rbl])
        self.rows: list[dict[str, int]] = []

    def _choice(self, name: str, known: tuple[str, ...]) -> str:
        value = self.option(name, known[0])
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        return value

    def begin(self, batches: Batches, images: Tensor) -> None:
        super().begin(batches, images)
        classes = len(self.counts)
        groups = long_tail_groups(self.counts)
        chosen = self.option("tail_classes", None)
        chosen = groups.tail if chosen is None else chosen
        if not isinstance(chosen, (list, tuple)) or not all(c in range(classes) for c in chosen):
            raise ValueError(
                f"tail_classes must be a list of class numbers 0 .. {classes - 1}, got {chosen!r}"
            )
        is_tail = [number in chosen for number in range(classes)]
        self.is_tail = torch.tensor(is_tail, device=images.device)
        dtype = self.log_counts.dtype
        self.rarity = (self.counts.sum() / self.counts.double()).sqrt().to(dtype)  # [C]
        self.layer = None
        if self.tail != "off":
            self.layer = linear_layer(self.model, self.option("features", None))
            with crafting(self.model, "eval"), torch.no_grad(), Features(self.layer) as features:
                self.logits(images)
            features.check(len(images))
        self.predicted = self.counts.clone()
        """a: the predictions of the last epoch, int64 [C]."""
        self.found = torch.zeros_like(self.predicted)
        """Those of the epoch at hand, of this process."""
        self.weight = torch.ones(classes, dtype=dtype, device=images.device)
        self.log_weight = torch.zeros_like(self.weight)

    def begin_epoch(self, epoch: int, batches: Batches) -> None:
        weight = class_weights(self.predicted, self.counts)
        self.weight.copy_(weight)
        self.log_weight.copy_(weight.log())

    def after_epoch(self, epoch: int) -> None:
        counts = self._found()
        self.predicted.copy_(torch.tensor(counts))
        self.found.zero_()
        self.rows.append({"epoch": epoch} | {f"class_{c}": n for c, n in enumerate(counts)})

    def weighted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """w_y CE(z, y), [B]. The released code divides by the batch's sum of weights, which no step sees."""
        value = losses.ce(logits, labels)
        return self.weight[labels].to(value.dtype) * value

    def adjusted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """CE(z + log w, y), [B]."""
        return losses.ce(losses.widen(logits) + self.log_weight, labels)

    def craft(self, batch: Batch) -> Tensor:
        if self.rbl == "step-scale":
            scale = self.weight.clamp(LEAST_STEP, MOST_STEP)[batch.labels]
            self.pgd.alpha = self.alpha * scale.view(-1, *[1] * (batch.images.dim() - 1))
        return super().craft(batch)

    def loss(self, images: Tensor, batch: Batch) -> Step:
        with nullcontext() if self.layer is None else Features(self.layer) as features:
            step = super().loss(images, batch)
        if features is None:
            return step
        seen, labels = features.input, batch.labels
        penalty = tail_penalty(
            seen,
            labels,
            self.is_tail,
            self.rarity,
            pairwise=self.tail == "pairwise",
            anchors=self._of_all_ranks(seen.detach(), labels),
        )
        return Step(step.loss + self.tail_weight * penalty, step.logits)

    def update(self, images: Tensor, batch: Batch, backward: Backward) -> Step:
        step = self.loss(images, batch)
        if self.ranks.weight:  # else two samples of another rank's
            classes = torch.arange(len(self.found), device=images.device)
            # Not bincount, which would make a GPU wait.
            self.found += (step.logits.detach().argmax(1)[:, None] == classes).sum(0)
        backward(step.loss)
        return step

    def _of_all_ranks(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(features [A, D], labels [A]) of the whole batch, rank by rank."""
        if self.ranks.world == 1:
            return features, labels
        own = len(labels) if self.ranks.weight else 0
        sizes = self.ranks.gathered(own)
        first = sum(sizes[: self.ranks.rank])
        every = features.new_zeros((sum(sizes), features.shape[1]))
        classes = labels.new_zeros(sum(sizes))
        every[first : first + own], classes[first : first + own] = features[:own], labels[:own]
        self.ranks.reduce([every, classes])
        return every, classes

    def _found(self) -> list[int]:
        """The predictions of the epoch at hand, of all processes."""
        return [int(count) for count in self.ranks.total(self.found.tolist())]

    def tables(self) -> dict[str, list[dict[str, int]]]:
        return {names.AE_PREDICTIONS: self.rows}

    def state_dict(self) -> dict[str, Any]:
        return {
            "predicted": self.predicted.clone(),
            "found": torch.tensor(self._found()),
            "rows": [dict(row) for row in self.rows],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.predicted.copy_(state["predicted"])
        self.found.copy_(state["found"])
        if not self.ranks.first:
            self.found.zero_()
        self.rows = [dict(row) for row in state["rows"]]


def class_weights(predicted: Tensor, counts: Tensor) -> Tensor:
    """w, float64 [C], above 0, with a mean of 1: see `REAT`.

    Args:
        predicted: a, int64 [C], 0 or more.
        counts: n, int64 [C], 1 or more.
    """
    base = (counts.double() - 1) / counts.double()
    effective = (1 - base ** predicted.double()) / (1 - base)
    weight = 1 / (effective + 1e-5)
    return weight * (len(weight) / weight.sum())
