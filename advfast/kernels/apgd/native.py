"""Tensors to pointers, for impl="cpp"."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advfast import _backend

_DTYPES = {torch.float32: 0, torch.float64: 1}
_NORMS = {"linf": 0, "l2": 1}


def _core() -> Any:
    core = _backend.native()
    assert core is not None  # resolve_impl has checked
    return core


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def apgd_step_(
    x, x_prev, x0, gradient, step, momentum, eps, norm, improved, best, best_gradient
) -> None:
    if not x.numel():
        return
    addresses = (
        _address(t) for t in (x, x_prev, x0, gradient, step, improved, best, best_gradient)
    )
    _core().apgd_step_cpu(
        torch.get_num_threads(), *addresses, x.shape[0], x.shape[1:].numel(), _DTYPES[x.dtype],
        _NORMS[norm], momentum, eps,
    )  # fmt: skip


def _l1(x, x0, gradient, step, rank, eps) -> Tensor:
    out = torch.empty_like(x)
    if x.numel():
        addresses = (_address(t) for t in (x, x0, gradient, step, rank, out))
        _core().apgd_l1_cpu(
            torch.get_num_threads(), *addresses, x.shape[0], x.shape[1:].numel(), _DTYPES[x.dtype],
            eps,
        )  # fmt: skip
    return out


def apgd_l1_step(x, x0, gradient, step, rank, eps) -> Tensor:
    return _l1(x, x0, gradient, step, rank, eps)


def l1_box_correction(delta, x0, eps) -> Tensor:
    return _l1(delta, x0, None, None, None, eps)
