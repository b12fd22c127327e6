"""The rows of the study of induced distributions: fresh networks on what a checkpoint made of the images."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from advfast.data import Source, TensorSource, ordered
from advfast.training import NonFiniteLoss, checkpoint, train

from .dispersion import MEASURES
from .induced_sets import ROWS, Part, Store
from .runs import Run

IDE = ("ide_test_error", "ide_train_error", "ide_gap", "ide_test_loss")


@dataclass
class Work:
    """
    Attributes:
        run: with the checkpoints.
        train, test: images as they are.
        store: of the perturbed ones.
        fresh: arguments of `advfast.train` for the fresh networks.
        folder: where they train, so that a training that was killed goes on.
        keep_data: leave the perturbed images.
    """

    run: Run
    train: Source
    test: Source
    store: Store
    fresh: dict[str, Any]
    folder: Path
    keep_data: bool
    _epoch: int | None = None
    _sets: dict[str, Part] = field(default_factory=dict)

    def measure(self, epoch: int, seed: int) -> dict[str, float | None]:
        """The row of a checkpoint and a fresh network; those of a checkpoint are expected one after the other."""
        if epoch != self._epoch:
            if self._epoch is not None:  # at first there may be sets that a killed study left
                self.finish()
            make = partial(self.run.model, epoch)
            for name, source in (("train", self.train), ("test", self.test)):
                self._sets[name] = self.store.part(epoch, name, source, make)
            self._epoch = epoch
        of_train, of_test = self._sets["train"].measures, self._sets["test"].measures
        found: dict[str, float | None] = self._ide(epoch, seed) | {
            "robust_train": of_train["robust"],
            "robust_test": of_test["robust"],
            "robust_gap": of_train["robust"] - of_test["robust"],
            "checkpoint_train": of_train["accuracy"],
            "checkpoint_test": of_test["accuracy"],
        }
        for name in MEASURES:
            found |= {f"{name}_test": of_test[name], f"{name}_train": of_train[name]}
        return found

    def finish(self) -> None:
        """What was on disk for the last checkpoint."""
        if not self.keep_data:
            self.store.drop()

    def _ide(self, epoch: int, seed: int) -> dict[str, float | None]:
        room = self.store.crafting.room
        train_set, test_set = (self._sets[name].source(room) for name in ("train", "test"))
        net = self.run.fresh(seed)
        net = room.network(net, train_set.images.shape[1]).to(next(net.parameters()).device)
        place = self.folder / f"epoch-{epoch:04d}-seed-{seed}"
        try:
            # There is nothing to choose by validation: the last weights are what counts.
            result = train(
                net, train_set, val=train_set.subset(torch.arange(1)), method="standard", seed=seed, out=place,
                resume=True, progress=False, **self.fresh,
            )  # fmt: skip
        except NonFiniteLoss:
            return dict.fromkeys(IDE)
        last = result.last.checkpoint
        checkpoint.fill(net, checkpoint.read(last), last)
        test_error, test_loss = error_and_loss(net, test_set)
        train_error, _ = error_and_loss(net, train_set)
        shutil.rmtree(place)
        return dict(zip(IDE, (test_error, train_error, test_error - train_error, test_loss), strict=True))  # fmt: skip


def error_and_loss(net: nn.Module, source: TensorSource) -> tuple[float, float]:
    """Share of images that are classified wrongly, and mean cross-entropy; in eval mode."""
    net.eval()
    wrong, loss = 0, 0.0
    with torch.no_grad():
        for batch in ordered(source, ROWS, next(net.parameters()).device):
            logits = net(batch.images)
            wrong += int((logits.argmax(1) != batch.labels).sum())
            loss += float(cross_entropy(logits, batch.labels, reduction="sum"))
    return wrong / len(source), loss / len(source)
