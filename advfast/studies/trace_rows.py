"""The kernels of a run and what a row of `ntk_trace` says of them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advfast.files import write_atomic
from advfast.ntk import Probe, metrics

from .runs import Run

METRICS = ("effective_rank", "top_share", "specialization")
KINDS = ("clean", "adversarial")


@dataclass(frozen=True)
class Trace:
    """The records of one run: their rows, as `NTKRecorder` writes them, and kernels [N, N] by kind, one an epoch."""

    rows: list[dict[str, Any]]
    kernels: list[dict[str, Tensor]]


def read_trace(folder: Path, history: Sequence[Mapping[str, float]], at: Sequence[float]) -> Trace:
    """Records that `NTKRecorder` made, for the epochs `at`, each the next whole step; two may be the same."""
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


def checkpoints_trace(
    run: Run, epochs: Sequence[int], probe: Probe, eps: float, norm: str, folder: Path
) -> Trace:
    """The same of the kept checkpoints of a run; kernels are left in folder/epoch-NNNN.npz.

    What the checkpoints took of the training's time is not known: share is None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    kernels = []
    for epoch in epochs:
        begun = time.perf_counter()
        model = run.model(epoch if run.points else None)
        found = probe.measured(model, eps, norm, METRICS, check=not rows)
        own = {kind: kernel for kind, (_, kernel) in found.items()}
        row: dict[str, Any] = {"epoch": float(epoch), "share": None}
        for kind, (values, _) in found.items():
            row |= {f"{kind}_{name}": value for name, value in values.items()}
        row["clean_adversarial_distance"] = metrics.kernel_distance(
            own["clean"], own["adversarial"]
        )
        row["seconds"] = time.perf_counter() - begun
        arrays: dict[str, Any] = {kind: kernel.numpy() for kind, kernel in own.items()}
        write_atomic(folder / f"epoch-{epoch:04d}.npz", partial(np.savez, **arrays))
        rows.append(row)
        kernels.append(own)
    return Trace(rows, kernels)


def row_of(
    trace: Trace, number: int, reference: int, base: Mapping[str, Tensor] | None
) -> dict[str, Any]:
    """The measures of record `number`, from record `reference`; `base` are the first method's kernels of that epoch."""
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
        found[f"{kind}_to_end"] = metrics.kernel_distance(now, end)
        moved = not torch.equal(start, end)
        radius, angle = metrics.polar(now, start, end if moved else None)
        found[f"{kind}_radius"], found[f"{kind}_angle"] = radius if moved else None, angle
    found["specialization_drop"] = found["clean_specialization"] - found["adversarial_specialization"]  # fmt: skip
    found["clean_adversarial_distance"] = row["clean_adversarial_distance"]
    for kind in KINDS:
        found[f"{kind}_between"] = (
            None if base is None else metrics.kernel_distance(base[kind], kernels[number][kind])
        )
    return found | {name: row[name] for name in ("seconds", "share")}
