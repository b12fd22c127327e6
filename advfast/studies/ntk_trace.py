"""The kernel along training, method by method: one table of epochs, clean and attacked, and the ways that kernels take.

Of "Rethinking Adversarial Training with Neural Tangent Kernel" (arXiv 2312.02236); early epochs as in Loo et al.
(NeurIPS 2022), polar plot of Tsilivis & Kempe (NeurIPS 2022).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advfast.data import Splits, fingerprint, load
from advfast.data.splits import as_splits
from advfast.ntk import NTKRecorder, metrics
from advfast.training import train
from advfast.training.config import plain

from .grid import run_grid
from .judge import compared
from .result import Expectation, StudyResult
from .subject import Maker, Subject, training_arguments
from .trace_figures import draw

EARLY = (0, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1, 1.5, 2, 2.5, 3, 4, 6, 8)
METRICS = ("effective_rank", "top_share", "specialization")
KINDS = ("clean", "adversarial")
_DEFAULT_EPOCHS = 30  # of `train`


def ntk_trace(
    data: str | Splits | Mapping[str, Any] = "digits",
    model: str | Maker | None = None,
    *,
    methods: Sequence[str] = ("standard", "pgd-at"),
    at: Iterable[float] | None = None,
    reference: float = 1.0,
    seeds: Sequence[int] = (0, 1, 2),
    probe: int = 100,
    attack: str = "pgd-10",
    input_norm: bool = False,
    data_root: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **training: Any,
) -> StudyResult:
    """Trains with each method and each seed from the same weights, and takes the kernel of the same test images.

    A row is a method at an epoch (`at`, counted as the next whole step) of a seed. Kernels are trace kernels [N, N] in
    eval mode (running statistics), clean_ of the images and adversarial_ of what `attack` makes of them at that moment,
    with eps and norm of the training. Of both: effective_rank (entropy), top_share (lambda_1 / trace), specialization;
    velocity, the kernel distance from the epoch before over the epochs between; distance (kernel distance), radius
    (|K - K_r|_F / |K_T - K_r|_F) and angle (radians), all from the kernel K_r of the epoch `reference`, with K_T the
    last one. (Before training batch normalisation in eval mode does nothing, and it takes 22 steps until nine tenths of
    its running statistics are of the data: distances from epoch 0 show that more than what is learnt.)
    clean_adversarial_distance is between the two kernels; clean_between and adversarial_between are the kernel
    distances from the first method's at that epoch (None for itself).

    Args:
        data, model, seeds, probe, training: as in `bn_estimators`; `input_norm` puts a normalisation layer in front.
        methods: of `advfast.training.methods`; the first is what the others are compared with.
        at: epochs, of which 0 may be one; None: densely until 3, then 4, 6, 8, each twice the one two before, and the
            last.
        reference: the first epoch of `at` from this one on is what distance, radius and angle are from.
        attack: a name, as in `advfast.evaluate`.
        out, resume, overwrite, progress: see `advfast.studies.grid.run_grid`; kernels are in out/kernels.

    Raises:
        ValueError, TypeError: bad arguments.
        FileNotFoundError, FileExistsError: no data, or no kernels to go on with; `out` holds a study.
    """
    if isinstance(methods, str) or not methods or len(set(methods)) < len(methods):
        raise ValueError(f"methods must be names, each once, got {methods!r}")
    methods = list(methods)
    splits = load(data, data_root) if isinstance(data, str) else as_splits(data, "own")
    arguments = {name: training_arguments(data, name, training) for name in methods}
    epochs = {a.get("epochs", _DEFAULT_EPOCHS) for a in arguments.values()}.pop()
    points = _points(at, epochs)
    start = next((epoch for epoch in points[:-1] if epoch >= reference), points[0])
    subject = Subject(splits, model, probe)
    subject.network(0, input_norm)  # errors now
    settings = {
        "data": splits.name, "fingerprint": fingerprint(subject.train),
        "model": "conv-bn-net" if model is None else plain(model), "input_norm": input_norm, "attack": attack,
        "probe": probe, "at": points, "reference": start, "methods": methods,
        **{name: plain(value) for name, value in arguments[methods[0]].items()},
    }  # fmt: skip
    cells = [
        {"method": name, "epoch": epoch, "seed": seed}
        for seed in seeds
        for name in methods
        for epoch in points
    ]
    with _folder(out) as kernels:
        traces: dict[tuple[str, int], Trace] = {}

        def trace(method: str, seed: int) -> Trace:
            place = kernels / f"{method.replace('/', '-')}-seed{seed}"
            if (method, seed) not in traces:
                net = subject.network(seed, input_norm)
                recorder = NTKRecorder(
                    subject.images, subject.labels, at=points, attack=attack, metrics=METRICS, path=place
                )  # fmt: skip
                with tempfile.TemporaryDirectory() as folder:
                    train(
                        net, subject.train, val=splits.val, method=method, seed=seed, out=folder,
                        overwrite=True, progress=False, callbacks=[recorder], **arguments[method],
                    )  # fmt: skip
                traces[method, seed] = read_trace(place, recorder.history, points)
            return traces[method, seed]

        def measure(method: str, epoch: float, seed: int) -> dict[str, Any]:
            own = trace(method, seed)
            base = trace(methods[0], seed) if method != methods[0] else None
            return row_of(own, points.index(epoch), points.index(start), base)

        return run_grid(
            "ntk-trace", cells, measure, settings=settings, draw=draw, out=out, resume=resume, overwrite=overwrite,
            progress=progress, expect=lambda result: expectations(result, points[-1]),
        )  # fmt: skip


@dataclass(frozen=True)
class Trace:
    """The records of one run: rows of the recorder, and kernels [N, N] by kind, one for each epoch asked for."""

    rows: list[dict[str, float]]
    kernels: list[dict[str, Tensor]]


def read_trace(folder: Path, history: Sequence[Mapping[str, float]], at: Sequence[float]) -> Trace:
    """Records of a run for the epochs `at`, each the next whole step; two may be the same."""
    last = history[-1]
    steps = round(last["step"] / last["epoch"]) if last["epoch"] else 1
    by_step = {int(row["step"]): dict(row) for row in history}
    rows, kernels = [], []
    for epoch in at:
        step = math.ceil(epoch * steps - 1e-9)
        rows.append(by_step[step])
        with np.load(folder / f"step-{step:06d}.npz") as found:
            kernels.append({kind: torch.from_numpy(found[kind]) for kind in KINDS})
    return Trace(rows, kernels)


def row_of(trace: Trace, number: int, reference: int, base: Trace | None) -> dict[str, Any]:
    """The measures of record `number`, from record `reference`; `base` is the first method's run of that seed."""
    row, kernels = trace.rows[number], trace.kernels
    found: dict[str, Any] = {}
    for kind in KINDS:
        now, start, end = (kernels[i][kind] for i in (number, reference, -1))
        found |= {f"{kind}_{name}": row[f"{kind}_{name}"] for name in METRICS}
        passed = row["epoch"] - trace.rows[number - 1]["epoch"] if number else 0.0
        found[f"{kind}_velocity"] = (
            metrics.kernel_velocity(kernels[number - 1][kind], now, passed) if passed else None
        )
        found[f"{kind}_distance"] = metrics.kernel_distance(start, now)
        moved = not torch.equal(start, end)
        radius, angle = metrics.polar(now, start, end if moved else None)
        found[f"{kind}_radius"], found[f"{kind}_angle"] = radius if moved else None, angle
    found["clean_adversarial_distance"] = row["clean_adversarial_distance"]
    for kind in KINDS:
        found[f"{kind}_between"] = (
            None
            if base is None
            else metrics.kernel_distance(base.kernels[number][kind], kernels[number][kind])
        )
    return found


def expectations(result: StudyResult, last: float) -> list[Expectation]:
    """Of the kernels after training, written down on 2026-11-30 before the first run; orders that were reported of
    digits and of CIFAR-10 (Tsilivis & Kempe, NeurIPS 2022)."""
    if not {"standard", "pgd-at"} <= {row["method"] for row in result.rows}:
        return []
    standard, robust = ({"method": name, "epoch": last} for name in ("standard", "pgd-at"))
    return [
        compared(
            result, f"after training, {words} of standard {'above' if more else 'below'} that of pgd-at", measure,
            standard, robust, (lambda a, b: a > b) if more else (lambda a, b: a < b),
        )
        for words, measure, more in (
            ("the clean effective rank", "clean_effective_rank", True),
            ("clean lambda_1 / trace", "clean_top_share", False),
            ("the clean specialisation", "clean_specialization", True),
            ("the distance from clean to attacked", "clean_adversarial_distance", True),
        )
    ]  # fmt: skip


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
        yield Path(out) / "kernels"
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
