"""A query of the linf Square attack in one pass over memory: a window moved, and kept where that was good."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .ops import square_accept_op, square_window_op


def _check_images(op: str, name: str, t: Tensor, best: Tensor) -> None:
    if t.shape != best.shape or t.dtype != best.dtype or t.device != best.device:
        raise ValueError(
            f"{op}: {name} must be {best.dtype} of shape {tuple(best.shape)} on {best.device} like best, got "
            f"{t.dtype} of shape {tuple(t.shape)} on {t.device}"
        )
    if any(a != b for a, b, n in zip(t.stride(), best.stride(), t.shape, strict=True) if n > 1):
        raise ValueError(
            f"{op}: {name} must have the memory format of best, with strides {best.stride()}, got {t.stride()}; no "
            "hidden copy is made"
        )


def _check_rows(op: str, name: str, t: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(t.shape) != shape or t.dtype != dtype:
        raise ValueError(
            f"{op}: {name} must be {dtype} of shape {shape}, got {t.dtype} of shape {tuple(t.shape)}"
        )


def _check(op: str, best: Tensor, places: Tensor, window: tuple[int, int]) -> None:
    if best.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: best must be float32 or float64, got {best.dtype}")
    nhwc = best.dim() == 4 and best.is_contiguous(memory_format=torch.channels_last)
    if best.dim() != 4 or not (best.is_contiguous() or nhwc):
        raise ValueError(
            f"{op}: best must be [n, C, H, W], contiguous or channels_last, got shape {tuple(best.shape)} with strides "
            f"{best.stride()}; no hidden copy is made"
        )
    _check_rows(op, "places", places, (best.shape[0], 2), torch.int64)
    if min(window) < 1 or window[0] > best.shape[2] or window[1] > best.shape[3]:
        raise ValueError(
            f"{op}: window must be 1 to H = {best.shape[2]} rows by 1 to W = {best.shape[3]} columns, got {window}"
        )


def square_window(
    best: Tensor,  # [n, C, H, W]
    x0: Tensor,  # [n, C, H, W]
    places: Tensor,  # [n, 2]
    signs: Tensor,  # [n, C]
    *,
    eps: float,
    window: tuple[int, int],
    impl: str = "auto",
) -> Tensor:
    """Copies of images of which a window has moved by 2 eps, back into the linf ball around x0 and the box [0, 1].

    Bit-equal on every implementation.

    Args:
        best: [n, C, H, W] float32 or float64, contiguous or channels_last; inside the ball and the box already.
        x0: [n, C, H, W] like best, the centres of the balls.
        places: [n, 2] int64, top row and left column of each window; what is outside the image is left out.
        signs: [n, C] in the dtype of best, -1, 0 or 1 for each channel.
        eps: radius in pixel units.
        window: (height, width).
        impl: "auto", "reference", "cpp" (CPU) or "triton" (CUDA, float32).

    Returns:
        A new tensor like best: ``clamp(clamp(best + 2 eps sign, x0 - eps, x0 + eps), 0, 1)`` in the window.

    Raises:
        TypeError, ValueError: what was wrong, expected and got.
        RuntimeError: `impl` cannot run here.

    Source: Andriushchenko, Croce, Flammarion, Hein, ECCV 2020, algorithm 2.
    """
    _check("square_window", best, places, window)
    _check_images("square_window", "x0", x0, best)
    _check_rows("square_window", "signs", signs, tuple(best.shape[:2]), best.dtype)
    if not 0 <= eps < math.inf:
        raise ValueError(f"square_window: eps must be a finite number >= 0, got {eps}")
    return square_window_op(best, x0, places, signs, eps, *window, impl)


def square_accept_(
    best: Tensor,  # [n, C, H, W]
    candidate: Tensor,  # [n, C, H, W]
    improved: Tensor,  # [n]
    places: Tensor,  # [n, 2]
    *,
    window: tuple[int, int],
    impl: str = "auto",
) -> None:
    """best <- candidate in the rows that improved, inside their windows: elsewhere the two are the same.

    Args:
        best: as for `square_window`; written.
        candidate: [n, C, H, W] what `square_window` returned.
        improved: [n] bool.
        places, window, impl: as they were there.

    Raises:
        TypeError, ValueError: what was wrong, expected and got.
        RuntimeError: `impl` cannot run here.
    """
    _check("square_accept_", best, places, window)
    _check_images("square_accept_", "candidate", candidate, best)
    _check_rows("square_accept_", "improved", improved, (best.shape[0],), torch.bool)
    square_accept_op(best, candidate, improved, places, *window, impl)
