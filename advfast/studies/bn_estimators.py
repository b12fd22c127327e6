"""What the estimators of batch normalisation and an input normalisation do to adversarial training and to the kernel.

The first finding of "Rethinking Adversarial Training with Neural Tangent Kernel" (arXiv 2312.02236), as a factorial.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from advfast import models
from advfast.data import Splits, fingerprint, load
from advfast.data.splits import as_splits
from advfast.evaluation import evaluate
from advfast.invocation import recorded
from advfast.ntk import metrics, ntk, summary
from advfast.training import checkpoint, methods, train
from advfast.training.config import plain

from . import bn_expectations
from .cost import PGD_20, announce, estimate, training_passes
from .dots import dot_plot
from .effects import Factor, effects_table, main_effects
from .grid import run_grid
from .result import StudyResult
from .subject import REFERENCE, Maker, Subject, training_arguments

FACTORS = (
    Factor("input_norm", "off", "on"),
    Factor("statistics", "running", "batch"),
    # A network without running statistics does the same in both modes.
    Factor("crafting", "eval", "train", {"statistics": "running"}),
)
TEST_BATCH = 500
ATTACKS = ("clean", "pgd-20", "autoattack")
_TAKEN = ("bn", "norm_layers")
_KERNEL = ("effective_rank", "top_share", "specialization")
_SHOWN = {
    "clean": "clean",
    "pgd20": "PGD-20",
    "autoattack": "AutoAttack",
    "batch_pgd20": "PGD-20,\nbatches' own",
    "specialization": "specialisation",
    "effective_rank": "effective rank",
    "top_share": "largest\neigenvalue / trace",
    "eval_batch_distance": "distance\nrunning - batch",
}

AUTOATTACK = 5_000
"""Passes of an image where about half of them break early; one that never breaks takes about twice as many."""

PRESETS: dict[str, dict[str, Any]] = {
    "small": {"data": "digits", "seeds": (0, 1, 2), "probe": 100, "limit": 1000},
    # The paper's schedule; its networks and the size of its probe are not known.
    "published": {
        "data": "cifar10",
        "model": "preact-resnet18",
        "seeds": (0, 1, 2),
        "probe": 500,
        "limit": 1000,
        "weight_decay": 5e-4,
        "schedule_options": {"milestones": [100, 150]},
    },
}


@recorded
def bn_estimators(
    data: str | Splits | Mapping[str, Any] = "digits",
    model: str | Maker | None = None,
    *,
    method: str = "pgd-at",
    seeds: Sequence[int] = (0, 1, 2),
    probe: int = 100,
    limit: int | None = 1000,
    autoattack: bool = True,
    levels: Mapping[str, Sequence[str]] | None = None,
    data_root: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: bool = True,
    **training: Any,
) -> StudyResult:
    """{input normalisation off | on} x {running | batch statistics} x {attack crafted in eval | train mode}, each seed.

    statistics "running": batch normalisation with running statistics, which it uses in eval mode. "batch": it keeps
    none (track_running_stats=False), so that also in eval mode a sample's logits depend on its batch. crafting: the
    mode of the network while the training attack crafts; "train" puts running statistics back after it.

    Some settings coincide. Without running statistics both modes are the same computation: the two rows of such a
    setting are equal, they are run all the same, and the main effect of crafting is that of the rows with running
    statistics. And crafting in train mode with running statistics trains the weights that batch statistics train: these
    rows differ by what is tested alone.

    A network of batch statistics has neither an accuracy nor a kernel without the batch. Both are those of the network
    with the statistics of one fixed batch, 500 training images, as many of each class as can be, clean, biased
    variances (`advfast.models.fixed_statistics`). (AutoAttack leaves out samples as they break, so that in batches that
    normalise themselves it would attack one function and count in another.)

    Measured on the last epoch's weights: clean, pgd20 and autoattack accuracy; batch_clean and batch_pgd20, for both
    statistics: with test batches of 500, in the order of the data, each normalised by itself; of the clean kernel of
    `probe` test images, as many of each class as can be, effective_rank (entropy) and top_share (lambda_1 / trace) of
    the trace kernel and specialization; eval_batch_distance, the kernel distance between that of running statistics and
    that of the fixed batch (None where there are no running ones). init_*: the same before training.

    Args:
        data: name or path (see `advfast.data.load`), or its parts (`advfast.data.Splits`, or a dictionary with "train"
            and "test"); test images are needed.
        model: name of a network with batch normalisation, "file.py:make" or a function that makes one, which must have
            no input normalisation of its own; None: three convolutions of 8, 16 and 32 channels.
        method: of training, one that attacks.
        seeds: of the weights and the runs.
        probe: test images of the kernel.
        limit: accuracies are of the first so many test images; None: all.
        autoattack: False leaves it out (it is None then): most of the time on digits.
        levels: factor -> levels, to run only a part: {"crafting": ["eval"]}.
        out, resume, overwrite, progress: see `advfast.studies.grid.run_grid`.
        dry_run: say what it would cost, and return without rows.
        training: arguments of `advfast.train` in place of the defaults: on "digits" eps 0.2, 7 steps, 12 epochs,
            batches of 64, lr 0.1; else those of the command line for these data.

    Raises:
        ValueError, TypeError: bad arguments; a model without batch normalisation; data without test images.
        FileNotFoundError, FileExistsError: no data; `out` holds a study.
    """
    cells = _cells(seeds, levels)
    splits = load(data, data_root) if isinstance(data, str) else as_splits(data, "own")
    _check_method(method)
    arguments = training_arguments(data, method, training, _TAKEN)
    subject = Subject(splits, model, probe)
    _check_norm(subject)
    settings = {
        "data": splits.name, "fingerprint": fingerprint(subject.train),
        "model": "conv-bn-net" if model is None else plain(model), "method": method, "probe": probe,
        "limit": limit, "autoattack": autoattack, "test_batch": TEST_BATCH,
        **{name: plain(value) for name, value in arguments.items()},
    }  # fmt: skip

    if progress or dry_run:
        tested = min(len(subject.test), limit or len(subject.test))
        net = subject.network(0, normalised=False)
        each = training_passes(net, len(subject.train), {"method": method, **arguments})
        each += tested * (2 * PGD_20 + (AUTOATTACK if autoattack else 0))
        announce("bn-estimators", estimate(net, subject.images, len(cells) * each))
    if dry_run:
        return StudyResult("bn-estimators", settings, tuple(cells[0]), (), [])

    def measure(input_norm: str, statistics: str, crafting: str, seed: int) -> dict[str, Any]:
        began = time.perf_counter()
        net = subject.network(seed, input_norm == "on")
        if statistics == "batch":
            models.use_norm_layers(net, "batch-no-stats")
        before = _kernels(subject, net)
        with tempfile.TemporaryDirectory() as folder:
            done = train(
                net, subject.train, val=splits.val, method=method, bn=crafting, seed=seed, out=folder,
                overwrite=True, progress=False, norm_layers=models.norm_layers(net), **arguments,
            )  # fmt: skip
            checkpoint.load(done.last.checkpoint, net)
        tested = partial(
            evaluate, data=subject.test, limit=limit, batch_size=TEST_BATCH, eps=done.config["eps"],
            norm=done.config["norm"],
        )  # fmt: skip
        fixed = models.fixed_statistics(net, subject.reference) if statistics == "batch" else net
        report = tested(fixed, attacks=ATTACKS if autoattack else ATTACKS[:2])
        moving = copy.deepcopy(net)
        models.use_norm_layers(moving, "batch-no-stats")
        # It would find that a sample depends on its batch, which is what is asked for here.
        in_batches = tested(moving, attacks=ATTACKS[:2], sanity=False)
        return {
            "clean": report["clean"].value,
            "pgd20": report["pgd-20"].value,
            "autoattack": report["autoattack"].value if autoattack else None,
            "batch_clean": in_batches["clean"].value,
            "batch_pgd20": in_batches["pgd-20"].value,
            **_kernels(subject, net),
            **{f"init_{name}": value for name, value in before.items()},
            "seconds": time.perf_counter() - began,
        }

    return run_grid(
        "bn-estimators", cells, measure, settings=settings, notes=_notes, draw=draw, out=out, resume=resume,
        overwrite=overwrite, progress=progress,
        expect=bn_expectations.of_digits if data == "digits" and model is None else bn_expectations.of_any,
    )  # fmt: skip


def _cells(
    seeds: Sequence[int], levels: Mapping[str, Sequence[str]] | None
) -> list[dict[str, Any]]:
    names = [factor.name for factor in FACTORS]
    chosen = {factor.name: (factor.low, factor.high) for factor in FACTORS}
    for name, values in (levels or {}).items():
        if name not in chosen:
            raise ValueError(f"levels must be of {', '.join(names)}, got {name!r}")
        if isinstance(values, str) or not values or not set(values) <= set(chosen[name]):
            raise ValueError(
                f"levels of {name} must be a list of {' and '.join(chosen[name])}, got {values!r}"
            )
        chosen[name] = tuple(level for level in chosen[name] if level in values)
    return [
        {**dict(zip(names, cell, strict=True)), "seed": seed}
        for seed in seeds
        for cell in itertools.product(*chosen.values())
    ]


def _check_method(method: str) -> None:
    if getattr(methods.METHODS.get(method), "trains_on", None) == "clean":
        raise ValueError(
            f"method {method!r} crafts no images, so that there is no mode of crafting to study; take one that does, "
            "such as pgd-at"
        )


def _check_norm(subject: Subject) -> None:
    net = subject.network(0, normalised=False)
    if not any(isinstance(module, _BatchNorm) for module in net.modules()):
        raise ValueError(
            f"{plain(subject.model)} has no batch normalisation, whose estimators this study is of; give a network "
            "that has, such as resnet18"
        )


def _kernels(subject: Subject, net: nn.Module) -> dict[str, float | None]:
    """Metrics of the kernel of what is tested, and how far it is from the one of batch statistics."""
    batch = ntk(models.fixed_statistics(net, subject.reference), subject.images)
    own, distance = batch, None
    if models.norm_layers(net) == "batch":
        own = ntk(net, subject.images)
        distance = metrics.kernel_distance(own, batch)
    return {**summary(own, subject.labels, _KERNEL), "eval_batch_distance": distance}


def _notes(result: StudyResult) -> list[str]:
    measures = [m for m in result.measures if m != "seconds"]
    found = effects_table(main_effects(result.rows, FACTORS, measures))
    return [
        *found,
        "",
        "mean difference over the other factors ± sample standard deviation over the seeds. That of crafting is of",
        "statistics = running alone: without running statistics eval and train mode are the same computation, and the",
        "rows of statistics = batch coincide in pairs. Crafting in train mode trains the same weights with running",
        "statistics as without: those rows differ by what is tested alone.",
        f"statistics = batch: tested, and the kernel taken, with the statistics of {REFERENCE} training images, fixed;",
        f"batch_*: in test batches of {TEST_BATCH}, each normalised by itself.",
    ]


def draw(result: StudyResult) -> Iterable[tuple[str, Any]]:
    title = "what batch normalisation's estimators do, {method} on {data}".format(**result.settings)
    yield "measures", dot_plot(result, _SHOWN, title, "statistics")
    before = {f"init_{name}": head for name, head in _SHOWN.items()}
    known = {name: head for name, head in before.items() if name in result.measures}
    yield "initial", dot_plot(result, known, "the kernel before training", "statistics")
