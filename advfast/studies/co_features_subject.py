"""The data, the networks and the runs of `co_features`."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advfast import models
from advfast.data import Splits, carriers, inject, pixel_statistics, stratified_split
from advfast.files import write_csv
from advfast.models.low_pass import LowPass, filters_off
from advfast.training import NonFiniteLoss, checkpoint, rng, train
from advfast.userfile import is_user_object, load_object

from .co_features_methods import Trained
from .co_features_probe import (
    CLEAN,
    COLLAPSED,
    SHAPE,
    FeatureMonitor,
    accuracy,
    attacked_accuracies,
    clean_accuracies,
    evaluation_sets,
    local_shape,
    plain_network,
)
from .cost import Cost, estimate
from .networks import conv_net
from .room import Room
from .subject import Maker, known_part

TIMELINE = "timeline.csv"
NETS = {"conv-4": ((32, 32, 64, 64), (1, 1, 2, 1)), "conv-2": ((32, 64), (1, 2))}
"""Widths and strides of `conv_net`."""

HELD_OUT = 97
"""Training images that are set aside: `train` wants some; nothing here is chosen by them."""

UNFILTERED = ("unfiltered_injected", "unfiltered_fgsm", "unfiltered_pgd")
_WATCHED = 256
"""Training images that the detector looks at."""


class Subject:
    """
    Args:
        splits: data with test images, whose labels are known.
        settings: of the study, see `co_features`.

    Attributes:
        train, held_out, test: images [N, C, H, W] without the feature, and labels.
        carrier: V [K, C, H, W].

    Raises:
        ValueError: too few images, or too small ones.
    """

    def __init__(
        self,
        splits: Splits,
        model: str | Maker | None,
        *,
        kind: str,
        clip: bool,
        bandwidth: int | None,
        samples: int | None,
        limit: int | None,
        probe: int,
        shape: int,
        restarts: int,
    ) -> None:
        source, test = known_part(splits, "train"), known_part(splits, "test")
        kept, held_out = stratified_split(source.labels, HELD_OUT, seed=0)
        if samples is not None and samples != len(kept):
            if not 0 < samples < len(kept):
                raise ValueError(f"samples must be 1 .. {len(kept)} or None, got {samples}")
            kept = kept[stratified_split(source.labels[kept], samples, seed=0)[1]]
        self.train, self.held_out = source.batch(kept), source.batch(held_out)
        self.test = test.batch(torch.arange(len(test))[:limit])
        self.classes = max(int(source.labels.max()) + 1, 2)
        self.carrier = carriers(self.classes, self.train[0].shape[1:])
        self.pixels = pixel_statistics(source)
        self.model, self.kind, self.clip, self.bandwidth = model, kind, clip, bandwidth
        self.probe, self.shape, self.restarts = probe, shape, restarts

    def network(self, seed: int) -> nn.Module:
        """Of the images as they are; the same weights for a seed.

        Raises:
            ValueError, TypeError: no such network.
        """
        shape = list(self.train[0].shape[1:])
        with rng.seeded(seed):
            net = self._made(shape)
        if self.bandwidth is not None:
            net = nn.Sequential(LowPass(shape[1], shape[2], self.bandwidth), net)
        return net.to("cuda" if torch.cuda.is_available() else "cpu")

    def _made(self, shape: list[int]) -> nn.Module:
        model = self.model
        if isinstance(model, str) and model in NETS:
            return conv_net(shape, self.classes, *NETS[model])
        if isinstance(model, str) and not is_user_object(model):
            mean, std = self.pixels
            return models.make(model, in_shape=shape, classes=self.classes, mean=mean, std=std)
        net = load_object(model)() if isinstance(model, str) else model()  # type: ignore[misc]
        if not isinstance(net, nn.Module):
            raise TypeError(f"model must make an nn.Module, got {type(net).__name__}")
        return net

    def feature(self, part: tuple[Tensor, Tensor], beta: float) -> tuple[Tensor, Tensor]:
        return inject(part, beta, self.kind, carrier=self.carrier, clip=self.clip)

    def sets(self, beta: float, count: int | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        x, y = (values[:count] for values in self.test)
        return evaluation_sets(x, y, beta, self.kind, self.carrier, clip=self.clip)

    def trained_row(
        self,
        cell: Mapping[str, Any],
        trained: Trained,
        arguments: Mapping[str, Any],
        folder: Path,
        *,
        resume: bool,
    ) -> dict[str, Any]:
        """Trains, in <folder>/runs; its timeline goes to <folder>/timeline.csv. A run that diverges has None."""
        beta, eps, seed = cell["beta"], cell["eps"], cell["seed"]
        parts = [self.feature(part, beta) for part in (self.train, self.held_out)]
        room = self.room([x for x, _ in parts], trained.reach * eps)
        inside, held_out = ((room.put(x), y) for x, y in parts)
        model = room.network(self.network(seed), len(self.carrier[0]))
        monitor = FeatureMonitor(
            self.sets(beta, self.probe), room, eps, clip=self.clip, shape=self.shape, samples=_WATCHED, gap=0.5,
            action="report",
        )  # fmt: skip
        place = folder / "runs" / place_of(cell)
        found = dict.fromkeys(self.measures())
        try:
            result = train(
                model, inside, val=held_out, eps=eps * room.scale, seed=seed, callbacks=[monitor], out=place,
                resume=resume, overwrite=not resume, progress=False, **arguments, **trained.arguments(room.scale),
            )  # fmt: skip
        except NonFiniteLoss:
            add_timeline(folder / TIMELINE, cell, [])
            return found
        # Of a run that was complete already no callback is called.
        with open(place / FeatureMonitor.FILE, newline="", encoding="utf-8") as stream:
            history = list(csv.DictReader(stream))
        add_timeline(folder / TIMELINE, cell, history)
        alarms = [int(row["epoch"]) for row in history if int(row["fired"])]
        checkpoint.fill(model, checkpoint.read(result.last.checkpoint), result.last.checkpoint)
        found |= self.probe_row(plain_network(model, room), beta, eps)
        return found | {"alarm": alarms[0] if alarms else None}

    def room(self, images: Sequence[Tensor], reach: float) -> Room:
        """For images and what may be added to them; with a clip, none."""
        if self.clip:
            return Room(0.0)
        ends = [value.item() for x in images for value in torch.aminmax(x)]
        return Room(max(0.0, -min(ends), max(ends) - 1) + reach)

    def measures(self) -> tuple[str, ...]:
        more = () if self.bandwidth is None else UNFILTERED
        return (*CLEAN, "fgsm", "pgd", "gap", "collapsed", *SHAPE, *more, "alarm")

    def probe_row(self, model: nn.Module, beta: float, eps: float) -> dict[str, Any]:
        """The measures of a network of the images as they are, but for the detector's alarm."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        sets = {name: (x.to(device), y.to(device)) for name, (x, y) in self.sets(beta).items()}
        x, y = sets["injected"]
        how: dict[str, Any] = {"clip": self.clip}
        found: dict[str, Any] = clean_accuracies(model, sets)
        found |= attacked_accuracies(model, x, y, eps, restarts=self.restarts, **how)
        found["gap"] = found["fgsm"] - found["pgd"]
        found["collapsed"] = int(found["gap"] > COLLAPSED)
        found |= local_shape(model, x[: self.shape], y[: self.shape], eps, **how)
        if self.bandwidth is not None:
            with filters_off(model):
                free = attacked_accuracies(model, x, y, eps, restarts=self.restarts, **how)
                values = (accuracy(model, x, y), free["fgsm"], free["pgd"])
                found |= dict(zip(UNFILTERED, values, strict=True))
        return found

    def cost(
        self, model: nn.Module, cells: Sequence[Mapping[str, Any]], trained: Mapping[Any, Trained], epochs: int
    ) -> Cost:  # fmt: skip
        """Of all cells; those of a network that is there (`trained` has not its name) are probes alone."""
        final = len(self.test[0]) * (4 + 3 + 100 * self.restarts) + self.shape * 110
        final *= 1 if self.bandwidth is None else 2
        watched = min(_WATCHED, len(self.train[0]))
        epoch = watched * 26 + self.probe * 4 + self.shape * 110
        passes = 0.0
        for cell in cells:
            made = trained.get((cell["method"], cell["eps"]))
            passes += final
            if made is not None:
                passes += epochs * (len(self.train[0]) * made.passes + epoch)
        return estimate(model, self.test[0][:32].to(next(model.parameters()).device), passes)


def place_of(cell: Mapping[str, Any]) -> str:
    """Name of a run's folder."""
    words = (cell["method"], f"beta{cell['beta']:.6g}", f"eps{cell['eps']:.6g}", f"seed{cell['seed']}")  # fmt: skip
    return "-".join(words).replace(":", "-").replace("/", "-").replace(",", "-")


def add_timeline(path: Path, cell: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
    """Rows of a run in place of those that the file has of it; a row an epoch, as texts."""
    own = {name: str(value) for name, value in cell.items()}
    others = [row for row in read_timeline(path) if any(row[n] != own[n] for n in own)]
    rows = [*others, *({**own, **row} for row in history)]
    if rows:
        write_csv(path, rows)
    else:
        path.unlink(missing_ok=True)


def read_timeline(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
