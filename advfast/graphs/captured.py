"""A function on static buffers, and the few of them that are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from torch import Tensor

from .cuda import Outputs, Recorder

Inputs = Mapping[str, Tensor | float]


class Captured:
    """``fn(inputs)`` captured once, with the inputs in static buffers; call it with others of the same kind.

    Args:
        fn: a pure function: device work only, writes to none of its inputs, keeps none of its tensors. It is not kept.
        inputs: tensors as they come at every call (shape, strides, dtype, device); floats, which become 0-d tensors and
            may change between calls.
        number: dtype and device of the floats.
        recorder, preserved: see `CudaRecorder.record`.

    Raises:
        CaptureError: see `CudaRecorder.record`.
    """

    def __init__(
        self,
        fn: Callable[[dict[str, Tensor]], Outputs],
        inputs: Inputs,
        *,
        number: Tensor,
        recorder: Recorder,
        preserved: Sequence[Tensor] = (),
    ) -> None:
        self.launches = 0
        self._numbers: dict[str, float] = {}
        self._static: dict[str, Tensor] = {}
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                self._static[name] = value.detach().clone()
            else:
                self._static[name] = torch.full((), value, dtype=number.dtype, device=number.device)
                self._numbers[name] = float(value)
        self._kinds = {name: _kind(value) for name, value in inputs.items()}
        static = dict(self._static)
        self._recording = recorder.record(lambda: fn(static), preserved)

    def __call__(self, inputs: Inputs) -> Outputs:
        """New tensors, by one launch.

        Raises:
            ValueError: an input is not of the kind that was captured.
        """
        kinds = {name: _kind(value) for name, value in inputs.items()}
        if kinds != self._kinds:
            raise ValueError(f"captured for the inputs {self._kinds}, got {kinds}")
        self.launches += 1
        return self._recording.run(lambda: self._fill(inputs))

    def release(self) -> None:
        self._recording.release()
        self._static = {}

    def _fill(self, inputs: Inputs) -> None:
        with torch.no_grad():
            for name, value in inputs.items():
                static = self._static[name]
                # Tensors always: whether one has changed since is not to be known, a kernel may have written it.
                if isinstance(value, Tensor):
                    static.copy_(value, non_blocking=True)
                elif self._numbers[name] != value:
                    static.fill_(value)
                    self._numbers[name] = float(value)


def _kind(value: Tensor | float) -> Hashable:
    """What of an input a graph is bound to."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype, value.device
    return "number"


class GraphCache:
    """The graphs used last, by key; the others are released."""

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._graphs: OrderedDict[Hashable, Captured] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    def get(self, key: Hashable) -> Captured | None:
        if key in self._graphs:
            self._graphs.move_to_end(key)
        return self._graphs.get(key)

    def put(self, key: Hashable, captured: Captured) -> None:
        self._graphs[key] = captured
        while len(self._graphs) > self._size:
            self._graphs.popitem(last=False)[1].release()

    def clear(self) -> None:
        while self._graphs:
            self._graphs.popitem()[1].release()


def plain_attributes(owner: object, *but: str) -> Hashable:
    """The numbers and texts among the attributes of an object, for the key of a graph, which has them for good."""
    return tuple(
        (name, value)
        for name, value in vars(owner).items()
        if isinstance(value, (bool, int, float, str)) and name not in but
    )
