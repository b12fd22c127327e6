"""A callback of `advfast.train` that follows the kernel through training."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from advfast.files import write_atomic, write_csv

from . import metrics as dense
from . import scalars
from .probe import Attack, Probe

if TYPE_CHECKING:
    from advfast.training.callbacks import TrainState

_KINDS = ("clean", "adversarial")


class NTKRecorder:
    """Logs metrics of the kernel of some probe images, clean and adversarial, while a network trains.

    ``train(..., callbacks=[NTKRecorder(x, y)])``. The training is not changed: same weights bit for bit with it and
    without. The network is taken as it trains, in eval mode (running statistics), without averaged weights (EMA). At
    each point the images are attacked anew. Records are made at the beginning, and then at ends of epochs; those at
    other points (`at`) are made within an epoch, whose images_per_second then count them too.

    Each record is a row of `history` and of PATH/ntk.csv, and the kernels behind it (trace kernels, or full ones with
    of="full"; float32) are PATH/step-NNNNNN.npz. A run that is resumed goes on with those.

    Columns: epoch (with fractions), step (of the run); for clean_ and adversarial_ each: the metrics, then distance
    (kernel distance from the first record), velocity (kernel distance from the record before, per epoch), radius
    (|K - K_0|_F; over that of the last row it is that of Tsilivis & Kempe) and angle (radians, between K and K_0);
    clean_adversarial_distance; seconds (what this record took) and share (of the time since training began in this
    process that all its records took). In the first row what compares with an earlier kernel is 0, velocity is nan.

    Args:
        x: probe images [N, ...] in [0, 1], not augmented; `advfast.ntk.balanced_probe` chooses some. N = 100 suits a
            CPU.
        y: their classes int [N].
        every: epochs between records, and the last epoch; not with `at`.
        at: epochs (0, 0.125, 0.5, 1, ...) at which to record instead; each counts as the next whole step.
        attack: "pgd-10" or another name as in `advfast.evaluate`, with the eps and norm of the run; a callable
            (model, images, labels) -> images; None for clean images only.
        readout: of `advfast.ntk.ntk`; "sum" costs a tenth of "full" with ten classes, and has no specialization.
        metrics: names of `advfast.ntk.summary`; None: trace, top_share, effective_rank, alignment, specialization, as
            far as the readout has them.
        of: "trace" or "full", see `advfast.ntk.metrics`.
        path: folder for the records; None: "ntk" in the folder of the run.
        arguments: of `advfast.ntk.ntk`, such as params, precision, max_bytes; `check` is for the first record alone
            unless it is given.

    Raises:
        TypeError, ValueError: bad arguments, here or (what needs the network) when training begins.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        every: int = 1,
        at: Iterable[float] | None = None,
        attack: Attack | None = "pgd-10",
        readout: Any = "full",
        metrics: Iterable[str] | None = None,
        of: str = "trace",
        path: str | Path | None = None,
        **arguments: Any,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be an integer >= 1, got {every!r}")
        self.at = None if at is None else sorted({float(epoch) for epoch in at})
        if self.at is not None and (
            not self.at or self.at[0] < 0 or not math.isfinite(self.at[-1])
        ):
            raise ValueError(f"at must be epochs, each 0 or more, got {self.at}")
        dense.check_of(of)
        self.probe = Probe(x, y, attack=attack, readout=readout, **arguments)
        self.every, self.of = every, of
        self.metrics = None if metrics is None else scalars.check_names(metrics, y)
        self.path = None if path is None else Path(path)
        self.history: list[dict[str, float]] = []
        """A row a record."""

    def on_train_begin(self, state: TrainState) -> None:
        self._begun, self._spent = time.perf_counter(), 0.0
        self._folder = self.path or state.folder / "ntk"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._steps = self._planned(state)
        self.history = self._read(state.global_step)
        if not self.history:
            for file in self._folder.glob("step-*.npz"):  # of an earlier run in this folder
                file.unlink()
            self._first: dict[str, Tensor] = {}
            self._last: dict[str, Tensor] = {}
        if state.global_step in self._steps and not self._recorded(state):
            self._record(state)

    def on_step_end(self, state: TrainState) -> None:
        # The end of an epoch waits for on_epoch_end, outside of the time that counts as the epoch's.
        if state.step < state.steps_per_epoch and not state.stop:
            self._at(state)

    def on_epoch_end(self, state: TrainState) -> None:
        self._at(state)

    def on_train_end(self, state: TrainState) -> None:
        self._write()

    def _at(self, state: TrainState) -> None:
        if state.global_step in self._steps and not self._recorded(state):
            self._record(state)

    def _recorded(self, state: TrainState) -> bool:
        return bool(self.history) and self.history[-1]["step"] >= state.global_step

    def _planned(self, state: TrainState) -> set[int]:
        steps, epochs = state.steps_per_epoch, state.epochs
        if self.at is not None:
            return {math.ceil(epoch * steps - 1e-9) for epoch in self.at}
        return {*(epoch * steps for epoch in range(0, epochs, self.every)), epochs * steps}

    def _record(self, state: TrainState) -> None:
        begun = time.perf_counter()
        row = self._row(state)
        now = time.perf_counter()
        self._spent += now - begun
        row |= {"seconds": now - begun, "share": self._spent / (now - self._begun)}
        self.history.append(row)
        self._save_kernels(state.global_step)
        self._write()

    def _row(self, state: TrainState) -> dict[str, float]:
        epoch = state.global_step / state.steps_per_epoch
        row: dict[str, float] = {"epoch": epoch, "step": state.global_step}
        kernels = {}
        eps, norm = float(state.config["eps"]), str(state.config["norm"])
        found = self.probe.measured(
            state.model, eps, norm, self.metrics, self.of, check=not self.history
        )
        for kind, (values, kernel) in found.items():
            # Rounded as it is saved, so that a resumed run compares with the same numbers.
            kernels[kind] = kernel
            values |= self._compared(kind, kernel, epoch)
            row |= {f"{kind}_{name}": value for name, value in values.items()}
        if "adversarial" in kernels:
            row["clean_adversarial_distance"] = dense.kernel_distance(
                kernels["clean"], kernels["adversarial"]
            )
        self._first = self._first or kernels
        self._last = kernels
        return row

    def _compared(self, kind: str, kernel: Tensor, epoch: float) -> dict[str, float]:
        if not self.history:
            return {"distance": 0.0, "velocity": math.nan, "radius": 0.0, "angle": 0.0}
        radius, angle = dense.polar(kernel, self._first[kind])
        return {
            "distance": dense.kernel_distance(kernel, self._first[kind]),
            "velocity": dense.kernel_velocity(
                self._last[kind], kernel, epoch - self.history[-1]["epoch"]
            ),
            "radius": radius,
            "angle": angle,
        }

    def _file(self, step: int) -> Path:
        return self._folder / f"step-{step:06d}.npz"

    def _save_kernels(self, step: int) -> None:
        arrays: dict[str, Any] = {kind: kernel.numpy() for kind, kernel in self._last.items()}
        write_atomic(self._file(step), lambda stream: np.savez(stream, **arrays))

    def _load_kernels(self, step: int) -> dict[str, Tensor]:
        with np.load(self._file(step)) as found:
            return {kind: torch.from_numpy(found[kind]) for kind in _KINDS if kind in found.files}

    def _write(self) -> None:
        if self.history:
            write_csv(self._folder / "ntk.csv", self.history)

    def _read(self, step: int) -> list[dict[str, float]]:
        """The records of the run so far, where it is resumed; what lies beyond its place is made again."""
        path = self._folder / "ntk.csv"
        if not step or not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as stream:
            rows = [
                {name: float(value) for name, value in row.items()}
                for row in csv.DictReader(stream)
            ]
        rows = [row | {"step": int(row["step"])} for row in rows if row["step"] <= step]
        try:
            if rows:
                self._first = self._load_kernels(int(rows[0]["step"]))
                self._last = self._load_kernels(int(rows[-1]["step"]))
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{path} holds records whose kernels cannot be read ({error}): put the files back, or remove "
                f"the folder {self._folder} to begin anew"
            ) from error
        return rows
