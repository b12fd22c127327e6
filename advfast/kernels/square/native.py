"""Tensors to pointers, for impl="cpp"."""

from __future__ import annotations

import torch
from torch import Tensor

from advfast import _backend


def _run(
    name: str, best: Tensor, other: Tensor, out: Tensor, places: Tensor, signs: Tensor | None,
    improved: Tensor | None, eps: float, height: int, width: int,
) -> None:  # fmt: skip
    core = _backend.native()
    assert core is not None  # resolve_impl has checked
    rows, channels, rows_of_image, columns = best.shape
    nhwc = not best.is_contiguous()
    getattr(core, name)(
        torch.get_num_threads(), best.data_ptr(), other.data_ptr(), out.data_ptr(),
        places.data_ptr(), 0 if signs is None else signs.data_ptr(),
        0 if improved is None else improved.data_ptr(),
        (rows, channels, rows_of_image, columns), (height, width), eps, int(nhwc),
        int(best.dtype == torch.float64),
    )  # fmt: skip


def square_window(
    best: Tensor, x0: Tensor, places: Tensor, signs: Tensor, eps: float, height: int, width: int
) -> Tensor:
    out = torch.empty_like(best)
    _run("square_window_cpu", best, x0, out, places.contiguous(), signs.contiguous(), None, eps,
         height, width)  # fmt: skip
    return out


def square_accept_(
    best: Tensor, candidate: Tensor, improved: Tensor, places: Tensor, height: int, width: int
) -> None:
    _run("square_accept_cpu", best, candidate, best, places.contiguous(), None,
         improved.contiguous(), 0.0, height, width)  # fmt: skip
