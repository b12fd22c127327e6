"""The runs of `memorization`: training on labels with noise, and what is measured of a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advfast import models
from advfast.data import LabelNoise, Source, Splits, pixel_statistics, stratified_split
from advfast.evaluation import evaluate
from advfast.files import write_json
from advfast.kernels.pgd.api import nearest
from advfast.training import NonFiniteLoss, rng, train
from advfast.training.methods import METHODS
from advfast.userfile import is_user_object, load_object

from .complexity import MEASURES, complexity
from .networks import conv_net
from .objective import Objective, gradient_changes
from .result import Row
from .runs import Run, open_run
from .subject import known_part

Maker = Callable[[], nn.Module]
OBJECTIVES = ("standard", "pgd-at", "trades")
"""Losses whose gradients are looked at around the same weights."""

SIDE = "memorization.json"
"""Of a run: its curve and its gradients."""

MEASURED = ("train_clean", "train_robust", "test_clean", "test_robust", "robust_gap", *MEASURES)

ATTACK = "pgd-10"


@dataclass(frozen=True)
class Look:
    """How a network is looked at.

    Attributes:
        limit: images of the training and of the test set on which test accuracy, gradients and complexity are measured;
            None for all.
        lambdas: see `gradient_changes`.
        steps, alpha, norm: of the attack inside the losses, as in training.
    """

    limit: int | None
    lambdas: Sequence[float]
    steps: int | None
    alpha: float | None = None
    norm: str = "linf"

    def accuracies(self, model: nn.Module, part: Source, eps: float) -> tuple[float, float]:
        """Clean and PGD-10 accuracy."""
        report = evaluate(
            model, part, attacks=("clean", ATTACK), eps=eps, norm=self.norm, limit=self.limit,
            sanity=False,
        )  # fmt: skip
        return report["clean"].value, report[ATTACK].value

    def measures(self, model: nn.Module, train: Source, test: Source, eps: float) -> Row:
        """Accuracies on both parts, the robust gap, and measures of complexity on training images."""
        row: Row = {}
        for name, part in (("train", train), ("test", test)):
            row[f"{name}_clean"], row[f"{name}_robust"] = self.accuracies(model, part, eps)
        row["robust_gap"] = row["train_robust"] - row["test_robust"]
        return row | complexity(model, *self.images(model, train), eps=eps, norm=self.norm)

    def gradients(self, model: nn.Module, train: Source, eps: float) -> list[Row]:
        """A row for each of `OBJECTIVES` and each lambda."""
        images, labels = self.images(model, train)
        rows: list[Row] = []
        for method in OBJECTIVES:
            objective = Objective(
                model, method, images, labels, eps=eps, alpha=self.alpha, steps=self.steps,
                norm=self.norm,
            )  # fmt: skip
            rows += [{"loss": method, **row} for row in gradient_changes(objective, self.lambdas)]
        return rows

    def images(self, model: nn.Module, train: Source) -> tuple[Tensor, Tensor]:
        """Those of the training set that are looked at: evenly spaced, on the device of the model."""
        count = len(train) if self.limit is None else min(self.limit, len(train))
        chosen = torch.linspace(0, len(train) - 1, count).long()
        images, labels = train.batch(chosen)
        device = next(model.parameters()).device
        return images.to(device), labels.to(device)


@dataclass
class Trainings:
    """
    Attributes:
        splits: with test images.
        model: name of a network, "file.py:make", a function that makes one, or None for two convolutions.
        samples: training images, stratified, the same in all runs; None for all.
        every: epochs between the checkpoints that are kept, and test accuracies.
        at: epochs at which gradients are looked at, of those that are kept; others the nearest.
        arguments: of `advfast.train`.
    """

    splits: Splits
    model: str | Maker | None
    samples: int | None
    every: int
    at: Sequence[int]
    look: Look
    arguments: Mapping[str, Any]
    folder: Path = Path()
    overwrite: bool = False
    chosen: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.train, self.test = known_part(self.splits, "train"), known_part(self.splits, "test")
        count = len(self.train)
        if self.samples is None or self.samples == count:
            self.chosen = torch.arange(count)
        elif 0 < self.samples < count:
            self.chosen = stratified_split(self.train.labels, self.samples, seed=0)[1]
        else:
            raise ValueError(f"samples must be 1 .. {count} or None, got {self.samples}")

    def network(self, seed: int) -> nn.Module:
        """The same weights for a seed.

        Raises:
            ValueError, TypeError: no such network.
        """
        images, _ = self.train.batch(torch.arange(1))
        shape, classes = list(images.shape[1:]), max(int(self.train.labels.max()) + 1, 2)
        with rng.seeded(seed):
            if self.model is None:
                net = conv_net(shape, classes, (64, 128), (1, 2), batch_norm=False)
            elif callable(self.model) or is_user_object(self.model):
                made = load_object(self.model) if isinstance(self.model, str) else self.model
                net = made()
            else:
                mean, std = pixel_statistics(self.train)
                net = models.make(self.model, in_shape=shape, classes=classes, mean=mean, std=std)
        if not isinstance(net, nn.Module):
            raise TypeError(f"model must make an nn.Module, got {type(net).__name__}")
        return net.to("cuda" if torch.cuda.is_available() else "cpu")

    def labels(self, noise: float, seed: int) -> LabelNoise:
        """Those of a rate and a seed, as they stand in the folder, drawn where they do not."""
        path = self.folder / f"labels-noise{noise:g}-seed{seed}.npy"
        drawn = LabelNoise.draw(self.train, noise, numbers=self.chosen, seed=seed)
        if path.exists() and not self.overwrite:
            return LabelNoise.read(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        drawn.save(path)
        return drawn

    def place(self, part: str, method: str, noise: float, eps: float, seed: int) -> Path:
        name = f"{part}-{method.replace('/', '-')}-noise{noise:g}-eps{eps:.4g}-seed{seed}"
        return self.folder / "runs" / name

    def run(self, part: str, method: str, noise: float, eps: float, seed: int, epochs: int) -> Row:
        """Trains, or goes on with what is there; the curve and the gradients go to a file beside the checkpoints. A run
        that diverges has None, and no curve."""
        labels = self.labels(noise, seed)
        source, net = labels.of(self.train), self.network(seed)
        place = self.place(part, method, noise, eps, seed)
        # The accuracy "held out" is that on what is trained on; nothing is chosen by it.
        try:
            result = train(
                net, source, val=source, method=method, eps=eps, epochs=epochs, seed=seed, out=place,
                resume=not self.overwrite, overwrite=self.overwrite, keep_every=self.every,
                modifiers=["gradient-norm"], progress=False, **self.arguments,
            )  # fmt: skip
        except NonFiniteLoss:
            write_json(place / SIDE, {"curves": [], "stability": []})
            return {"labels_kept": labels.kept} | dict.fromkeys(
                ("loss", "gradient_norm2", *MEASURED)
            )
        run = open_run(place, lambda: self.network(seed))
        curve = self._curve(result.history, run, eps)
        gradients: list[Row] = []
        for epoch in self.looked_at(run.epochs) if part == "convergence" else ():
            rows = self.look.gradients(run.model(epoch), source, eps)
            gradients += [{"epoch": epoch, **row} for row in rows]
        cell = {"part": part, "method": method, "noise": noise, "eps": eps, "seed": seed}
        tables = {"curves": curve, "stability": gradients}
        write_json(
            place / SIDE, {name: [{**cell, **r} for r in rows] for name, rows in tables.items()}
        )
        last = result.history[-1]
        return {
            "labels_kept": labels.kept,
            "loss": last["train_loss"],
            "gradient_norm2": last["gradient_norm2"],
            **self.look.measures(run.model(), source, self.test, eps),
        }

    def _curve(self, history: Sequence[Mapping[str, float]], run: Run, eps: float) -> list[Row]:
        rows = []
        for row in history:
            epoch = int(row["epoch"])
            clean, robust = None, None
            if epoch in run.epochs:
                clean, robust = self.look.accuracies(run.model(epoch), self.test, eps)
            rows.append({
                "epoch": epoch, "loss": row["train_loss"], "gradient_norm2": row["gradient_norm2"],
                "train_clean": row["val_clean"], "train_robust": row["val_robust"],
                "test_clean": clean, "test_robust": robust,
            })  # fmt: skip
        return rows

    def looked_at(self, kept: Sequence[int]) -> list[int]:
        return sorted({min(kept, key=lambda epoch: abs(epoch - at)) for at in self.at})

    def tables(self, cells: Sequence[Mapping[str, Any]]) -> dict[str, list[Row]]:
        """The curves and gradients of all runs."""
        found: dict[str, list[Row]] = {"curves": [], "stability": []}
        for cell in cells:
            content = json.loads((self.place(**cell) / SIDE).read_text(encoding="utf-8"))
            for name, rows in found.items():
                rows += content[name]
        return found


def check_methods(methods: Sequence[str]) -> list[str]:
    """
    Raises:
        ValueError: no names, one twice, or an unknown one.
    """
    if isinstance(methods, str) or not methods or len(set(methods)) < len(methods):
        raise ValueError(f"methods must be names, each once, got {methods!r}")
    for name in methods:
        if name not in METHODS:
            raise ValueError(
                f"unknown method {name!r}; expected some of {', '.join(METHODS)}"
                f"{nearest(name, list(METHODS))}"
            )
    return list(methods)
