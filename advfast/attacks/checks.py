"""Bad input to an attack: a clear error before work starts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from advfast.kernels.pgd.api import Bounds, nearest

from .state import model_device

SUM_TOLERANCE = 1e-4
"""Of the sum of a row of soft labels: room for float32 rounding over many classes."""


def check_choice(name: str, value: object, valid: Sequence[str]) -> None:
    if value not in valid:
        raise ValueError(
            f"{name} must be one of {', '.join(valid)}, got {value!r}{nearest(str(value), valid)}"
        )


def check_radius(eps: float | Tensor) -> None:
    if not isinstance(eps, Tensor) and not 0 <= eps < math.inf:
        raise ValueError(
            f"eps must be a finite number >= 0 in pixel units (8/255, not 8), got {eps}"
        )


def check_pixels(eps: float, norm: str) -> None:
    """For radii that people type: one of linf above 1 is in 255ths."""
    if norm == "linf" and eps > 1:
        raise ValueError(
            f"eps must be at most 1 for linf, in pixel units of [0, 1] (8/255, not 8), got {eps}"
        )


def check_step(alpha: float | Tensor) -> None:
    if not isinstance(alpha, Tensor) and not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be a finite number > 0 in pixel units, got {alpha}")


def check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")


def check_images(images: object, model: object) -> Tensor:
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor, got {type(images).__name__}")
    if images.dim() < 2:
        raise ValueError(f"images must have shape [B, ...], got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise TypeError(
            f"images must be a float tensor with pixels in [0, 1], got {images.dtype}"
            + ("; divide by 255 first" if images.dtype == torch.uint8 else "")
        )
    device = model_device(model)
    if device is not None and device != images.device:
        raise ValueError(f"images are on {images.device} but the model is on {device}")
    return images


def check_labels(labels: object, images: Tensor) -> Tensor:
    """Classes as int64 [B]; soft labels, of shape [B, K], as float32 or float64."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor, got {type(labels).__name__}")
    soft = labels.is_floating_point() and labels.dim() == 2
    if not soft and (
        labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
    ):
        raise TypeError(
            "labels must be integer class indices of shape [B] or probabilities of the classes of shape "
            f"[B, K], got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if labels.shape[:1] != images.shape[:1] or not (soft or labels.dim() == 1):
        raise ValueError(
            f"labels must have shape ({images.shape[0]},), one for each image, "
            f"got {tuple(labels.shape)}"
            + ("; one-hot labels must be floats" if labels.dim() == 2 and not soft else "")
        )
    if labels.device != images.device:
        raise ValueError(f"labels are on {labels.device} but images are on {images.device}")
    if not soft:
        return labels.long()
    if labels.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            "soft labels must be float32 or float64 (in 16 bits their sum is not 1), "
            f"got {labels.dtype}"
        )
    return labels.detach()


def classes_of(labels: Tensor) -> Tensor:
    """[B] int64: the classes, of soft labels the most likely one."""
    return labels.argmax(1) if labels.dim() == 2 else labels


def check_soft(loss: object, labels: Tensor) -> None:
    """Soft labels with a loss that is defined for classes alone: an error before work starts."""
    if labels.dim() == 2 and loss in ("margin", "dlr"):
        raise ValueError(
            f"loss={loss!r} compares the logit of one class with the others: it needs labels of shape "
            f"[B], got soft ones of shape {tuple(labels.shape)}; use loss='ce', or labels.argmax(1)"
        )


def check_logits(logits: object, batch: int, least_classes: int, loss: object) -> Tensor:
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the model must return logits of shape [B, K], got {type(logits).__name__}; "
            "wrap it in a function that returns the logits alone"
        )
    if logits.dim() != 2 or logits.shape[0] != batch:
        raise ValueError(
            f"the model must return logits of shape [B, K] = [{batch}, K], got {tuple(logits.shape)}"
        )
    if logits.shape[1] < least_classes:
        raise ValueError(
            f"loss={loss!r} needs at least {least_classes} classes, the model has {logits.shape[1]}"
        )
    return logits


def check_differentiable(logits: Tensor) -> None:
    if not logits.requires_grad:
        raise RuntimeError(
            "the logits do not depend on the images as far as autograd sees: the model detaches its "
            "input, rounds it, or runs under no_grad; there is no gradient to follow"
        )


def _bound(value: object, x: Tensor, default: float) -> Tensor:
    if value is None:
        value = default
    t = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    return t.reshape(1, -1, *[1] * (x.dim() - 2)) if t.dim() == 1 else t


def check_values(x0: Tensor, bounds: Bounds, labels: Tensor | None, classes: int | None) -> None:
    """Images in the box, labels in range: one fused reading of the device."""
    lo, hi = (None, None) if bounds is None else bounds
    low, high = _bound(lo, x0, -math.inf), _bound(hi, x0, math.inf)
    smallest, largest = torch.aminmax(x0)  # NaN if there is one
    if low.numel() == 1 and high.numel() == 1:
        below, above = smallest < low, largest > high
    else:
        below, above = (x0 < low).any(), (x0 > high).any()
    report = [smallest, largest, below, above]
    soft = labels is not None and labels.dim() == 2
    if labels is not None and soft:
        if classes is not None and labels.shape[1] != classes:
            raise ValueError(
                f"soft labels must have shape [B, K] with K = {classes}, the number of logits, "
                f"got {tuple(labels.shape)}"
            )
        report += [labels.amin(), *torch.aminmax(labels.sum(1))]
    elif labels is not None:
        report += list(torch.aminmax(labels))
    values = torch.stack([value.reshape(()).double() for value in report]).tolist()
    if not all(math.isfinite(value) for value in values[:2]):
        raise ValueError("images contain NaN or infinity")
    if values[2] or values[3]:
        raise ValueError(
            f"images must lie in bounds={bounds}, got values from {values[0]:.6g} to "
            f"{values[1]:.6g}; normalisation belongs inside the model"
        )
    if soft:
        _check_probabilities(*values[4:])
    elif labels is not None and classes is not None:
        first, last = int(values[4]), int(values[5])
        if first < 0 or last >= classes:
            raise ValueError(
                f"labels must be 0 .. {classes - 1} for {classes} logits, got {first} .. {last}"
            )


def _check_probabilities(smallest: float, least: float, greatest: float) -> None:
    # Written so that NaN fails.
    if not (smallest >= 0 and least >= 1 - SUM_TOLERANCE and greatest <= 1 + SUM_TOLERANCE):
        raise ValueError(
            "soft labels must be probabilities: none below 0, each row with the sum 1, got values from "
            f"{smallest:.6g} and sums from {least:.6g} to {greatest:.6g}"
        )
