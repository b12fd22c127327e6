"""Findings about the images, and about what the model does with small changes of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .finding import Finding, Value
from .probe import Probe

_SMALL = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""A change that survives in the dtype and that no network overlooks."""
_SCAN = (1 / 1024, 1 / 510, 1 / 255, 1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
_SHARE = 0.5
_PIXELS = 16
"""How many are changed by a little: few, so that hardly any lies next to a threshold."""


def wide_box(images: Tensor) -> Iterator[Finding]:
    low, high = (float(value) for value in torch.aminmax(images.detach().float()))
    if low >= 0 and high <= 1:
        return
    looks = (
        "pixels from 0 to 255" if high > 16 and low >= 0 else "images normalised outside the model"
    )
    yield Finding(
        "wide-box",
        f"the images range from {low:.4g} to {high:.4g}, not within [0, 1] ({looks}?): eps is in other units than it "
        "says, and a box of [0, 1] cuts the images themselves",
        "give images in [0, 1] and put the normalisation into the model (advfast.models.Normalise)",
        {"least": low, "largest": high},
    )


def quantised(
    probe: Probe, x: Tensor, logits: Tensor, *, eps: float, seed: int
) -> Iterator[Finding]:
    """Tiny changes of a few pixels that change no bit of the logits, where larger ones do."""
    if not float(x.amax() - x.amin()):
        return
    signs, few = _directions(x, seed)
    small = _SMALL.get(x.dtype, 1e-3)
    if _unchanged(probe, x, logits, signs * few, small) < _SHARE:
        return
    # Only now the passes that find out how large a change has to be.
    for size in _SCAN:
        if size > small and _unchanged(probe, x, logits, signs, size) < _SHARE:
            break
    else:
        return  # nothing changes the logits: that is no grid
    values: dict[str, Value] = {"unchanged_by": small, "changed_by": size, "eps": eps}
    within = (
        "no change within eps is seen at all"
        if eps < size
        else "what an attack does is rounded before the model sees it"
    )
    yield Finding(
        "quantised",
        f"changing {_PIXELS} pixels by {small:.2g} leaves all logits of most samples as they are, changing all of "
        f"them by {size:.2g} does not: the model rounds its input or its activations, and {within}; the "
        f"gradient through that is 0 or made up",
        "wrap the rounding in advfast.bpda, use an eps well above its step (also a larger one than asked for, to see "
        "the accuracy fall), and run Square",
        values,
    )


def _directions(x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """(-1 or 1 for each pixel, 1 for a few of each sample and 0 elsewhere), both like x."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, x.shape, generator=generator).to(x) * 2 - 1
    order = torch.rand(len(x), x[0].numel(), generator=generator).argsort(1)
    return signs, (order < _PIXELS).view(x.shape).to(x)


def _unchanged(probe: Probe, x: Tensor, logits: Tensor, signs: Tensor, size: float) -> float:
    """The share of samples whose logits are the same bits after a move along `signs`, within the box."""
    moved = x + size * signs
    low, high = x.amin().clamp(max=0.0), x.amax().clamp(min=1.0)
    moved = torch.where((moved < low) | (moved > high), x - size * signs, moved)
    return float((probe.logits(moved) == logits).all(1).double().mean())
