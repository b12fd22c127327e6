"""Adversarial training on random labels (Dong et al., ICLR 2022, arXiv 2106.01606)."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from advfast.data import LabelNoise, Splits, fingerprint, load
from advfast.data.splits import as_splits
from advfast.invocation import recorded
from advfast.training.config import plain
from advfast.training.methods import Settings
from advfast.training.methods import make as make_method

from .cost import Cost, announce, estimate
from .grid import check_out, run_grid
from .memorization_expectations import correlations, expectations, groups_of
from .memorization_figures import draw
from .memorization_runs import Look, Maker, Trainings, check_methods
from .result import StudyResult
from .runs import Source, obtain, recipe_of
from .subject import known_part

NAME = "memorization"

PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "published": {
        "data": "cifar10", "model": "wrn-28-10", "eps": (8 / 255,), "epochs": 300,
        "complexity_eps": 8 / 255, "complexity_epochs": 300, "samples": None, "limit": 1000, "every": 50,
        "at": (0, 50, 100, 150, 300), "steps": 10, "alpha": 2 / 255, "batch_size": 128, "lr": 0.1,
        "schedule": "piecewise", "schedule_options": {"milestones": [100, 200], "gamma": 0.1},
    },
}  # fmt: skip

_TRAINING: dict[str, Any] = {"schedule": "constant", "weight_decay": 0.0, "augment": ()}
_TAKEN = (
    "method", "seed", "val", "test", "callbacks", "out", "overwrite", "resume", "progress", "ema", "modifiers",
    "threads", "recipe", "keep_every", "weights", "patience",
)  # fmt: skip
"""Arguments of `train` that the study sets itself, or that would change what it measures."""


@recorded
def memorization(
    data: str | Splits | Mapping[str, Any] | None = None,
    model: str | Maker | None = None,
    *,
    source: Source | None = None,
    methods: Sequence[str] = ("pgd-at", "trades"),
    noise: Sequence[float] = (1.0,),
    eps: Sequence[float] | float | None = None,
    epochs: int = 240,
    complexity_noise: Sequence[float] = (0.0, 0.2, 0.5, 0.8, 1.0),
    complexity_eps: float = 0.1,
    complexity_epochs: int = 80,
    samples: int | None = 200,
    limit: int | None = 200,
    seeds: Sequence[int] = (0,),
    every: int = 20,
    at: Sequence[int] = (0, 40, 240),
    lambdas: Sequence[float] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    labels: str | Path | None = None,
    data_root: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: bool = True,
    **training: Any,
) -> StudyResult:
    """Trains on labels of which a share is drawn anew at random, and looks at gradients and complexity.

    y' ~ Categorical(P[y]), P = (r / K) 1 1^T + (1 - r) I, drawn once for each rate r and seed and kept in
    out/labels-*.npy (see `advfast.data.LabelNoise`); no augmentation, no weight decay. Two parts, by the column "part":

    * convergence: each method x `noise` x `eps` x seed for `epochs`. The table "curves" has a row an epoch: mean loss,
      gradient_norm2 (mean over its steps of |grad_theta L|_2^2), clean and PGD-10 accuracy on the training images with
      the labels that are trained on, and on test images (every `every` epochs). The table "stability" has, at the
      epochs `at`, |grad L(theta + lambda d) - grad L(theta)|_2 of the clean loss, of PGD-AT's and of TRADES', with
      adversarial images made anew and held (see `advfast.studies.objective.gradient_changes`).
    * complexity: each method x `complexity_noise` x seed at `complexity_eps` for `complexity_epochs`. The table
      "correlations" has the rank correlation of each measure (see `advfast.studies.complexity`) with the robust gap,
      PGD-10 accuracy on training labels minus that on the test set.

    A row is a run after its last epoch, with all measures. With `source` nothing is trained on random labels: a row is
    a checkpoint of that run, and the tables are "stability" and "correlations" along it.

    Args:
        data: name or path (see `advfast.data.load`), or parts with test images. None: that of the source, or "digits".
        model: name of a network, "file.py:make" or a function that makes one; None is two convolutions of 64 and 128
            channels without batch normalisation. With a source: for checkpoints that do not say.
        source: a run's folder, a checkpoint, a network or a recipe (see `advfast.studies.runs`).
        methods: of `advfast.training.methods`; what was expected is of "pgd-at" and "trades".
        noise, complexity_noise: rates 0 .. 1.
        eps: radii in pixel units of [0, 1]; None: 0.2 and 0.1, of a source its own.
        samples: training images, stratified, the same in all runs; None for all.
        limit: images for test accuracy, gradients and complexity; None for all.
        seeds: of labels, weights and training.
        every: epochs between the checkpoints that are kept.
        at: epochs at which gradients are looked at; of those kept, the nearest.
        lambdas: lengths of the step in weight space.
        labels: of a source: the file of the labels that it was trained on, such as labels-noise1-seed0.npy.
        out, resume, overwrite, progress: see `advfast.studies.grid.run_grid`; runs are in out/runs.
        dry_run: say what it would cost, and return without rows; not of a source.
        training: of `advfast.train`; without them steps is 7, batch_size 50, lr 0.05, schedule "constant".

    Raises:
        ValueError, TypeError: bad arguments, before any run.
        FileNotFoundError, FileExistsError: no data, or no such source; `out` holds a study.
    """
    arguments = dict(locals())
    own = arguments.pop("training")
    if source is not None:
        if dry_run:
            raise ValueError("dry_run is of training on random labels, and a source is looked at")
        return _look(**arguments, training=own)
    if labels is not None:
        raise ValueError("labels are of a source: give the run that was trained on them")
    plan = _plan(**arguments, training=own)
    if progress or dry_run:
        announce(NAME, plan.cost())
    if dry_run:
        return StudyResult(NAME, plan.settings, tuple(plan.cells[0]), (), [])
    with _folder(out) as folder:
        plan.trainings.folder, plan.trainings.overwrite = folder, overwrite

        def measure(part: str, method: str, noise: float, eps: float, seed: int) -> dict[str, Any]:
            length = epochs if part == "convergence" else complexity_epochs
            return plan.trainings.run(part, method, noise, eps, seed, length)

        def tables(result: StudyResult) -> dict[str, Any]:
            looked = result.select(part="complexity") or result.rows
            found = plan.trainings.tables(plan.cells)
            return found | {"correlations": correlations(groups_of(looked))}

        return run_grid(
            NAME, plan.cells, measure, settings=plan.settings, tables=tables, expect=expectations,
            draw=draw, out=out, resume=resume, overwrite=overwrite, progress=progress,
        )  # fmt: skip


@dataclass
class Plan:
    """All that is run, checked."""

    trainings: Trainings
    cells: list[dict[str, Any]]
    settings: dict[str, Any]
    epochs: Mapping[str, int]

    def cost(self) -> Cost:
        """Of training and of the accuracies of each epoch; what is looked at besides is small."""
        trainings, net = self.trainings, self.trainings.network(0)
        images, _ = trainings.train.batch(trainings.chosen[:32])
        images = images.to(next(net.parameters()).device)
        attack = 2 * 10 + 1  # PGD-10 and clean
        total = 0.0
        for cell in self.cells:
            method = make_method(cell["method"], net, _settings(cell["eps"], trainings.arguments))
            each = (method.passes() + attack) * len(trainings.chosen)
            total += each * self.epochs[cell["part"]]
        return estimate(net, images, total)


def _plan(
    *, data: Any, model: Any, methods: Any, noise: Any, eps: Any, epochs: int, complexity_noise: Any,
    complexity_eps: float, complexity_epochs: int, samples: int | None, limit: int | None, seeds: Any, every: int,
    at: Any, lambdas: Any, data_root: Any, training: dict[str, Any], **rest: Any,
) -> Plan:  # fmt: skip
    names = check_methods(methods)
    radii = _numbers("eps", (0.2, 0.1) if eps is None else eps, 1)
    rates = _numbers("noise", noise, 1, least=0)
    complexity_rates = _numbers("complexity_noise", complexity_noise, 1, least=0)
    _numbers("complexity_eps", [complexity_eps], 1)
    seeds = _integers("seeds", seeds, 0)
    for name, value in (("epochs", epochs), ("complexity_epochs", complexity_epochs), ("every", every)):  # fmt: skip
        _integers(name, [value], 1)
    at = _integers("at", at, 0)
    if limit is not None:
        _integers("limit", [limit], 1)
    for name in training:
        if name in _TAKEN:
            raise ValueError(f"{name} is set by the study, and cannot be given for its runs")
    arguments = {"steps": 7, "batch_size": 50, "lr": 0.05} | _TRAINING | training
    splits = _splits("digits" if data is None else data, data_root)
    look = Look(
        limit, _numbers("lambdas", lambdas, math.inf), arguments["steps"], arguments.get("alpha"),
        arguments.get("norm", "linf"),
    )  # fmt: skip
    trainings = Trainings(splits, model, samples, every, at, look, arguments)
    net = trainings.network(0)  # errors now
    for name in names:
        make_method(name, net, _settings(radii[0], arguments))
    cells = [
        {"part": part, "method": method, "noise": rate, "eps": radius, "seed": seed}
        for part, own_rates, own_radii in (
            ("convergence", rates, radii),
            ("complexity", complexity_rates, [float(complexity_eps)]),
        )
        for seed in seeds
        for radius in own_radii
        for rate in own_rates
        for method in names
    ]
    settings = {
        "data": splits.name, "fingerprint": fingerprint(trainings.train), "samples": samples, "limit": limit,
        "classes": max(int(trainings.train.labels.max()) + 1, 2),
        "model": "conv-net (64, 128)" if model is None else model, "epochs": epochs,
        "complexity_epochs": complexity_epochs, "every": every, "at": at, "lambdas": look.lambdas, **arguments,
    }  # fmt: skip
    return Plan(
        trainings, cells, {name: plain(value) for name, value in settings.items()},
        {"convergence": epochs, "complexity": complexity_epochs},
    )  # fmt: skip


def _look(
    *, source: Source, data: Any, model: Any, eps: Any, limit: int | None, every: int, lambdas: Any, labels: Any,
    data_root: Any, out: Any, resume: bool, overwrite: bool, progress: bool, training: dict[str, Any], **rest: Any,
) -> StudyResult:  # fmt: skip
    """The checkpoints of a run."""
    steps_in_weights = _numbers("lambdas", lambdas, math.inf)
    if limit is not None:
        _integers("limit", [limit], 1)
    if training and not isinstance(source, (str, Path, Mapping)):
        raise ValueError(f"{next(iter(training))} is of a training, and a network is trained")
    if eps is not None and not _is_number(eps):
        raise ValueError(f"a source is looked at with one eps, a number: got {eps!r}")
    if labels is not None and not isinstance(source, nn.Module) and recipe_of(source) is not None:
        raise ValueError(
            "labels are those that a run was trained on: a recipe is trained on its own"
        )
    noise = None if labels is None else LabelNoise.read(labels)
    check_out(out, resume=resume, overwrite=overwrite)
    with _folder(out) as folder:
        if overwrite:
            shutil.rmtree(folder / "run", ignore_errors=True)
        run = obtain(
            source, folder / "run", model=model, keep_every=every, progress=progress, **training
        )
        splits = (
            run.splits(data, data_root) if not isinstance(data, Mapping) else as_splits(data, "own")
        )
        train, test = known_part(splits, "train"), known_part(splits, "test")
        train = train if noise is None else noise.of(train)
        own = run.config.get("eps") if eps is None else eps
        if not isinstance(own, (int, float)) or isinstance(own, bool):
            raise ValueError(f"a source is looked at with one eps, a number: got {own!r}")
        radius = float(own)
        look = Look(
            limit, steps_in_weights, run.config.get("steps"), run.config.get("alpha"),
            run.config.get("norm", "linf"),
        )  # fmt: skip
        points: list[int | None] = [*run.epochs] or [None]
        cells: list[dict[str, Any]] = [{"run": run.name, "epoch": epoch} for epoch in points]
        settings = {
            "source": plain(source), "data": splits.name, "fingerprint": fingerprint(train), "eps": radius,
            "limit": limit, "lambdas": steps_in_weights, "labels": None if labels is None else str(labels),
        }  # fmt: skip

        made = run

        def measure(run: str, epoch: int | None) -> dict[str, Any]:
            return look.measures(made.model(epoch), train, test, radius)

        def tables(result: StudyResult) -> dict[str, Any]:
            rows = [
                {**cell, "eps": radius, **row}
                for cell in cells
                for row in look.gradients(made.model(cell["epoch"]), train, radius)
            ]
            return {
                "stability": rows,
                "correlations": correlations({made.name: result.rows}),
            }

        return run_grid(
            NAME, cells, measure, settings=settings, tables=tables, draw=draw, out=out,
            resume=resume, overwrite=overwrite, progress=progress,
        )  # fmt: skip


def _settings(eps: float, arguments: Mapping[str, Any]) -> Settings:
    return Settings(
        eps, arguments.get("alpha"), arguments.get("steps"), arguments.get("norm", "linf"),
        options=dict(arguments.get("method_options") or {}),
    )  # fmt: skip


def _splits(data: object, root: str | Path | None) -> Splits:
    return load(data, root) if isinstance(data, str) else as_splits(data, "own")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _numbers(name: str, values: Any, most: float, least: float | None = None) -> list[float]:
    """Different numbers above 0, or from `least` on, up to `most`; one may stand alone."""
    found = [values] if _is_number(values) else list(values)
    low = "above 0" if least is None else f"from {least:g} on"
    high = "" if most == math.inf else f" and at most {most:g}"
    for value in found:
        good = _is_number(value) and math.isfinite(value) and value <= most
        if not good or (value <= 0 if least is None else value < least):
            raise ValueError(f"{name} must be numbers {low}{high}, got {value!r}")
    if len(set(found)) < len(found) or (not found and name != "complexity_noise"):
        raise ValueError(f"{name} must be different values, at least one, got {found}")
    return [float(value) for value in found]


def _integers(name: str, values: Any, least: int) -> list[int]:
    found = [values] if _is_number(values) else list(values)
    for value in found:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be integers >= {least}, got {value!r}")
    if len(set(found)) < len(found) or (not found and name != "at"):
        raise ValueError(f"{name} must be different values, at least one, got {found}")
    return found


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
