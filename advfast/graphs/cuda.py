"""Capture and replay of CUDA graphs, and what makes a failed capture harmless."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

Outputs = dict[str, Tensor]

REHEARSALS = 3
"""Runs before a capture: libraries open their handles, autotuners choose, Triton compiles."""

_abandoned: list[object] = []
"""Graphs whose capture failed. Never freed: torch's allocator may go on asking them (pytorch#190308)."""


class CaptureError(RuntimeError):
    """What was run cannot be captured, and why."""


class Recording(Protocol):
    """A captured run."""

    def run(self, fill: Callable[[], None]) -> Outputs:
        """Fills the static buffers, replays, returns new tensors."""

    def release(self) -> None:
        """Gives the memory back; it cannot run any more."""


class Recorder(Protocol):
    """Captures on one device."""

    def record(self, run: Callable[[], Outputs], preserved: Sequence[Tensor] = ()) -> Recording: ...


class CudaRecorder:
    """Captures CUDA graphs of one device into one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self.free = torch.cuda.Event()  # the pool's memory is not in use by a replay
        self.lock = threading.RLock()

    def record(self, run: Callable[[], Outputs], preserved: Sequence[Tensor] = ()) -> Recording:
        """
        Args:
            run: device work only, on tensors that stay where they are.
            preserved: tensors that `run` changes as it should when it is replayed, but not here.

        Raises:
            CaptureError: it waits for the device, or does something else that no graph can hold. What `run` raises by
                itself comes through as it is.
        """
        with self.lock, torch.cuda.device(self._device), recording():
            self._rehearse(run, preserved)
            # A cast that autocast remembers from before would be read by the graph and not be in it.
            torch.clear_autocast_cache()
            try:
                return self._capture(run)
            finally:
                torch.clear_autocast_cache()

    def _rehearse(self, run: Callable[[], Outputs], preserved: Sequence[Tensor]) -> None:
        outer = torch.cuda.current_stream()
        random_state = torch.cuda.get_rng_state()
        values = [tensor.clone() for tensor in preserved]
        self._stream.wait_stream(outer)
        try:
            with torch.cuda.stream(self._stream):
                for _ in range(REHEARSALS - 1):
                    run()
                self._must_not_wait(run)
        finally:
            outer.wait_stream(self._stream)
            torch.cuda.set_rng_state(random_state)
            with torch.no_grad():
                for tensor, value in zip(preserved, values, strict=True):
                    tensor.copy_(value)

    @staticmethod
    def _must_not_wait(run: Callable[[], Outputs]) -> None:
        """Found here a wait costs nothing; found by a capture it leaves torch's allocator and generator half open.

        The mode counts for all threads of the process while this runs.
        """
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        except RuntimeError as error:
            raise CaptureError(_told(error)) from error
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    def _capture(self, run: Callable[[], Outputs]) -> Recording:
        # Not torch.cuda.graph: it empties the allocator's cache first, and leaves its own stream the current one when
        # the capture fails.
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            # thread_local: a thread of a data loader may go on allocating.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                outputs = run()
            except BaseException as error:
                try:
                    graph.capture_end()
                except RuntimeError:
                    self._give_up(graph)
                if isinstance(error, RuntimeError):
                    raise CaptureError(_told(error)) from error
                raise
            try:
                graph.capture_end()
            except RuntimeError as error:
                self._give_up(graph)
                raise CaptureError(_told(error)) from error
        return _CudaRecording(self, graph, outputs)

    def _give_up(self, graph: torch.cuda.CUDAGraph) -> None:
        """After a capture that could not be ended: later ones get another pool."""
        _abandoned.append(graph)
        self._pool = torch.cuda.graph_pool_handle()


class _CudaRecording:
    def __init__(
        self, recorder: CudaRecorder, graph: torch.cuda.CUDAGraph, outputs: Outputs
    ) -> None:
        self._recorder = recorder
        self._graph = graph
        self._outputs = outputs

    def run(self, fill: Callable[[], None]) -> Outputs:
        recorder = self._recorder
        with recorder.lock, torch.cuda.device(recorder._device):
            stream = torch.cuda.current_stream()
            stream.wait_event(recorder.free)  # the last replay may have been on another stream
            fill()
            self._graph.replay()
            results = {name: output.clone() for name, output in self._outputs.items()}
            recorder.free.record(stream)
        return results

    def release(self) -> None:
        with self._recorder.lock:
            self._recorder.free.synchronize()
            self._outputs = {}
            self._graph.reset()


class _Recording(threading.local):
    depth = 0


_recording = _Recording()


@contextmanager
def recording() -> Iterator[None]:
    """Around rehearsals and capture: what runs here on this thread is to be work of the device alone."""
    _recording.depth += 1
    try:
        yield
    finally:
        _recording.depth -= 1


def capturing() -> bool:
    """Whether what runs now goes into a graph, of whoever, or rehearses for it."""
    if _recording.depth:
        return True
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


_recorders: dict[torch.device, CudaRecorder] = {}


def recorder(device: torch.device) -> Recorder | None:
    """What captures on this device; None where there are no graphs."""
    if device.type != "cuda" or torch.version.cuda is None:
        return None
    if device not in _recorders:
        _recorders[device] = CudaRecorder(device)
    return _recorders[device]


def _told(error: BaseException) -> str:
    """An error in one line, with the last place outside torch that it went through."""
    message = (str(error).strip().splitlines() or [type(error).__name__])[0]
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/torch/" not in frame.filename and frame.filename != __file__
    ]
    if not frames:
        return message
    return f"{message} ({frames[-1].filename}:{frames[-1].lineno})"
