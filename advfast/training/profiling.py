"""A profile of a few training steps: Chrome trace, table of the top ops, and where the time goes."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType

from advfast.files import write_atomic

from .callbacks import TrainState

TRACE, TOP = "trace.json", "top.txt"

_NETWORK, _OURS, _REST = "convolutions and matmuls", "advfast's fused ops", "the rest"

# Names of ops and of the kernels of cuDNN, cuBLAS and CUTLASS; in a replayed CUDA graph there are kernels alone.
_MULTIPLIES = re.compile(
    r"conv|gemm|gemv|matmul|xmma|cutlass|nvjet|wgrad|dgrad|fprop|winograd|attention|fmha|linear"
    r"|::(addmm|mm|addbmm|baddbmm|bmm|addmv|mv|dot)\b",
    re.IGNORECASE,
)
# Ops and CUDA kernels carry the namespace, Triton kernels only the name of their function.
_FUSED = re.compile(r"advfast::|^_(step_linf|step_ball|start|activation|hash)(_|$)")

_RANGE = re.compile(r"advfast\.")

_TOP_SHOWN, _TOP_WRITTEN = 10, 60
_WIDTH = 56


@dataclass(frozen=True)
class Row:
    """One op, or on a GPU one kernel: its own time in microseconds, without what it calls."""

    name: str
    calls: int
    microseconds: float


@dataclass(frozen=True)
class Profile:
    """What was found.

    Attributes:
        steps: profiled.
        device: "cuda": rows are GPU kernels; "cpu": rows are ops.
        rows: the longest first.
        wall: microseconds from the first profiled step to the end of the last.
        folder: with trace.json and top.txt.
    """

    steps: int
    device: str
    rows: tuple[Row, ...]
    wall: float
    folder: Path

    @property
    def total(self) -> float:
        """Microseconds in all rows."""
        return sum(row.microseconds for row in self.rows)

    @property
    def shares(self) -> dict[str, float]:
        """Of the total: convolutions and matmuls, advfast's fused ops, the rest."""
        times = dict.fromkeys((_NETWORK, _OURS, _REST), 0.0)
        for row in self.rows:
            times[_kind(row.name)] += row.microseconds
        return {kind: value / (self.total or 1.0) for kind, value in times.items()}

    def __str__(self) -> str:
        what, busy = ("kernel", "GPU busy") if self.device == "cuda" else ("op", "inside ops")
        steps = f"{self.steps} step" + "s" * (self.steps > 1)
        lines = [
            f"profile of {steps}, {self.wall / 1000:.1f} ms, {busy} {self.total / self.wall:.0%} of it",
            f"{what:<{_WIDTH}} {'calls':>7} {'self ms':>9} {'share':>7}",
        ]
        for row in self.rows[:_TOP_SHOWN]:
            name = row.name if len(row.name) <= _WIDTH else row.name[: _WIDTH - 3] + "..."
            lines.append(
                f"{name:<{_WIDTH}} {row.calls:>7} {row.microseconds / 1000:>9.2f} "
                f"{row.microseconds / (self.total or 1.0):>7.1%}"
            )
        lines.append("; ".join(f"{kind} {share:.1%}" for kind, share in self.shares.items()))
        lines.append(f"{self.folder / TRACE} opens in https://ui.perfetto.dev or chrome://tracing")
        return "\n".join(lines)


class Profiler:
    """Records `active` training steps with torch.profiler, after `warmup` others; training then goes on.

    A callback of `advfast.train`; in a loop of one's own, a context whose `step` is called after each step::

        with Profiler("profile") as profiler:
            for images, labels in loader:
                ...
                profiler.step()

    Writes trace.json (Chrome trace) and top.txt (every op by its own time; on a GPU by kernel time), and prints the ten
    longest and the shares of the network's convolutions and matmuls, of advfast's fused ops and of the rest. In a run
    the steps lie in one epoch, so that validation is not among them; where an epoch has too few, fewer are recorded.

    Args:
        folder: to write to; None is "profile" in the folder of the run.
        warmup: steps before, at least 1: the first ones choose algorithms and fill caches.
        active: steps to record.
        shapes: record the shapes of the ops' inputs; makes the trace longer and the ops slower.
        shown: print the summary on standard error.

    Attributes:
        profile: the `Profile`, once the steps are done; None before.

    Raises:
        ValueError: warmup or active below 1.
        RuntimeError: at the start of the run, when another torch profiler is recording.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        warmup: int = 3,
        active: int = 5,
        *,
        shapes: bool = False,
        shown: bool = True,
    ) -> None:
        for name, count in (("warmup", warmup), ("active", active)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {count!r}")
        self.folder = None if folder is None else Path(folder)
        self.warmup, self.active = warmup, active
        self.shapes, self.shown = shapes, shown
        self.profile: Profile | None = None
        self._target = Path("profile")
        self._recorder: Any = None
        self._before, self._wanted = warmup, active
        self._done, self._recorded, self._started = 0, 0, 0.0

    def __enter__(self) -> Profiler:
        self._open(self.folder or Path("profile"))
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._close(failed=kind is not None)

    def step(self) -> None:
        """One step of a loop of one's own is done."""
        self._count()
        if self._done == self.warmup:
            self._start()

    def on_train_begin(self, state: TrainState) -> None:
        self._open(self.folder or state.folder / "profile")
        # A resumed run may begin anywhere.
        left = state.epochs * state.steps_per_epoch - state.global_step
        self._before = min(self.warmup, max(left - 1, 1))
        room = min(state.steps_per_epoch - 1, left - self._before)
        self._wanted = min(self.active, max(room, 1))

    def on_step_end(self, state: TrainState) -> None:
        self._count()
        if self._done >= self._before and state.steps_per_epoch - state.step >= self._wanted:
            self._start()

    def on_epoch_end(self, state: TrainState) -> None:
        # Else a step's end is the better place: saving the epoch would be recorded too.
        if state.steps_per_epoch == 1 and state.epoch < state.epochs and self._done >= self._before:
            self._start()

    def on_train_end(self, state: TrainState) -> None:
        self._close(failed=False)

    def _open(self, folder: Path) -> None:
        if torch.autograd._profiler_enabled():
            raise RuntimeError(
                "another torch profiler is recording already, and torch has one at a time: leave out one of the two"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._target, self.profile = folder, None
        self._done = self._recorded = 0

    def _count(self) -> None:
        self._done += 1
        if self._recorder is not None:
            self._recorded += 1
            if self._recorded == self._wanted:
                self._stop()

    def _start(self) -> None:
        if self._recorder is not None or self.profile is not None:
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
            torch.cuda.synchronize()
        self._recorder = torch.profiler.profile(activities=activities, record_shapes=self.shapes)
        self._recorder.start()
        self._started = time.perf_counter()

    def _stop(self) -> None:
        """Ends the recording and writes it."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        wall = 1e6 * (time.perf_counter() - self._started)
        recorder, self._recorder = self._recorder, None
        recorder.stop()
        averages = recorder.key_averages()
        device = "cuda" if any(event.device_type != DeviceType.CPU for event in averages) else "cpu"
        self.profile = Profile(self._recorded, device, _rows(averages, device), wall, self._target)
        recorder.export_chrome_trace(str(self._target / TRACE))
        order = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
        table = averages.table(sort_by=order, row_limit=_TOP_WRITTEN, max_name_column_width=90)
        text = f"{self.profile}\n\n{table}\n"
        write_atomic(self._target / TOP, lambda stream: stream.write(text.encode()))
        if self.shown:
            print(f"\n{self.profile}", file=sys.stderr, flush=True)

    def _close(self, failed: bool) -> None:
        """Writes what there is, if the steps ended early; after a failure only stops."""
        if self._recorder is not None:
            if failed or self._recorded == 0:
                self._recorder.stop()
                self._recorder = None
            else:
                self._stop()
        if self.profile is None and self.shown and not failed:
            print(
                f"no profile was written: training ended after {self._done} steps, before the one to record",
                file=sys.stderr,
            )


def _kind(name: str) -> str:
    if _MULTIPLIES.search(name):  # first: one of our own ops is a convolution's gradient
        return _NETWORK
    return _OURS if _FUSED.search(name) else _REST


def _rows(averages: Iterable[Any], device: str) -> tuple[Row, ...]:
    """Kernels alone on a GPU: its time would count twice with that of the ops that launched them.

    Named ranges (see graphs/) are in the trace and not here: their own time is Python's, and no op's.
    """
    rows = []
    for event in averages:
        if device == "cuda":
            wanted = event.device_type != DeviceType.CPU and not event.is_user_annotation
            spent = event.self_device_time_total
        else:
            wanted, spent = not _RANGE.match(event.key), event.self_cpu_time_total
        if wanted and spent > 0:
            rows.append(Row(event.key, event.count, spent))
    return tuple(sorted(rows, key=lambda row: -row.microseconds))
