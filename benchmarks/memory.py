"""What an attack needs in memory: what autograd keeps for it, and the peak of the process or the device."""

from __future__ import annotations

import ctypes
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

_SELF = Path("/proc/self")


def saved_bytes(model: nn.Module, call: Callable[[], object]) -> int:
    """Bytes that autograd keeps for backward passes during the call, parameters not counted."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = t  # the reference keeps the address from being used again
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call()
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def device_peak(call: Callable[[], object]) -> int:
    """Memory of the GPU that the call takes above what was allocated before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def host_peak(prepare: Callable[[], Callable[[], object]], rounds: int = 3) -> int | None:
    """Resident memory that a call takes above what was in use before it: all that torch, its libraries and Python
    touch, the median of a few calls. None where the system cannot say.

    prepare: makes the call of one round; what it takes is not counted.
    """
    found = [_host_peak(prepare()) for _ in range(rounds)]
    known = [peak for peak in found if peak is not None]
    return int(statistics.median(known)) if known else None


def _host_peak(call: Callable[[], object]) -> int | None:
    try:
        # Freed memory that the allocator still holds would hide what the call takes.
        ctypes.CDLL(None).malloc_trim(0)
        (_SELF / "clear_refs").write_text("5")  # the peak is counted from here
        before = _resident("VmRSS")
    except (AttributeError, OSError):  # not Linux with glibc
        return None
    call()
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", (_SELF / "status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
