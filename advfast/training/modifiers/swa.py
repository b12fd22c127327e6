"""Stochastic weight averaging (Izmailov et al., UAI 2018; against robust overfitting Chen et al., ICLR 2021)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..parallel import Ranks
from .base import Modifier, RunInfo

if TYPE_CHECKING:
    from ..loop import Batches


class SWA(Modifier):
    """The mean of the weights at the ends of epochs; from the first of them on it is what is evaluated and saved.

    average <- average + (weights - average) / (n + 1) after every epoch from `start` on, n the number of those before.
    The running statistics of batch normalisation are then taken anew for the averaged weights: the mean of the batch
    statistics over the clean, augmented images of that epoch, as Chen et al. do. Other buffers are the model's.

    Args:
        start: the first epoch that counts (from 1), or below 1 the share of the run after which they count. Chen et al.
            take epoch 55 of 200, after the first fall of the learning rate.

    Raises:
        ValueError: start out of range.
    """

    name = "swa"

    averages = True

    def __init__(self, start: float = 0.5) -> None:
        number = isinstance(start, (int, float)) and not isinstance(start, bool)
        if not number or not 0 <= start < math.inf or (start >= 1 and start != int(start)):
            raise ValueError(
                f"swa: start must be an epoch from 1 or a share of the run below 1, got {start!r}"
            )
        self.start = float(start)
        self.count = 0
        self.average: dict[str, Tensor] = {}
        self._first = 1
        self._trained: set[str] = set()
        self._ranks = Ranks()

    def begin(self, model: nn.Module, run: RunInfo) -> None:
        share = self.start < 1
        self._first = math.floor(self.start * run.epochs) + 1 if share else int(self.start)
        if self._first > run.epochs:
            raise ValueError(
                f"swa: start must be at most the {run.epochs} epochs of the run, got {self.start:g}"
            )
        self.count, self._ranks = 0, run.ranks
        self._trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def after_epoch(self, model: nn.Module, epoch: int, batches: Batches) -> None:
        if epoch < self._first:
            return
        for name, value in model.state_dict().items():
            if self.count and name in self._trained and value.is_floating_point():
                average = self.average[name]
                average.add_((value - average) / (self.count + 1))
            else:
                self.average[name].copy_(value)
        self.count += 1
        with self.evaluating(model):
            # Once each, where a method repeats batches.
            inner = getattr(batches, "inner", batches)
            with self._ranks.updating(model):
                estimate_statistics(model, self._images(inner, epoch))
            for name, value in model.state_dict().items():
                if name not in self._trained:
                    self.average[name].copy_(value)

    def _images(self, batches: Batches, epoch: int) -> Iterator[Tensor]:
        ranks = self._ranks
        for step, batch in enumerate(batches.batches(epoch)):
            if ranks.world > 1:
                ranks.weight = ranks.share.weight(batches.whole(step))
            yield batch.images
        ranks.weight = 1 / ranks.world  # where each has statistics of its own, their mean

    @contextmanager
    def evaluating(self, model: nn.Module) -> Iterator[None]:
        if not self.count:
            yield
            return
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def graph_key(self) -> Hashable:
        return None  # no part of a step is its own

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = int(state["count"])
        with torch.no_grad():
            for name, value in state["average"].items():
                self.average[name].copy_(value)


@torch.no_grad()
def estimate_statistics(model: nn.Module, images: Iterator[Tensor]) -> None:
    """Running statistics of batch normalisation: the mean over batches of images, everything else in eval mode.

    Modes of the submodules are left as they were.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    if not layers:
        return
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    model.eval()
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
            layer.momentum = None  # the mean of all batches
        for batch in images:
            model(batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, training in modes:
            module.training = training
