"""Distributions that adversarial training induces: does the data set that a checkpoint makes of the images get harder?

Of "On Robust Overfitting: Adversarial Training Induced Distribution Matters" (Tian & Mao, arXiv 2311.16526).
"""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advfast.attacks.checks import check_pixels
from advfast.data import fingerprint
from advfast.invocation import recorded
from advfast.training.config import plain
from advfast.training.schedules import milestones

from .cost import announce, estimate
from .grid import check_out, run_grid
from .induced_expectations import expectations, notes
from .induced_figures import draw
from .induced_rows import Work
from .induced_sets import Crafting, Store, bytes_of, digest
from .induced_source import Subject
from .networks import conv_net
from .result import StudyResult
from .runs import Maker
from .runs import Source as RunSource
from .subject import training_arguments

NAME = "induced"
RUN, SETS, FRESH = "run", "induced", "fresh"
"""Folders in `out`: the adversarial training, the perturbed sets, and the fresh networks while they train."""

FRESH_TRAINING: dict[str, Any] = {
    "batch_size": 128, "lr": 0.1, "schedule": "piecewise", "schedule_options": {"milestones": [60 / 99, 80 / 99]},
}  # fmt: skip
"""Of the fresh networks, as published: a tenth of the rate after 60 and after 80 of 99 epochs."""

_AT = {"method": "pgd-at", "steps": 10, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "piecewise"}  # fmt: skip


def two_convolutions() -> nn.Module:
    """For 8x8: 32 and 64 channels, the second of stride 2, and a linear layer; neither of them normalises."""
    return conv_net((1, 8, 8), 10, (32, 64), (1, 2), batch_norm=False)


PRESETS: dict[str, dict[str, Any]] = {
    # Of batch sizes 50, 64, 100 and 128 the adversarial training with 128 came closest to the robust accuracies of the
    # trial that the expectations are from.
    "small": {
        "source": _AT | {
            "data": "digits", "model": two_convolutions, "eps": 0.2, "epochs": 100, "batch_size": 128, "lr": 0.05,
            "schedule_options": {"milestones": [50, 75]},
        },
        "samples": 300,
        "test_samples": 1497,
        "at": (15, 20, 30, 40, 50, 75, 100),
        "clip": True,
        "fresh": {"batch_size": 64, "lr": 0.05},
        "fresh_epochs": 60,
        "seeds": (0, 1),
    },
    "fashion": {
        "source": _AT | {
            "data": "fashion-mnist", "model": "small-cnn", "eps": 0.1, "epochs": 80, "batch_size": 64, "lr": 0.05,
            "schedule_options": {"milestones": [40, 60]},
        },
        "samples": 3000,
        "test_samples": 2000,
        "at": (4, 8, 12, 20, 30, 40, 44, 50, 60, 70, 80),
        "fresh": {"batch_size": 64, "lr": 0.05},
        "fresh_epochs": 40,
        "seeds": (0, 1),
    },
    "published": {
        "source": _AT | {
            "data": "cifar10", "model": "preact-resnet18", "eps": 8 / 255, "alpha": 2 / 255, "bn": "train-update",
            "epochs": 200, "batch_size": 128, "lr": 0.1, "schedule_options": {"milestones": [100, 150]},
            "augment": ["crop", "flip"], "seed": 1,
        },
        "at": tuple(range(20, 201, 20)),
    },
}  # fmt: skip


@recorded
def induced(
    source: RunSource,
    *,
    data: object = None,
    model: str | Maker | None = None,
    samples: int | None = None,
    test_samples: int | None = None,
    at: Sequence[int] | None = None,
    eps: float | None = None,
    alpha: float | None = None,
    steps: int = 10,
    clip: bool = False,
    pairs: int = 10,
    fresh: Mapping[str, Any] | None = None,
    fresh_epochs: int = 99,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    keep_data: bool = False,
    data_root: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> StudyResult:
    """Perturbs training and test images with checkpoints of a run, and trains fresh networks on what comes of them.

    Of each checkpoint, in eval mode: x -> PGD(x, y), one uniform random start, the true label, the ball alone unless
    `clip`; of training and of test images, as they are, neither augmented nor shuffled. They are kept in out/induced
    as float32 (four bytes a value: 614 MB for the 50,000 training images of CIFAR-10, 123 MB for the test images; one
    checkpoint at a time, unless `keep_data`). Then a new network of the same architecture is trained on the perturbed
    training images, standardly and without augmentation.

    A row is a checkpoint (epoch) with a fresh network (seed):

    - ide_test_error, ide_train_error, ide_gap (their difference), ide_test_loss: of the fresh network, last weights, on
      the perturbed sets; None where its training diverged. Not robustness: a perturbation tells the label.
    - robust_train, robust_test, robust_gap: accuracy of the checkpoint under the same PGD from another start, held to
      [0, 1]; checkpoint_train, checkpoint_test: its accuracy on the perturbed sets, the same thing where `clip`.
    - dispersion_, dispersion_linf_, cosine_, size_ and shift_ of train and test: see `advfast.studies.dispersion`.

    Args:
        source: a run's folder with kept checkpoints (`keep_every` of `advfast.train`), a checkpoint, or a recipe, which
            is trained in out/run; see `advfast.studies.runs`.
        data: what the run was trained on, or what a recipe is trained on, in its place.
        model: makes the network where a checkpoint does not name it; the network of a recipe, in its place.
        samples, test_samples: of a recipe's data: images to train on, each class in proportion, and test images, which
            training images that are left over join where there are too few. None: all.
        at: epochs of the checkpoints; None: all but that before training, of a recipe every tenth part of it.
        eps: radius, pixel units of [0, 1]; None is that of the run.
        alpha, steps: of PGD; None is eps / 4.
        clip: hold the perturbed images to [0, 1] too.
        pairs: of random starts, for each image.
        fresh: arguments of `advfast.train` for the fresh networks, in place of `FRESH_TRAINING`.
        fresh_epochs: their epochs.
        seeds: of the fresh networks.
        keep_data: leave the perturbed sets in out/induced.
        data_root: folder of a built-in data set's files.
        out, resume, overwrite, progress: see `advfast.studies.grid.run_grid`. A set that is whole is used again,
            one that was not finished is made anew.
        dry_run: say what it would cost, and return without rows.

    Raises:
        ValueError, TypeError: bad arguments; a run without such checkpoints.
        FileNotFoundError, FileExistsError: no such run or data; `out` holds a study.
        OSError: the disk has no room for the perturbed sets.
    """
    own = _fresh_arguments(fresh, fresh_epochs)
    _check_numbers(eps, alpha, steps, pairs, fresh_epochs, seeds, at)
    if not dry_run:
        check_out(out, resume=resume, overwrite=overwrite)
    subject = Subject(source, data, model, samples, test_samples, at, data_root)
    if eps is not None:
        check_pixels(eps, subject.norm)
    size = bytes_of(subject.train) + bytes_of(subject.test)
    if progress or dry_run:
        _say_cost(subject, own, steps, pairs, len(seeds), size)
    if dry_run:
        return StudyResult(NAME, {}, ("epoch", "seed"), (), [])
    with _folder(out) as folder:
        if overwrite:
            for name in (SETS, FRESH, *((RUN,) if subject.recipe is not None else ())):
                shutil.rmtree(folder / name, ignore_errors=True)
        there = sum(file.stat().st_size for file in (folder / SETS).glob("*.npy"))
        _check_disk(folder, size * (len(subject.epochs) if keep_data else 1) - there)
        run = subject.obtain(folder / RUN, progress=progress)
        radius = float(run.config["eps"]) if eps is None else eps
        crafting = Crafting(
            radius, radius / 4 if alpha is None else alpha, steps, run.config["norm"], clip, pairs
        )
        settings = {
            "source": subject.name, "data": subject.data_name, "fingerprint": fingerprint(subject.train),
            "train": len(subject.train), "test": len(subject.test), "model": subject.model_name,
            "weights": digest(run.model(run.epochs[-1])), "eps": radius, "alpha": crafting.alpha, "steps": steps,
            "norm": crafting.norm, "clip": clip, "pairs": pairs, "fresh": plain(own), "lr_drops": _drops(run.config),
        }  # fmt: skip
        work = Work(
            run, subject.train, subject.test, Store(folder / SETS, crafting), own, folder / FRESH, keep_data,
        )  # fmt: skip
        cells = [{"epoch": epoch, "seed": seed} for epoch in subject.epochs for seed in seeds]
        result = run_grid(
            NAME, cells, work.measure,
            settings=settings, expect=expectations, notes=notes, draw=draw, out=out, resume=resume,
            overwrite=overwrite, progress=progress,
        )  # fmt: skip
        work.finish()
        return result


def _fresh_arguments(given: Mapping[str, Any] | None, epochs: int) -> dict[str, Any]:
    own = training_arguments(None, "standard", given or {}, ("epochs", "steps", "eps", "val"))
    default = dict(FRESH_TRAINING)
    if "schedule" in own:
        default.pop("schedule_options")
    return default | own | {"epochs": epochs}


def _check_numbers(
    eps: float | None, alpha: float | None, steps: int, pairs: int, fresh_epochs: int,
    seeds: Sequence[int], at: Sequence[int] | None,
) -> None:  # fmt: skip
    for name, size in (("eps", eps), ("alpha", alpha)):
        if size is not None and not 0 < size < math.inf:
            raise ValueError(f"{name} must be a finite number > 0 in pixel units, got {size}")
    for name, count in (("steps", steps), ("pairs", pairs), ("fresh_epochs", fresh_epochs)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be an integer >= 1, got {count!r}")
    for name, several in (("seeds", seeds), ("at", at)):
        if several is None:
            continue
        whole = all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in several)
        if not whole or not several or len(set(several)) < len(several):
            raise ValueError(f"{name} must be different integers >= 0, got {list(several)}")


def _say_cost(
    subject: Subject, fresh: Mapping[str, Any], steps: int, pairs: int, seeds: int, size: int
) -> None:
    net = subject.network()
    device = next(net.parameters()).device
    train, test = len(subject.train), len(subject.test)
    # The set, the robust accuracy, and two runs for each pair; forward and to the input. The fresh networks, 3 a step.
    attacks = (train + test) * (2 + 2 * pairs) * 2 * steps
    fresh_passes = train * fresh["epochs"] * 3 * seeds
    passes = subject.training_passes(net) + len(subject.epochs) * (attacks + fresh_passes)
    images, _ = subject.train.batch(torch.arange(min(32, train)))
    announce(NAME, estimate(net, images.to(device), passes))
    print(f"{NAME}: {size / 1e6:.3g} MB of perturbed images a checkpoint, on disk", file=sys.stderr)


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder} has no room for the perturbed images: {needed / 1e6:.3g} MB are needed, {free / 1e6:.3g} MB are "
            "free"
        )


def _drops(config: Mapping[str, Any]) -> list[float]:
    return milestones(config["schedule"], config["epochs"], config["schedule_options"])


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        yield Path(out)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
