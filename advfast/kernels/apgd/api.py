"""The steps of Auto-PGD: with momentum in linf and l2, sparse in l1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .ops import apgd_l1_step_op, apgd_step_op, l1_box_correction_op

NORMS = ("linf", "l2")


def _check_like(op: str, name: str, t: Tensor, x: Tensor) -> None:
    if t.shape != x.shape or t.dtype != x.dtype or t.device != x.device:
        raise ValueError(
            f"{op}: {name} must be {x.dtype} of shape {tuple(x.shape)} on {x.device} like x, "
            f"got {t.dtype} of shape {tuple(t.shape)} on {t.device}"
        )
    if any(a != b for a, b, n in zip(t.stride(), x.stride(), x.shape, strict=True) if n > 1):
        raise ValueError(
            f"{op}: {name} must have the memory format of x, with strides {x.stride()}, got "
            f"{t.stride()}; no hidden copy is made"
        )


def _check_rows(op: str, name: str, t: Tensor, x: Tensor, dtype: torch.dtype) -> None:
    if t.shape != x.shape[:1] or t.dtype != dtype or t.device != x.device:
        raise ValueError(
            f"{op}: {name} must be {dtype} of shape ({x.shape[0]},) on {x.device}, got "
            f"{t.dtype} of shape {tuple(t.shape)} on {t.device}"
        )


def _dense(x: Tensor) -> bool:
    if x.is_contiguous():
        return True
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.dim() in formats and x.is_contiguous(memory_format=formats[x.dim()])


def _check_x(op: str, x: Tensor) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: x must be float32 or float64, got {x.dtype}")
    if x.dim() == 0 or not _dense(x):
        raise ValueError(
            f"{op}: x must have a batch dimension and be contiguous or channels_last, got shape "
            f"{tuple(x.shape)} with strides {x.stride()}; no hidden copy is made"
        )


def _check_eps(op: str, eps: float) -> None:
    if not 0 <= eps < math.inf:
        raise ValueError(f"{op}: eps must be a finite number >= 0, got {eps}")


def apgd_step_(
    x: Tensor,  # [B, ...]
    x_prev: Tensor,  # [B, ...]
    x0: Tensor,  # [B, ...]
    gradient: Tensor,  # [B, ...]
    step: Tensor,  # [B]
    *,
    momentum: float,
    eps: float,
    norm: str = "linf",
    improved: Tensor | None = None,  # [B]
    best: Tensor | None = None,  # [B, ...]
    best_gradient: Tensor | None = None,  # [B, ...]
    impl: str = "auto",
) -> Tensor:
    """The next iterate of Auto-PGD, written over the one before the present one.

    With P the projection onto the ball around x0 followed by the clamp to [0, 1], a the momentum and d the sign of the
    gradient (linf) or gradient / (||gradient||_2 + 1e-12) (l2):
    ``z = P(x + step * d)``, ``x_prev <- P(x + a * (z - x) + (1 - a) * (x - x_prev))``
    (Croce and Hein, ICML 2020, algorithm 1). linf has the same bits on every implementation, those of the published
    one on a CPU; in l2, "reference" has those bits, and the others take norms in double.

    Args:
        x: present iterates, shape [B, ...], float32 or float64, contiguous or channels_last, inside the box.
        x_prev: iterates before it, like x; overwritten. Not read if momentum is 1.
        x0: centres of the balls, like x, inside the box.
        gradient: of the loss with respect to x, like x, finite.
        step: step sizes in pixel units, shape [B], dtype of x.
        momentum: a, between 0 and 1.
        eps: radius in pixel units.
        norm: "linf" or "l2" (in l1 Auto-PGD takes another step).
        improved: bool [B]. Where true, x and gradient are copied into best and best_gradient in the same pass.
        best, best_gradient: like x; given exactly if improved is.
        impl: "auto", "reference", "cpp" (CPU) or "triton" (float32 on CUDA).

    Returns:
        x_prev, which holds the next iterates.

    Raises:
        TypeError, ValueError: what was wrong, expected and got; nothing is written.
        RuntimeError: `impl` cannot run here, with the reason.
    """
    op = "apgd_step_"
    _check_x(op, x)
    given = [t is not None for t in (improved, best, best_gradient)]
    if any(given) and not all(given):
        raise ValueError(f"{op}: improved, best and best_gradient must be given together")
    images = (("x_prev", x_prev), ("x0", x0), ("gradient", gradient), ("best", best))
    for name, t in (*images, ("best_gradient", best_gradient)):
        if t is not None:
            _check_like(op, name, t, x)
    _check_rows(op, "step", step, x, x.dtype)
    if improved is not None:
        _check_rows(op, "improved", improved, x, torch.bool)
    if norm not in NORMS:
        raise ValueError(f"{op}: norm must be one of {', '.join(NORMS)}, got {norm!r}")
    if not 0 <= momentum <= 1:
        raise ValueError(f"{op}: momentum must be between 0 and 1, got {momentum}")
    _check_eps(op, eps)
    apgd_step_op(
        x, x_prev, x0, gradient, step.contiguous(), momentum, eps, norm, improved, best,
        best_gradient, impl,
    )  # fmt: skip
    return x_prev


def l1_box_correction(
    delta: Tensor,  # [B, ...]
    x0: Tensor,  # [B, ...]
    *,
    eps: float,
    impl: str = "auto",
) -> Tensor:
    """What to add to delta so that x0 + delta is projected onto the l1 ball around x0 and the box [0, 1] together.

    The Euclidean projection onto the intersection (Croce and Hein, ICML 2021, proposition 2.1; `project_` goes to the
    ball first and to the box then, which is another point). "reference" has the bits of the published implementation.

    Args:
        delta, x0: shape [B, ...], float32 or float64, of one dtype and memory format; x0 inside the box.
        eps: radius in pixel units.
        impl: "auto", "reference" or "cpp" (CPU).

    Returns:
        A new tensor like delta.

    Raises:
        TypeError, ValueError, RuntimeError: as `apgd_step_`.
    """
    op = "l1_box_correction"
    _check_x(op, delta)
    _check_like(op, "x0", x0, delta)
    _check_eps(op, eps)
    return l1_box_correction_op(delta, x0, eps, impl)


def apgd_l1_step(
    x: Tensor,  # [B, ...]
    x0: Tensor,  # [B, ...]
    gradient: Tensor,  # [B, ...]
    step: Tensor,  # [B]
    rank: Tensor,  # [B]
    *,
    eps: float,
    impl: str = "auto",
) -> Tensor:
    """The next iterate of Auto-PGD in l1 (Croce and Hein, ICML 2021, algorithm 1), inside the ball and the box.

    The pixels whose gradient is at least as large as the rank-th smallest of the sample move by equal amounts, each
    in the direction of its gradient's sign, by `step` in all; then they are
    projected as by `l1_box_correction`.

    Args:
        x, x0, gradient: as for `apgd_step_`.
        step: l1 length of the move in pixel units, shape [B], dtype of x.
        rank: int64, shape [B], 0 .. D-1: 0 moves all pixels that have a gradient.
        eps, impl: as for `l1_box_correction`.

    Returns:
        A new tensor like x.

    Raises:
        TypeError, ValueError, RuntimeError: as `apgd_step_`.
    """
    op = "apgd_l1_step"
    _check_x(op, x)
    _check_like(op, "x0", x0, x)
    _check_like(op, "gradient", gradient, x)
    _check_rows(op, "step", step, x, x.dtype)
    _check_rows(op, "rank", rank, x, torch.int64)
    _check_eps(op, eps)
    return apgd_l1_step_op(x, x0, gradient, step.contiguous(), rank.contiguous(), eps, impl)
