"""The nearest point of a hyperplane inside the box of images, a sample at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from advfast.kernels.pgd.api import _check_images, _check_layout, check_norm

from .ops import hyperplane_project_op


def hyperplane_project(
    points: Tensor,  # [B, ...]
    w: Tensor,  # [B, ...]
    b: Tensor,  # [B]
    norm: str = "linf",
    *,
    impl: str = "auto",
) -> Tensor:
    """The smallest displacement in `norm` that brings each point onto {u: <w, u> = b}, inside the box [0, 1].

    Where the hyperplane does not meet the box, the displacement to the corner of the box that is nearest to it. Entries
    at which w is 0 do not move; in l2 and l1 neither do those with |w| <= 1e-8 max|w| of their sample (published as
    |w| <= 1e-8, for gradients of about 1). l1: of equally large entries of w the first ones move first.

    Args:
        points: float32 or float64, in [0, 1], contiguous or channels_last.
        w: like points, finite; the same memory format.
        b: float32 or float64. As <w, points> - b is small near a boundary, give it in float64: it is computed in that.
        norm: "linf", "l2" or "l1".
        impl: "auto", "reference" or "cpp" (CPU).

    Returns:
        A new tensor like points: what is to be added to them.

    Raises:
        TypeError, ValueError: what was wrong, expected and got.
        RuntimeError: `impl` cannot run here.

    Source: Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020,
    equation (6) and appendix A.
    """
    op = "hyperplane_project"
    norm = check_norm(op, norm)
    _check_images(op, "points", points)
    _check_images(op, "w", w, points)
    if points.dtype not in (torch.float32, torch.float64) or w.dtype != points.dtype:
        raise TypeError(
            f"{op}: points and w must both be float32 or float64, got {points.dtype} and {w.dtype}"
        )
    _check_layout(op, "w", w, points)
    if not isinstance(b, Tensor) or b.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: b must be a float32 or float64 tensor")
    if b.shape != points.shape[:1] or b.device != points.device:
        raise ValueError(
            f"{op}: b must have shape ({len(points)},) on {points.device}, got {tuple(b.shape)} on {b.device}"
        )
    return hyperplane_project_op(points, w, b.detach().double().contiguous(), norm, impl)
