"""Tensors to pointers: the only caller of `_C` for this family. impl="cpp" on CPU tensors, "cuda" on CUDA tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advfast import _backend

_PRECISIONS = {"fp32": 0, "tf32": 1, "bf16": 2, "bf16x3": 3}


def _core() -> Any:
    core = _backend.native()
    assert core is not None  # resolve_impl has checked
    return core


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _on_device(x: Tensor) -> tuple[str, tuple[int, ...]]:
    """The suffix of the entry point, and its leading arguments: threads, or device and stream."""
    if x.device.type == "cpu":
        return "cpu", (torch.get_num_threads(),)
    index = x.device.index
    # Private, but what Triton and inductor use; read inside the op, or a traced program would keep a stream.
    return "cuda", (index, torch._C._cuda_getCurrentRawStream(index))


def _side(x: Tensor, g: Tensor | None, taps: Tensor | None) -> tuple[int, ...]:
    """(x, g, taps, n, readouts, pixels, positions) of an NtkSide."""
    positions = x.shape[2] if taps is None else taps.shape[0]
    readouts = 1 if g is None else g.shape[1]
    return (
        x.data_ptr(), _address(g), _address(taps), x.shape[0], readouts, x.shape[2], positions,
    )  # fmt: skip


_NO_SIDE = (0, 0, 0, 0, 1, 1, 1)


def _call(
    name: str, out: Tensor, stride: int, left, right, c: int, x: Tensor, taps, upper, precision
) -> None:
    kind, where = _on_device(x)
    layer = (x.shape[1], c, x.shape[3], 1 if taps is None else taps.shape[1])
    getattr(_core(), f"{name}_{kind}")(
        *where, out.data_ptr(), stride, left, right, layer, upper, _PRECISIONS[precision]
    )


def ntk_rows(x: Tensor, g: Tensor, taps: Tensor | None) -> Tensor:
    n, readouts, groups, _, c = g.shape
    count = 1 if taps is None else taps.shape[1]
    out = torch.empty(
        n, readouts, groups, c, count, x.shape[3], dtype=torch.float32, device=x.device
    )
    _call("ntk_rows", out, 0, _side(x, g, taps), _NO_SIDE, c, x, taps, False, "fp32")
    return out


def ntk_patch_gram(
    x1: Tensor, x2: Tensor, taps1: Tensor | None, taps2: Tensor | None, precision: str
) -> Tensor:
    left, right = _side(x1, None, taps1), _side(x2, None, taps2)
    shape = (x1.shape[0], x2.shape[0], x1.shape[1], left[-1], right[-1])
    out = torch.empty(shape, dtype=torch.float32, device=x1.device)
    _call("ntk_patch_gram", out, 0, left, right, 1, x1, taps1, False, precision)
    return out


def _pair(name, out, x1, g1, x2, g2, taps1, taps2, precision, upper) -> None:
    left, right = _side(x1, g1, taps1), _side(x2, g2, taps2)
    _call(name, out, out.stride(0), left, right, g1.shape[4], x1, taps1, upper, precision)


def ntk_chain_(out, x1, g1, x2, g2, taps1, taps2, precision, upper) -> None:
    _pair("ntk_chain", out, x1, g1, x2, g2, taps1, taps2, precision, upper)


def ntk_hadamard_(out, x1, g1, x2, g2, taps1, taps2, precision, upper) -> None:
    _pair("ntk_hadamard", out, x1, g1, x2, g2, taps1, taps2, precision, upper)
