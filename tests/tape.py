"""A stand-in for CUDA graphs on the CPU: the operations of one run, done again on the same tensors."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from advfast.graphs import CaptureError, recording
from advfast.graphs.cuda import REHEARSALS

_ATEN = torch.ops.aten
_WAITS = {
    _ATEN._local_scalar_dense, _ATEN.nonzero, _ATEN.masked_select, _ATEN.equal, _ATEN.is_nonzero,
    _ATEN._unique2,
}  # fmt: skip


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _is_view(func) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


class _Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        boolean = func.overloadpacket is _ATEN.index and any(
            t.dtype == torch.bool for t in _tensors(args[1])
        )
        if func.overloadpacket in _WAITS or boolean:
            raise CaptureError(f"{func} waits for the device")
        result = func(*args, **kwargs)
        if not _is_view(func):  # a view shows what its base holds
            self.calls.append((func, args, kwargs, _tensors(result)))
        return result


def _place(tensor):
    # Packed weights of oneDNN have no storage.
    return id(tensor) if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()


def _spoil(tensor):
    with torch.no_grad():
        tensor.fill_(float("nan") if tensor.is_floating_point() else -1)


class Recording:
    """As a graph: no Python of the run is called again, addresses stay, what is not written anew is stale."""

    def __init__(self, calls, outputs):
        self.outputs = outputs
        self.calls = calls
        self.released = False
        made = {id(t) for _, _, _, results in calls for t in results}
        self.reads = {
            id(t): t
            for _, args, kwargs, _ in calls
            for t in _tensors((args, kwargs))
            if id(t) not in made
        }
        # What the run made, and not the weights or buffers that it changed in place.
        outside, inside = set(), set()
        for _, args, kwargs, results in calls:
            outside |= {_place(t) for t in _tensors((args, kwargs))} - inside
            inside |= {_place(t) for t in results} - outside
        for _, _, _, results in calls:
            for result in results:
                if _place(result) in inside and not result.is_mkldnn:
                    _spoil(result)
        for output in outputs.values():
            _spoil(output)

    def run(self, fill):
        assert not self.released
        fill()
        with torch.no_grad():
            for func, args, kwargs, results in self.calls:
                for old, new in zip(results, _tensors(func(*args, **kwargs)), strict=True):
                    if old is not new:
                        old.copy_(new)
        return {name: output.clone() for name, output in self.outputs.items()}

    def release(self):
        self.released = True


class Recorder:
    def __init__(self):
        self.recordings = []
        self.failures = 0

    def record(self, run, preserved=()):
        with recording():
            return self._record(run, preserved)

    def _record(self, run, preserved):
        values = [tensor.clone() for tensor in preserved]
        state = torch.get_rng_state()
        for _ in range(REHEARSALS):
            run()
        torch.set_rng_state(state)
        tape = _Tape()
        try:
            with tape:
                outputs = run()
        except CaptureError:
            self.failures += 1
            raise
        finally:
            # Unlike a CUDA capture this one has done the work.
            torch.set_rng_state(state)
            with torch.no_grad():
                for tensor, value in zip(preserved, values, strict=True):
                    tensor.copy_(value)
        self.recordings.append(Recording(tape.calls, dict(outputs)))
        return self.recordings[-1]
