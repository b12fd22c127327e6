"""Robust generalisation against learning rate / batch size, the noise scale of SGD (Sun et al., KDD 2023)."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advfast import training
from advfast.data import Source, Splits, fingerprint, load, stratified_split
from advfast.data.splits import as_splits
from advfast.evaluation import evaluate
from advfast.evaluation.canvas import new_figure
from advfast.invocation import recorded
from advfast.training import checkpoint, optim, rng
from advfast.training import presets as by_data
from advfast.training.config import plain
from advfast.training.setup import make_model

from .cost import PGD_20, announce, estimate, training_passes
from .grid import run_grid
from .result import Expectation, Row, StudyResult
from .style import colour, marker, plain_axes
from .subject import known_part

NAME = "noise-scale"

_MEASURED = ("train_clean", "train_robust", "test_clean", "test_robust", "robust_gap", "loss")
_PRESET = ("model", "eps", "alpha", "steps", "augment", "threads")
_HELD_OUT = 100
"""Training images that are set aside: `train` wants some; nothing here is chosen by them."""

PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "data": "digits",
        "lrs": (0.05, 0.1, 0.2, 0.4),
        "batch_sizes": (32, 128),
        "seeds": (0, 1, 2),
        "epochs": 40,
        "samples": 500,
        "limit": 1000,
    },
    # Network, epochs and schedule of the released script; which rates and batch sizes were compared is not known.
    "published": {
        "data": "cifar10",
        "lrs": (0.05, 0.1, 0.2, 0.4),
        "batch_sizes": (64, 128, 256),
        "seeds": (0, 1, 2),
        "epochs": 110,
        "samples": None,
        "limit": None,
        "schedule_options": {"milestones": [100, 105]},
        "weight_decay": 5e-4,
    },
}


@recorded
def noise_scale(
    data: str | Splits | Mapping[str, Any] = "digits",
    *,
    lrs: Sequence[float] = (0.05, 0.1, 0.2, 0.4),
    batch_sizes: Sequence[int] = (32, 128),
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 40,
    samples: int | None = 500,
    limit: int | None = 1000,
    optimizer: str = "sgd",
    schedule: str = "piecewise",
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: bool = True,
    **arguments: Any,
) -> StudyResult:
    """Trains one network for each learning rate, batch size and seed, all for as many epochs.

    A step of SGD is one of a diffusion whose noise grows with lr / batch: C lr / B at a gradient covariance of C an
    image. DEAT's claim is that adversarial training generalises better with more of it, up to where it no longer
    learns. A smaller batch also makes more steps of the same epochs; settings of the same ratio show what that does.

    Measured after the last epoch, in eval mode: clean and PGD-20 accuracy on the training images themselves and on
    test images, the robust gap (PGD-20, training minus test), and the mean loss of the last epoch. Besides:
    lr_over_batch, and the effective step of the optimiser, see `advfast.training.optim.effective_step`. A run whose
    loss becomes NaN or infinite is a row with None for what is measured, and a note counts them.

    Args:
        data: name or path (see `advfast.data.load`), or its parts (`advfast.data.Splits`, or a dictionary with "train"
            and "test"); test images are needed.
        lrs: highest learning rates of `optimizer`.
        batch_sizes: images a step.
        seeds: a run each.
        epochs: of every run.
        samples: training images, stratified, the same in all runs; None for all.
        limit: images of either part on which accuracy is measured; None for all.
        optimizer: a name, see `advfast.train`. DEAT's is "pnm", whose rates are ten times those of "sgd".
        schedule: see `advfast.train`.
        out: folder for study.json, rows.csv, summary.csv and noise_scale.png; None writes nothing.
        resume: go on with the study in `out`: runs that it has are not made again.
        overwrite: replace a study in `out`.
        dry_run: say what it would cost, and return without rows.
        progress: say on standard error what it will cost, and what is done.
        **arguments: of `advfast.train`, such as method, model, eps, steps, weight_decay; those that the command line
            takes by data set (model, eps, steps and others) are taken here too.

    Raises:
        ValueError, TypeError: a bad argument, before any run; `resume` with other arguments than before.
        FileExistsError: `out` holds a study.
    """
    cells = [
        {"batch_size": batch_size, "lr": lr, "seed": seed}
        for batch_size in _numbers("batch_sizes", batch_sizes, int)
        for lr in _numbers("lrs", lrs, float)
        for seed in _numbers("seeds", seeds, int)
    ]
    own = {"epochs": epochs, "optimizer": optimizer, "schedule": schedule}
    by_name = by_data.PRESETS.get(data, {}) if isinstance(data, str) else {}
    preset = {k: v for k, v in by_name.items() if k in _PRESET}
    every = own | preset | arguments
    for name in ("val", "test", "callbacks", "out", "lr", "batch_size", "seed"):
        if name in arguments:
            raise TypeError(f"{name!r} is no argument of train that this study can take")
    every.pop("data_root", None)
    splits = (
        load(data, arguments.get("data_root")) if isinstance(data, str) else as_splits(data, "own")
    )
    train, test = known_part(splits, "train"), known_part(splits, "test")
    kept, held_out = stratified_split(train.labels, _HELD_OUT, seed=0)
    if samples is not None:
        if not 0 < samples < len(kept):
            raise ValueError(f"samples must be 1 .. {len(kept) - 1} or None, got {samples}")
        kept = kept[stratified_split(train.labels[kept], samples, seed=0)[1]]
    measure = partial(
        _measure,
        train=train.subset(kept),
        val=train.subset(held_out),
        test=test,
        limit=limit,
        arguments=every,
    )
    settings = {
        "data": splits.name, "fingerprint": fingerprint(train), "samples": samples, "limit": limit, **every,
    }  # fmt: skip
    if progress or dry_run:
        _say_cost(train.subset(kept), test, limit, len(cells), every)
    if dry_run:
        return StudyResult(NAME, {}, tuple(cells[0]), (), [])
    return run_grid(
        NAME,
        cells,
        measure,
        settings={name: plain(value) for name, value in settings.items()},
        expect=expectations,
        notes=_notes,
        draw=draw,
        out=out,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
    )


def _say_cost(
    train: Source, test: Source, limit: int | None, runs: int, arguments: Mapping[str, Any]
) -> None:
    images, _ = train.batch(torch.arange(min(32, len(train))))
    with rng.seeded(0):
        net = make_model(arguments.get("model", "small-cnn"), train)
    images = images.to(next(net.parameters()).device)
    tested = sum(min(len(part), limit or len(part)) for part in (train, test))
    each = training_passes(net, len(train), arguments) + tested * PGD_20
    announce(NAME, estimate(net, images, runs * each))


def _numbers(name: str, values: Sequence[Any], kind: type) -> list[Any]:
    least = 0 if name == "seeds" else 1
    found = list(values)
    for value in found:
        good = isinstance(value, kind) if kind is int else isinstance(value, (int, float))
        low = value < least if kind is int and good else good and not 0 < value < math.inf
        if isinstance(value, bool) or not good or low:
            what = f"integers >= {least}" if kind is int else "finite numbers > 0"
            raise ValueError(f"{name} must be {what}, got {value!r}")
    if not found or len(set(found)) < len(found):
        raise ValueError(f"{name} must be different values, at least one, got {found}")
    return found


def _measure(
    *,
    lr: float,
    batch_size: int,
    seed: int,
    train: Source,
    val: Source,
    test: Source,
    limit: int | None,
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(_MEASURED)
    found["lr_over_batch"] = lr / batch_size
    found["effective_step"] = _effective_step(lr, arguments)
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = training.train(
                data=train, val=val, lr=lr, batch_size=batch_size, seed=seed, out=folder,
                progress=False, **arguments,
            )  # fmt: skip
        except training.NonFiniteLoss:
            return found
        model, last = result.model, result.last.checkpoint
        checkpoint.fill(model, checkpoint.read(last), last)
    for name, part in (("train", train), ("test", test)):
        report = evaluate(
            model, part, attacks=("clean", "pgd-20"), eps=result.config["eps"],
            norm=result.config["norm"], seed=seed, limit=limit, sanity=False,
        )  # fmt: skip
        found[f"{name}_clean"] = report["clean"].value
        found[f"{name}_robust"] = report["pgd-20"].value
    found["robust_gap"] = found["train_robust"] - found["test_robust"]
    found["loss"] = result.history[-1]["train_loss"]
    return found


def _effective_step(lr: float, arguments: Mapping[str, Any]) -> float | None:
    made = optim.make(
        arguments["optimizer"],
        nn.Linear(1, 1),
        lr=lr,
        momentum=arguments.get("momentum", 0.9),
        options=arguments.get("optimizer_options"),
    )
    return optim.effective_step(made)


def _notes(result: StudyResult) -> list[str]:
    said = []
    for row in result.summary:
        runs = result.select(batch_size=row["batch_size"], lr=row["lr"])
        lost = sum(run["loss"] is None for run in runs)
        if lost:
            said.append(
                f"batch size {row['batch_size']}, lr {row['lr']:g}: {lost} of {len(runs)} runs diverged (the loss was "
                "no longer finite) and have no part in the means"
            )
    return said


def expectations(result: StudyResult) -> list[Expectation]:
    """What was written down on 2026-11-30, before the first run.

    The default rates were chosen after one trial, of seed 0.
    """
    trained = [row for row in result.summary if row["test_robust_mean"] is not None]
    best = max((row["test_robust_mean"] for row in trained), default=0.0)
    # A network that has learnt nothing has no gap either.
    learnt = sorted(
        (row for row in trained if row["test_robust_mean"] >= best / 2),
        key=lambda row: row["lr_over_batch_mean"],
    )
    return [_gap_falls(learnt), _accuracy_falls(result), _ratio_alone(learnt)]


def _gap_falls(learnt: list[Row]) -> Expectation:
    text = (
        "the robust gap is smaller at the largest lr/batch than at the smallest (of the settings with at least half "
        "the best robust test accuracy)"
    )
    if len({row["lr_over_batch_mean"] for row in learnt}) < 2:
        return Expectation(text, "fewer than two such settings", None)
    first, last = learnt[0], learnt[-1]
    found = " and ".join(
        f"{row['robust_gap_mean']:.3f} at {row['lr_over_batch_mean']:.3g}" for row in (first, last)
    )
    return Expectation(text, found, last["robust_gap_mean"] < first["robust_gap_mean"])


def _accuracy_falls(result: StudyResult) -> Expectation:
    text = "robust test accuracy is highest before the largest lr/batch"
    rows = [row for row in result.summary if row["test_robust_mean"] is not None]
    if not rows or len({row["lr_over_batch_mean"] for row in result.summary}) < 2:
        return Expectation(text, "fewer than two settings", None)
    best = max(rows, key=lambda row: row["test_robust_mean"])
    largest = max(row["lr_over_batch_mean"] for row in result.summary)
    found = (
        f"{best['test_robust_mean']:.3f} at {best['lr_over_batch_mean']:.3g} of up to {largest:.3g}"
    )
    return Expectation(text, found, best["lr_over_batch_mean"] < largest)


def _ratio_alone(learnt: list[Row]) -> Expectation:
    text = (
        "the gap depends on lr/batch more than on the batch size: settings of the same ratio differ by less than half "
        "of what all of them do"
    )
    by_ratio: dict[float, list[float]] = {}
    for row in learnt:
        # Of the same decimal numbers; 0.1 / 32 and 0.4 / 128 may differ in the last bit.
        ratio = float(f"{row['lr_over_batch_mean']:.6g}")
        by_ratio.setdefault(ratio, []).append(row["robust_gap_mean"])
    shared = [max(gaps) - min(gaps) for gaps in by_ratio.values() if len(gaps) > 1]
    if not shared:
        return Expectation(text, "no two settings share a ratio", None)
    gaps = [row["robust_gap_mean"] for row in learnt]
    spread = max(gaps) - min(gaps)
    found = f"at most {max(shared):.3f} at the same ratio, {spread:.3f} over all"
    return Expectation(text, found, max(shared) < spread / 2)


def draw(result: StudyResult) -> Iterable[tuple[str, Any]]:
    """Gap and accuracy against lr / batch, a line a batch size, bars of the sample deviation over the seeds."""
    figure = new_figure(7.2, 3.2)
    from matplotlib.ticker import LogLocator

    panels = figure.subplots(1, 2, sharex=True)
    seeds = dict.fromkeys(row["seed"] for row in result.rows)
    sizes = list(dict.fromkeys(row["batch_size"] for row in result.rows))
    parts = (("robust_gap", "robust gap (training - test), points"),
             ("test_robust", "robust test accuracy (PGD-20), %"))  # fmt: skip
    for axes, (measure, label) in zip(panels, parts, strict=True):
        for number, size in enumerate(sizes):
            rows = [
                row
                for row in result.summary
                if row["batch_size"] == size and row[f"{measure}_mean"] is not None
            ]
            rows.sort(key=lambda row: row["lr_over_batch_mean"])
            axes.errorbar(
                [row["lr_over_batch_mean"] for row in rows],
                [100 * row[f"{measure}_mean"] for row in rows],
                yerr=[100 * (row[f"{measure}_std"] or 0.0) for row in rows],
                color=colour(number), marker=marker(number), markersize=4, capsize=3, label=f"batch size {size}",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_xlabel("learning rate / batch size", fontsize=8)
        axes.set_ylabel(label, fontsize=8)
        axes.grid(alpha=0.3)
        plain_axes(axes)
    panels[1].legend(fontsize=8, frameon=False, loc="lower left")
    settings = result.settings
    figure.suptitle(
        f"{settings['data']}: {settings['optimizer']}, {settings['epochs']} epochs; mean and standard deviation, seeds "
        + ", ".join(str(seed) for seed in seeds),
        fontsize=9,
    )
    yield "noise_scale", figure
