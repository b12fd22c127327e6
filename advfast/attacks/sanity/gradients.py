"""Findings about the gradient: none, zero, or one that leads nowhere."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from advfast.attacks.losses import margin, widen
from advfast.kernels import pgd_step_, random_start

from .finding import Finding
from .probe import Gradients, Probe

_LEAST = 8
"""Samples below which a share says nothing."""
_SHARE = 0.7
"""Of the samples on which a step along the gradient must do more than a random one; a coin gives a half."""


def look(
    probe: Probe, x: Tensor, labels: Tensor, *, classes: int, eps: float, norm: str, seed: int
) -> tuple[list[Finding], bool]:
    """
    Args:
        x: [B, ...] images that the model has right, at least one, in its dtype.
        classes: of the model, at least 2.

    Returns:
        (findings, whether a backward pass ran inside the model's forward pass).
    """
    wide = widen(x)
    low, high = (float(value) for value in torch.aminmax(wide))
    bounds = (min(0.0, low), max(1.0, high))  # wider where the images are
    start = random_start(wide, eps=eps, norm=norm, bounds=bounds, seed=seed).to(x.dtype)
    scaled = "dlr" if classes > 2 else "margin"
    here = probe.gradients(x, labels, ("ce", scaled))
    there = probe.gradients(start, labels, ("ce", scaled)) if here.of else here
    found = list(_none(here, there))
    if here.of and there.of:
        found += _zero(here, there, scaled)
        found += _misleading(probe, x, start, labels, here.of[scaled], eps, norm, bounds)
    return found, here.backward or there.backward


def _none(here: Gradients, there: Gradients) -> Iterator[Finding]:
    reason = here.reason or there.reason
    if reason:
        yield Finding(
            "no-gradient",
            f"there is no gradient to follow: {reason}; attacks by gradients measure nothing",
            "look for .detach(), .data, numpy, no_grad or an integer step in the model and wrap that step in "
            "advfast.bpda; Square needs no gradient",
            {"reason": reason},
        )


def _zero_rows(gradients: Gradients, loss: str) -> Tensor:
    return gradients.of[loss].flatten(1).eq(0).all(1)


def _zero(here: Gradients, there: Gradients, scaled: str) -> Iterator[Finding]:
    ce = _zero_rows(here, "ce") & _zero_rows(there, "ce")
    other = _zero_rows(here, scaled) & _zero_rows(there, scaled)
    both, saturated, samples = int((ce & other).sum()), int((ce & ~other).sum()), len(ce)
    values = {"samples": samples, "zero": both, "zero_of_ce_alone": saturated}
    if both:
        yield Finding(
            "zero-gradient",
            f"{both} of {samples} samples have a gradient of exactly 0, at the image and at a random point of the "
            "ball, whatever the loss: attacks by gradients stay where they start, and the robust accuracy is not one",
            "replace the step that has no slope (rounding, threshold, saturation) by advfast.bpda, and run Square",
            {**values, "loss": "all"},
        )
    if saturated:
        yield Finding(
            "zero-gradient",
            f"{saturated} of {samples} samples have a cross-entropy gradient of exactly 0 (the softmax is saturated: "
            f"logits of a small temperature, or very far apart), that of {scaled} is not",
            f"attack with loss={scaled!r} (APGD-DLR, APGD-T), or divide the logits by a number: the predictions stay",
            {**values, "loss": "ce"},
        )


def _misleading(
    probe: Probe,
    x: Tensor,
    start: Tensor,
    labels: Tensor,
    gradient: Tensor,
    eps: float,
    norm: str,
    bounds: tuple[float, float],
) -> Iterator[Finding]:
    """A step of eps along the gradient against a random point of the ball, by what they do to the margin."""
    moving = ~gradient.flatten(1).eq(0).all(1)
    if int(moving.sum()) < _LEAST:
        return
    x, start, labels, gradient = x[moving], start[moving], labels[moving], gradient[moving]
    origin = widen(x)
    step = origin.clone()
    with torch.no_grad():
        pgd_step_(step, widen(gradient), origin, alpha=eps, eps=eps, norm=norm, bounds=bounds)
    before = margin(probe.logits(x), labels)
    along = margin(probe.logits(step.to(x.dtype)), labels) - before
    drawn = margin(probe.logits(start), labels) - before
    counted = (along != 0) | (drawn != 0)
    samples, better = int(counted.sum()), int((along > drawn)[counted].sum())
    if samples < _LEAST or better >= _SHARE * samples:
        return
    yield Finding(
        "misleading-gradient",
        f"a step of eps along the gradient does more than a random one of that size on {better} of {samples} samples "
        "only: the gradient is not that of the function (a stand-in, noise, a shattered surface), or the model has "
        "overfitted to single steps",
        "attack with smaller steps and more of them, with EoT, and with Square, which needs no gradient",
        {
            "samples": samples,
            "better": better,
            "mean_along_gradient": float(along.mean()),
            "mean_random": float(drawn.mean()),
        },
    )
