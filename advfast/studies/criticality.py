"""Which layers a network needs: each is put back to a random initialisation, and the predictions are compared.

"How Do Training Methods Influence the Utilization of Vision Models?" (arXiv 2410.14470).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advfast import models as networks
from advfast.data import Source as Images
from advfast.data import Splits, fingerprint
from advfast.evaluation.words import duration
from advfast.invocation import recorded
from advfast.training.config import plain

from . import cost
from .criticality_figures import draw
from .criticality_measure import INITS, MAX_BYTES, Init, Moved, check_kinds, measure
from .criticality_subjects import Model, Sources
from .criticality_tables import (
    MEASURED,
    PUBLISHED,
    STAGES,
    expectations,
    notes,
    read_criticality,
    stage_of,
    stage_rows,
)
from .grid import check_out, run_grid
from .result import Row, StudyResult
from .runs import Maker, check_kept

_SAID_EVERY = 30.0
"""Seconds between two lines of progress inside a network."""


@recorded
def criticality(
    models: Model | Sequence[Model] | Mapping[str, Model],
    data: str | Splits | Mapping[str, Any] | Tensor | None = None,
    *,
    model: str | Maker | None = None,
    images: int = 1000,
    trials: int = 3,
    batch_size: int = 50,
    layers: Sequence[str] = ("conv", "linear"),
    init: Init = "module",
    stage_depth: int = 1,
    eps: Sequence[float | None] | None = None,
    seed: int = 0,
    samples: int | None = None,
    tested: int | None = None,
    published: str | Path | None = None,
    data_root: str | Path | None = None,
    max_bytes: int = MAX_BYTES,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    dry_run: bool = False,
    **training: Any,
) -> StudyResult:
    """Criticality of every layer of every network, from 0 (the predictions stay) to 1 (see `criticality_measure`).

    A row is a network, a layer and a trial ("seed": from trial and layer the random weights are drawn): criticality,
    l1, l2, accuracy with the layer re-initialised and that over the network's own (recovered_accuracy). Columns
    besides: eps of the training where it is known (0 for standard), stage, kind of the layer. out/stages.csv has the
    averages of the stages and of all layers. Networks are copied: no weight of theirs is touched.

    Args:
        models: one or several networks, runs' folders, checkpoints or recipes (see `runs.Source`), "file.py:make", or
            functions that make one; or a mapping from labels to such (a mapping that has a key of `advfast.train` is a
            recipe). Recipes are trained in out/runs.
        data: name or path as in `advfast.data.load`, or Splits; recipes are trained on it. Looked at is its test part;
            where it has none, its validation part, or, without recipes, all. Or images [N, C, H, W] in [0, 1] alone,
            without accuracies. None: the data of the first network that says so.
        model: as in `runs.open_run`, for checkpoints that do not name their network.
        images: of those, a random part that is the same for every network and trial (all, where there are fewer).
        trials: random initialisations of each layer.
        batch_size: images a pass, N of [N, C, H, W].
        layers: "conv" (Conv2d), "linear" (Linear), "bn" (BatchNorm2d, put back to weight 1, bias 0, mean 0, variance
            1): modules of exactly this class.
        init: "module": each layer's own reset_parameters, for torch's convolutions and linear layers uniform in
            +- 1 / sqrt(fan-in); "network": a network made anew by advfast, or by the function, as in the released code,
            so by its own scheme (He normal, fan-out, in ImageNet's ResNets); or a function that changes a copy of a
            layer in place. Other scales of the weights give other criticalities.
        stage_depth: components of a layer's name that make a stage, after those that all layers share.
        eps: radius of each network's training, in their order, for those that do not say.
        seed: of the choice of images.
        samples, tested: training images, the first so many, and test images of the trainings here; None for all.
        published: CSV file of published results to show beside, see `read_criticality`.
        data_root: as in `advfast.data.load`.
        max_bytes: of activations that are kept of a batch; larger batches are taken in parts.
        out, resume, overwrite, progress: see `advfast.studies.grid.run_grid`.
        dry_run: say what it would cost, and return a study without rows.
        training: arguments of `advfast.train` in place of those of the recipes.

    Raises:
        ValueError, TypeError: bad arguments; logits of a bad shape, or not finite.
        FileNotFoundError, FileExistsError: no such run or data; `out` holds a study.
    """
    _check(images, trials, batch_size, layers, init, stage_depth, samples, tested)
    if not dry_run:
        check_out(out, resume=resume, overwrite=overwrite)
    sources = Sources.of(models, model, eps)
    read = [] if published is None else read_criticality(published, stage_depth)
    parts, labelled = sources.parts(data, data_root)
    test, arguments = parts.test, parts.arguments(samples, tested) | training
    chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))[:images]
    chosen = chosen.sort().values
    example, _ = test.batch(chosen[:batch_size])
    counts = len(chosen), trials, layers, parts.training_images(samples)
    expected = sources.cost(example, *counts)  # errors of networks, before any training
    if progress or dry_run:
        cost.announce("criticality", expected)
    if dry_run:
        return StudyResult("criticality", {}, (), (), [])
    with _folder(out) as folder:
        if overwrite and out is not None:
            files = [file for run in sources.runs.values() for _, file in run.points]
            check_kept(files, folder)
            shutil.rmtree(folder, ignore_errors=True)
        subjects = sources.obtain(folder, layers, init, progress=progress, **arguments)
    settings = {
        "data": parts.name, "fingerprint": fingerprint(test), "images": len(chosen), "seed": seed,
        "layers": list(layers), "init": plain(init), "stage_depth": stage_depth,
        "models": {one.label: one.settings for one in subjects},
    }  # fmt: skip
    cells = [
        {
            "model": one.label, "eps": one.eps, "stage": stage_of(one.short(layer), stage_depth),
            "layer": one.short(layer), "kind": layer.kind, "seed": trial,
        }
        for one in subjects for trial in range(trials) for layer in one.layers
    ]  # fmt: skip
    by_label = {one.label: one for one in subjects}
    found: dict[tuple[str, str, int], Moved] = {}
    whole: list[str] = []

    def take(**cell: Any) -> dict[str, float | None]:
        """All layers of a network in the trials from this one on, which are what is missing of it."""
        one, trial = by_label[cell["model"]], cell["seed"]
        if (one.label, cell["layer"], trial) not in found:
            moved, reason = measure(
                one.net(), one.layers, partial(_batches, test, chosen, batch_size, labelled), range(trial, trials),
                init=init, maker=one.maker, max_bytes=max_bytes,
                seen=_teller(one.label, len(chosen)) if progress else None,
            )  # fmt: skip
            short = {layer.name: one.short(layer) for layer in one.layers}
            found.update({(one.label, short[name], n): each for (name, n), each in moved.items()})
            if reason:
                whole.append(f"{one.label} was taken in whole passes: {reason}")
        return asdict(found[one.label, cell["layer"], trial])

    def tables(result: StudyResult) -> dict[str, list[Row]]:
        of_source = {MEASURED: stage_rows(result.rows), PUBLISHED: stage_rows(read)}
        return {
            STAGES: [{"source": name, **row} for name, rows in of_source.items() for row in rows]
        }

    return run_grid(
        "criticality", cells, take, settings=settings, out=out, resume=resume, overwrite=overwrite,
        progress=progress, at_once=("model",), expect=expectations, tables=tables,
        notes=lambda result: [*notes(result), *whole], draw=draw,
    )  # fmt: skip


def _check(
    images: int, trials: int, batch_size: int, layers: Sequence[str], init: Init, stage_depth: int,
    samples: int | None, tested: int | None,
) -> None:  # fmt: skip
    counts = {
        "images": images, "trials": trials, "batch_size": batch_size, "stage_depth": stage_depth,
        "samples": samples, "tested": tested,
    }  # fmt: skip
    for name, value in counts.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be an integer of 1 or more, got {value!r}")
    check_kinds(layers)
    if not callable(init) and init not in INITS:
        raise ValueError(f"init must be {' or '.join(INITS)}, or a function, got {init!r}")


def _batches(
    test: Images, chosen: Tensor, size: int, labelled: bool
) -> Iterator[tuple[Tensor, Tensor | None]]:
    for part in chosen.split(size):
        images, labels = test.batch(part)
        yield images, labels if labelled else None


def _teller(label: str, images: int) -> Callable[[int], None]:
    began = said = time.monotonic()

    def tell(seen: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= _SAID_EVERY and seen < images:
            said = now
            left = duration((now - began) / seen * (images - seen))
            print(f"criticality: {label}: {seen} of {images} images, {left} left", file=sys.stderr)

    return tell


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    """Of the trainings."""
    if out is not None:
        yield Path(out) / "runs"
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _small_net() -> torch.nn.Module:
    return networks.make(
        "resnet18", in_shape=(1, 28, 28), classes=10, width=8, mean=[0.286], std=[0.353]
    )


_SMALL = {
    "model": _small_net, "epochs": 10, "batch_size": 64, "lr": 0.1, "seed": 0,
}  # fmt: skip
_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "models": {
            "standard": _SMALL | {"method": "standard"},
            "PGD-AT eps 0.05": _SMALL | {"method": "pgd-at", "eps": 0.05, "steps": 3},
            "PGD-AT eps 0.1": _SMALL | {"method": "pgd-at", "eps": 0.1, "steps": 3},
        },
        "data": "fashion-mnist",
        "images": 500,
        "trials": 3,
        "samples": 3000,
        "tested": 200,
    },
    # The released code compares ResNet-50s of many recipes; weights of others come as file.py:make or as checkpoints.
    "published": {
        "models": {
            "torchvision V1": partial(
                networks.make, "torchvision:resnet50", weights="IMAGENET1K_V1", **_IMAGENET
            ),
            "torchvision V2": partial(
                networks.make, "torchvision:resnet50", weights="IMAGENET1K_V2", **_IMAGENET
            ),
            "timm a1": partial(networks.make, "timm:resnet50.a1_in1k", pretrained=True),
        },
        "images": 10_000,
        "trials": 3,
        "batch_size": 200,
        "init": "network",
    },
}
"""Of "published", `data` is to be given: a folder with ImageNet's validation images, such as folder@256/224."""
