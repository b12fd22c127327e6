"""The kernel along training, run by run: one table of epochs, clean and attacked, and the ways that kernels take.

Of "Rethinking Adversarial Training with Neural Tangent Kernel" (arXiv 2312.02236); early epochs as in Loo et al.
(NeurIPS 2022), polar plot of Tsilivis & Kempe (NeurIPS 2022).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from advfast.data import Splits, fingerprint, load
from advfast.data.splits import as_splits
from advfast.invocation import recorded
from advfast.ntk import NTKRecorder, Probe, plan
from advfast.training import train
from advfast.training.config import plain

from .cost import EPOCHS, Cost, announce, estimate, training_passes
from .grid import check_out, run_grid
from .induced_sets import digest
from .result import StudyResult
from .runs import check_kept
from .subject import Maker, Subject, training_arguments
from .trace_expectations import expectations, notes
from .trace_figures import draw
from .trace_rows import METRICS, Trace, checkpoints_trace, read_trace, row_of
from .trace_sources import Key, Runs, Sources, model_name, radius_of

NAME = "ntk-trace"
EARLY = (0, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1, 1.5, 2, 2.5, 3, 4, 6, 8)
_OF_RUNS = ("eps", "norm")
_ATTACK = 20
"""Passes of an image under the attack, PGD-10."""

PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "data": "digits",
        "methods": ("standard", "pgd-at"),
        "seeds": (0, 1, 2),
        "probe": 100,
    },
    # The paper's schedule, with records around the two drops of the rate; the probe is that of Loo et al.
    "published": {
        "data": "cifar10",
        "model": "preact-resnet18",
        "methods": ("standard", "pgd-at"),
        "seeds": (0,),
        "probe": 500,
        "at": (*EARLY, 12, 16, 24, 32, 48, 64, 80, 99, 100, 101, 105, 125, 149, 150, 151, 155, 175, 200),
        "epochs": 200,
        "weight_decay": 5e-4,
        "schedule_options": {"milestones": [100, 150]},
    },
}  # fmt: skip


@recorded
def ntk_trace(
    data: str | Splits | Mapping[str, Any] | None = None,
    model: str | Maker | None = None,
    *,
    sources: Sources | None = None,
    methods: Sequence[str] = ("standard", "pgd-at"),
    at: Iterable[float] | None = None,
    keep_every: int = 1,
    reference: float = 1.0,
    seeds: Sequence[int] = (0, 1, 2),
    probe: int = 100,
    attack: str = "pgd-10",
    input_norm: bool = False,
    data_root: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: bool = True,
    **training: Any,
) -> StudyResult:
    """The kernel of the same test images along runs: of trainings with each method and seed from the same weights,
    or of the checkpoints of `sources`.

    A row is a method (or a source's label) at an epoch of a seed; `at` is counted as the next whole step. Kernels are
    trace kernels [N, N] in eval mode (running statistics), clean_ of the images and adversarial_ of what `attack` makes
    of them at that moment, with eps and norm of the training. Of both: effective_rank (entropy), top_share (lambda_1 /
    trace), specialization; velocity, the kernel distance from the epoch before over the epochs between; distance
    (kernel distance), radius (|K - K_r|_F / |K_T - K_r|_F) and angle (radians), all from the kernel K_r of the epoch
    `reference`, with K_T the last one; to_end, the kernel distance from K_T. (Before training batch normalisation in
    eval mode does nothing, and it takes 22 steps until nine tenths of its running statistics are of the data: distances
    from epoch 0 show that more than what is learnt.) specialization_drop is clean minus adversarial;
    clean_adversarial_distance is between the two kernels; clean_between and adversarial_between are the kernel
    distances from the first method's at that epoch and seed (None for itself, and where it has none). seconds is what
    an epoch's kernels took, share what all so far took of the time of the training (None for checkpoints).

    Args:
        data, model, seeds, probe, training: as in `bn_estimators`; `input_norm` puts a normalisation layer in front.
            None: "digits", or the data of the runs. Of `sources`, model makes networks that checkpoints do not name,
            and of `training` there are eps and norm alone, of the attack.
        sources: runs instead of trainings: folders with kept checkpoints (`keep_every` of `advfast.train`),
            checkpoints, networks, or recipes, which are trained in out/runs (see `advfast.studies.runs.Source`);
            one, several, or label -> one or several of different seeds.
        methods: of `advfast.training.methods`; the first is what the others are compared with.
        at: epochs, of which 0 may be one; None: densely until 3, then 4, 6, 8, each twice the one two before, and the
            last. Of `sources`: those that every run must have; None: all that each has.
        keep_every: epochs between the checkpoints of recipes.
        reference: the first epoch from this one on is what distance, radius and angle are from.
        attack: a name, as in `advfast.evaluate`.
        dry_run: say what it would cost, and return without rows.
        out, resume, overwrite, progress: see `advfast.studies.grid.run_grid`; kernels are in out/kernels.

    Raises:
        ValueError, TypeError: bad arguments; runs of different data or radii.
        FileNotFoundError, FileExistsError: no data or run, or no kernels to go on with; `out` holds a study.
    """
    if not dry_run:
        check_out(out, resume=resume, overwrite=overwrite)
    with _folder(out) as folder:
        if sources is None:
            work: _Trained | _Given = _Trained(
                "digits" if data is None else data, model, methods, at, reference, seeds, probe, attack, input_norm,
                data_root, training, folder / "kernels",
            )  # fmt: skip
        else:
            work = _Given(
                sources, data, model, at, reference, keep_every, probe, attack, data_root, training, folder,
            )  # fmt: skip
        expected = work.cost()  # errors of methods, before any training
        if progress or dry_run:
            announce(NAME, expected)
        if dry_run:
            return StudyResult(NAME, {}, ("method", "epoch", "seed"), (), [])
        if overwrite and out is not None:
            if isinstance(work, _Given):
                check_kept((source for _, source in work.runs.given), folder / "runs")
            for name in ("kernels", "runs"):
                shutil.rmtree(folder / name, ignore_errors=True)
        work.obtain(progress=progress)
        traces: dict[Key, Trace] = {}

        def trace(key: Key) -> Trace:
            if key not in traces:
                traces[key] = work.trace(key)
            return traces[key]

        def measure(method: str, epoch: float, seed: int) -> dict[str, Any]:
            key, first = (method, seed), (work.labels[0], seed)
            points, base = work.points[key], None
            if method != first[0] and epoch in work.points.get(first, ()):
                base = trace(first).kernels[work.points[first].index(epoch)]
            start = points.index(reference_of(points, reference))
            return row_of(trace(key), points.index(epoch), start, base)

        return run_grid(
            NAME, work.cells(), measure, settings=work.settings, draw=draw, out=out, resume=resume,
            overwrite=overwrite, progress=progress, expect=expectations, notes=notes,
        )  # fmt: skip


def reference_of(points: Sequence[float], reference: float) -> float:
    """The first epoch from `reference` on that is not the last; the first one of all where there is none."""
    return next((epoch for epoch in points[:-1] if epoch >= reference), points[0])


class _Trained:
    """Trainings with each method and seed, recorded as they go."""

    def __init__(
        self, data: str | Splits | Mapping[str, Any], model: str | Maker | None, methods: Sequence[str],
        at: Iterable[float] | None, reference: float, seeds: Sequence[int], probe: int, attack: str, input_norm: bool,
        data_root: str | Path | None, training: Mapping[str, Any], kernels: Path,
    ) -> None:  # fmt: skip
        if isinstance(methods, str) or not methods or len(set(methods)) < len(methods):
            raise ValueError(f"methods must be names, each once, got {methods!r}")
        self.labels, self.seeds = list(methods), list(seeds)
        self.splits = load(data, data_root) if isinstance(data, str) else as_splits(data, "own")
        self.arguments = {name: training_arguments(data, name, training) for name in self.labels}
        epochs = {a.get("epochs", EPOCHS) for a in self.arguments.values()}.pop()
        self.at = _points(at, epochs)
        self.points = {(name, seed): self.at for name in self.labels for seed in self.seeds}
        self.subject = Subject(self.splits, model, probe)
        self.subject.network(0, input_norm)  # errors now
        self.attack, self.input_norm, self.kernels = attack, input_norm, kernels
        self.settings = {
            "data": self.splits.name, "fingerprint": fingerprint(self.subject.train),
            "model": "conv-bn-net" if model is None else plain(model), "input_norm": input_norm, "attack": attack,
            "probe": probe, "at": self.at, "reference": reference_of(self.at, reference), "methods": self.labels,
            "trained_by": {name: name for name in self.labels},
            **{name: plain(value) for name, value in self.arguments[self.labels[0]].items()},
        }  # fmt: skip

    def cells(self) -> list[dict[str, Any]]:
        return [
            {"method": name, "epoch": epoch, "seed": seed}
            for seed in self.seeds
            for name in self.labels
            for epoch in self.at
        ]

    def cost(self) -> Cost:
        net = self.subject.network(0, self.input_norm)
        passes = sum(
            training_passes(net, len(self.subject.train), {"method": name, **arguments})
            for name, arguments in self.arguments.items()
        )
        records = len(self.at) * len(self.labels) * len(self.seeds)
        return _cost(net, self.subject.images, len(self.seeds) * passes, records)

    def obtain(self, *, progress: bool) -> None:
        """They are trained when they are asked for."""

    def trace(self, key: Key) -> Trace:
        method, seed = key
        place = self.kernels / f"{method.replace('/', '-')}-seed{seed}"
        net = self.subject.network(seed, self.input_norm)
        recorder = NTKRecorder(
            self.subject.images, self.subject.labels, at=self.at, attack=self.attack, metrics=METRICS, path=place
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            train(
                net, self.subject.train, val=self.splits.val, method=method, seed=seed, out=folder, overwrite=True,
                progress=False, callbacks=[recorder], **self.arguments[method],
            )  # fmt: skip
        return read_trace(place, recorder.history, self.at)


class _Given:
    """Runs that are there, and recipes."""

    def __init__(
        self, sources: Sources, data: object, model: str | Maker | None, at: Iterable[float] | None, reference: float,
        keep_every: int, probe: int, attack: str, data_root: str | Path | None, training: Mapping[str, Any],
        folder: Path,
    ) -> None:  # fmt: skip
        for name in training:
            if name not in _OF_RUNS:
                raise ValueError(
                    f"{name} is of a training; of sources there are eps and norm alone"
                )
        self.runs, self.folder, self.keep_every = Runs(sources, model), folder, keep_every
        self.at = None if at is None else sorted({float(epoch) for epoch in at})
        self.reference, self.given = reference, dict(training)
        self.splits = self.runs.splits(data, data_root)
        self.subject = Subject(self.splits, None, probe)
        self.probe = Probe(self.subject.images, self.subject.labels, attack=attack)
        for number, (label, _) in enumerate(self.runs.given):
            self._chosen(self.runs.epochs(number, keep_every), label or f"run {number + 1}")
        self.settings = {
            "data": self.splits.name, "fingerprint": fingerprint(self.subject.train), "attack": attack, "probe": probe,
        }  # fmt: skip
        self.labels: list[str] = []
        self.points: dict[Key, list[float]] = {}

    def _chosen(self, epochs: Sequence[float], label: str) -> list[float]:
        missing = sorted(set(self.at or ()) - set(epochs))
        if missing:
            raise ValueError(
                f"{label} has no checkpoint of epoch {missing[0]:g}; it has {', '.join(f'{e:g}' for e in epochs)}"
            )
        return [float(epoch) for epoch in (epochs if self.at is None else self.at)]

    def cost(self) -> Cost:
        net: nn.Module = self.runs.network(self.splits)
        images = self.subject.images.to(next(net.parameters()).device)
        counts = (
            len(self.at or self.runs.epochs(number, self.keep_every))
            for number in range(len(self.runs.given))
        )
        return _cost(net, images, self.runs.passes(self.splits), sum(counts))

    def obtain(self, *, progress: bool) -> None:
        self.found = self.runs.obtain(self.folder / "runs", self.keep_every, progress=progress)
        self.eps, self.norm = radius_of(self.found.values(), self.given)
        self.labels = list(dict.fromkeys(label for label, _ in self.found))
        for key, run in self.found.items():
            self.points[key] = self._chosen(run.epochs or (0,), run.name)
        starts = {reference_of(points, self.reference) for points in self.points.values()}
        self.settings |= {
            "model": model_name(self.found.values()), "eps": self.eps, "norm": self.norm, "at": self.at,
            "reference": starts.pop() if len(starts) == 1 else self.reference, "methods": self.labels,
            "trained_by": {label: run.config.get("method", "") for (label, _), run in self.found.items()},
            # A run that went on since, or another one of the same name, is another study.
            "runs": {
                f"{label}, seed {seed}": [self.points[label, seed], digest(run.model())]
                for (label, seed), run in self.found.items()
            },
        }  # fmt: skip

    def cells(self) -> list[dict[str, Any]]:
        return [
            {"method": label, "epoch": epoch, "seed": seed}
            for (label, seed), points in self.points.items()
            for epoch in points
        ]

    def trace(self, key: Key) -> Trace:
        place = self.folder / "kernels" / f"{key[0].replace('/', '-')}-seed{key[1]}"
        epochs = [int(epoch) for epoch in self.points[key]]
        return checkpoints_trace(self.found[key], epochs, self.probe, self.eps, self.norm, place)


def _cost(net: nn.Module, images: Tensor, passes: float, records: int) -> Cost:
    """Of trainings, and of the two kernels of each record."""
    each = estimate(net, images, 1.0)
    planned = plan(net, images)
    kernel = 2.0 * (planned.capture_macs + planned.contraction_macs) / each.flops
    total = passes + records * (len(images) * _ATTACK + 2 * kernel)
    return Cost(total, each.flops, total * each.seconds)


def _points(at: Iterable[float] | None, epochs: int) -> list[float]:
    if at is not None:
        points = sorted({float(epoch) for epoch in at})
        if len(points) < 2 or points[0] < 0 or not points[-1] <= epochs:
            raise ValueError(f"at must be two or more epochs, 0 .. {epochs}, got {points}")
        return points
    found = [float(epoch) for epoch in EARLY]
    while found[-1] < epochs:
        found.append(2 * found[-2])
    return sorted({*(epoch for epoch in found if epoch < epochs), float(epochs)})


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
