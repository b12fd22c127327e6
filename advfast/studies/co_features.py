"""Catastrophic overfitting by a feature that tells the classes apart but is not robust (Ortiz-Jimenez et al., 2023)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from advfast.data import Splits, TensorSource, fingerprint, load
from advfast.data.injected import KINDS, check_beta
from advfast.data.splits import as_splits
from advfast.invocation import recorded
from advfast.kernels.pgd.api import nearest
from advfast.training.config import plain
from advfast.training.recipes import find as find_recipe

from . import cost
from .co_features_expected import expectations
from .co_features_figures import draw
from .co_features_methods import method_of
from .co_features_subject import NETS, TIMELINE, Subject
from .grid import check_out, run_grid
from .result import StudyResult
from .runs import Run, Source, obtain, recipe_of
from .subject import Maker

NAME = "co-features"
TRAINED_ON = tuple(kind for kind in KINDS if kind != "carrier-only")

_DIGITS: dict[str, Any] = {
    "model": "conv-4", "epochs": 60, "batch_size": 64, "lr": 0.1, "schedule": "triangular", "bn": "train-update",
}  # fmt: skip
_OTHERS = _DIGITS | {"model": "preact-resnet18", "epochs": 30, "batch_size": 128, "lr": 0.2}
_TAKEN = (
    "alpha", "augment", "callbacks", "collapse_kernel", "data", "ema", "eps", "extra", "extra_share", "keep_every",
    "method", "method_options", "norm", "on_collapse", "out", "overwrite", "progress", "recipe", "resume", "seed",
    "steps", "test", "val", "weights",
)  # fmt: skip
"""Arguments of `train` that the study sets itself, or that would change what it measures."""

PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "data": "digits",
        "betas": (0.0, 0.1, 0.2, 0.3),
        "eps": 0.25,
        "methods": ("fgsm", "n-fgsm", "gradalign:lam=0.2", "gradalign:lam=2", "pgd-at"),
        "samples": 900,
    },
    "control": {
        "data": "digits",
        "model": "conv-2",
        "betas": (0.0, 0.05, 0.1, 0.14),
        "eps": 0.15,
        "methods": ("fgsm",),
        "samples": 900,
        "epochs": 30,
    },
    "published": {
        "data": "cifar10",
        "betas": tuple(beta / 255 for beta in (0, 2, 4, 6, 8, 12, 16)),
        "eps": tuple(eps / 255 for eps in (2, 4, 6, 8, 10)),
        "methods": ("fgsm", "n-fgsm", "gradalign:lam=0.2", "pgd-at"),
    },
}


@recorded
def co_features(
    data: str | Splits | Mapping[str, Any] | None = None,
    source: Source | None = None,
    *,
    model: str | Maker | None = None,
    methods: Sequence[str] = ("fgsm",),
    betas: Sequence[float] = (0.0, 0.1, 0.2),
    eps: float | Sequence[float] = 0.25,
    seeds: Sequence[int] = (0,),
    kind: str = "injected",
    clip: bool = False,
    bandwidth: int | None = None,
    samples: int | None = None,
    limit: int | None = 1000,
    probe: int = 256,
    shape: int = 64,
    restarts: int = 10,
    data_root: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    dry_run: bool = False,
    **training: Any,
) -> StudyResult:
    """Trains with each method, amplitude and radius on images that carry a feature of their class, and looks who
    collapses.

    Training and test images are x + beta V_y, see `advfast.data.inject`, made once and not augmented. A row is a method
    at a beta, an eps and a seed, after the last epoch, on the first `limit` test images: accuracies without an attack
    of the test images (injected), of those without the feature (original), of the K features alone (carrier) and of
    images with the negative feature (reverse); fgsm (one step of eps from the image) and pgd (50 steps of eps / 4, of
    `restarts` random starts the worst), on attacked images alone; gap, their difference; collapsed, 1 where it is above
    0.5; cos1, cos2 and curvature, see `co_features_probe.local_shape`; alarm, the epoch of the first alarm of the
    detector (after each epoch, 256 training images, a drop of PGD-10 accuracy by 0.2 or a gap of 0.5), None for none.
    out/timeline.csv has a row an epoch of each run: the detector's fgsm and pgd (10 steps) and whether it fired, the
    accuracies without an attack, cos1, cos2 and curvature of training images.

    Args:
        data: name or path (see `advfast.data.load`), or its parts with test images. None: that of `source`, or digits.
        source: a checkpoint, a run's folder or a network, of images in [0, 1]: it is probed as it is, a row a beta and
            eps, and nothing is trained. (Runs of this study are of images in a `Room`: their rows are their probes.) Or
            a recipe (see `runs.Source`), whose arguments the trainings take, but for the attack and augmentation.
        model: "conv-4" (digits: 3x3 convolutions of 32, 32, 64 and 64 channels with batch normalisation), "conv-2" (32
            and 64), the name of a network, "file.py:make" or a function that makes one. None is by the data: "conv-4"
            or "preact-resnet18". With a checkpoint, what makes its network.
        methods: of `advfast.training.methods`, with options as "gradalign:lam=0.2" or "pgd-at:steps=5".
        betas, eps: amplitudes, and radii in linf, both in pixel units of [0, 1].
        seeds: a run each.
        kind: what the feature does in training and test images: "injected", "orthogonal" or "reverse"; "original" for
            none.
        clip: cuts injected images at 0 and 1, and attacks too. Without it, as published, neither is.
        bandwidth: of a DCT low-pass in front of the network, through which attacks are differentiated; the rows then
            also have unfiltered_injected, unfiltered_fgsm and unfiltered_pgd, with the filter off, in attacks too.
        samples: training images, stratified, the same in all runs; None for all, less 97 that are set aside.
        limit: test images, the first so many; None for all.
        probe: test images of the timeline, the first so many.
        shape: images for cos1, cos2 and curvature.
        restarts: of PGD-50.
        data_root, out, resume, overwrite, progress: see `advfast.studies.grid.run_grid`; runs are in out/runs.
        dry_run: say what it will cost, and return without rows.
        **training: of `advfast.train`, such as epochs, lr and batch_size.

    Raises:
        ValueError, TypeError: a bad argument, before any work; `resume` with other arguments than before.
        FileNotFoundError, FileExistsError: no data or no run; `out` holds a study.
    """
    radii = [float(r) for r in (eps if isinstance(eps, Sequence) else [eps])]
    _check(
        methods, betas, radii, seeds, kind,
        {"limit": limit, "probe": probe, "shape": shape, "restarts": restarts},
    )  # fmt: skip
    for name in training:
        if name in _TAKEN:
            raise ValueError(f"{name} is set by the study, and cannot be given for its runs")
    recipe = None if source is None or isinstance(source, nn.Module) else recipe_of(source)
    run: Run | None = None
    if source is not None and recipe is None:
        if training or bandwidth is not None:
            what = ", ".join([*training, *([] if bandwidth is None else ["bandwidth"])])
            raise ValueError(f"{what}: nothing is trained where `source` is a run or a network")
        run = obtain(source, Path(), model=model if model not in NETS else None, progress=progress)
    arguments = _of_recipe(recipe or {})
    its_data = arguments.pop("data", None)
    splits = _splits(its_data if data is None else data, run, data_root)
    arguments = (_DIGITS if splits.name == "digits" else _OTHERS) | arguments | training
    its_model = arguments.pop("model")
    model = its_model if model is None else model
    subject = Subject(
        splits, model, kind=kind, clip=clip, bandwidth=bandwidth, samples=samples, limit=limit, probe=probe,
        shape=shape, restarts=restarts,
    )  # fmt: skip
    trained = {
        (name, radius): method_of(name, radius, arguments) for name in methods for radius in radii
    }
    settings = {
        "data": splits.name, "fingerprint": fingerprint(TensorSource(*subject.train)), "kind": kind, "clip": clip,
        "bandwidth": bandwidth, "samples": len(subject.train[0]), "limit": limit, "probe": probe, "shape": shape,
        "restarts": restarts, "source": None if source is None else plain(source),
    }  # fmt: skip
    names = list(methods)
    if run is None:
        settings |= {"model": plain(model), **{k: plain(v) for k, v in arguments.items()}}
        subject.network(seeds[0])  # errors now
    else:
        names = [run.name]
    cells = [
        {"method": name, "beta": float(beta), "eps": radius, "seed": seed}
        for radius in radii
        for beta in betas
        for name in names
        for seed in ([0] if run is not None else seeds)
    ]
    if progress or dry_run:
        net = subject.network(seeds[0]) if run is None else run.model()
        cost.announce(
            NAME, subject.cost(net, cells, {} if run is not None else trained, arguments["epochs"])
        )
    if dry_run:
        return StudyResult(NAME, settings, ("method", "beta", "eps", "seed"), (), [], draw=draw)
    check_out(out, resume=resume, overwrite=overwrite)
    with _folder(out) as folder:
        if overwrite:
            (folder / TIMELINE).unlink(missing_ok=True)

        def measure(method: str, beta: float, eps: float, seed: int) -> dict[str, Any]:
            if run is not None:
                return subject.probe_row(run.model(), beta, eps) | {"alarm": None}
            cell = {"method": method, "beta": beta, "eps": eps, "seed": seed}
            return subject.trained_row(cell, trained[method, eps], arguments, folder, resume=resume)

        return run_grid(
            NAME, cells, measure, settings=settings, expect=expectations, draw=draw, out=out, resume=resume,
            overwrite=overwrite, progress=progress,
        )  # fmt: skip


def _check(
    methods: Sequence[str],
    betas: Sequence[float],
    radii: Sequence[float],
    seeds: Sequence[int],
    kind: str,
    counts: Mapping[str, int | None],
) -> None:
    for name, values in (("methods", methods), ("betas", betas), ("eps", radii), ("seeds", seeds)):
        if isinstance(values, str) or not values or len(set(values)) < len(values):
            raise ValueError(f"{name} must be different values, at least one, got {values!r}")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seeds must be integers >= 0, got {seed!r}")
    for beta in betas:
        check_beta(beta)
    for radius in radii:
        if not 0 < radius < 1:
            raise ValueError(
                f"eps must be above 0 and below 1, in pixel units of [0, 1] (8/255, not 8), got {radius}"
            )
    if kind not in TRAINED_ON:
        raise ValueError(
            f"kind must be one of {', '.join(TRAINED_ON)}, got {kind!r}{nearest(kind, TRAINED_ON)}"
        )
    for name, count in counts.items():
        good = isinstance(count, int) and not isinstance(count, bool) and count >= 1
        if not good and not (count is None and name == "limit"):
            raise ValueError(f"{name} must be an integer >= 1, got {count!r}")


def _of_recipe(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a recipe, its published ones too, without those that are the study's."""
    arguments = dict(given)
    name = arguments.pop("recipe", None)
    if name is not None:
        arguments = find_recipe(name).arguments | arguments
    return {key: value for key, value in arguments.items() if key not in _TAKEN or key == "data"}


def _splits(data: object, run: Run | None, root: str | Path | None) -> Splits:
    if run is not None:
        return run.splits(data, root)
    data = "digits" if data is None else data
    return load(data, root) if isinstance(data, str) else as_splits(data, "own")


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
