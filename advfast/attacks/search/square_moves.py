"""One query of the Square attack: the candidate that differs from the best image in a window, for linf, l2 and l1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advfast.kernels import l1_box_correction, square_accept_, square_window

from .square_draws import Drawn, Draws
from .square_starts import stripes, tiles
from .square_windows import pattern

_TINY = 1e-12
_INSIDE = 1 - 1e-6
"""Times eps: the radius of the l1 ball, whose projection rounds."""

Window = tuple[int, int]
"""(height, width)."""


@dataclass
class Moves:
    """Starts, candidates and what becomes of them, all images [n, C, H, W].

    Attributes:
        norm: "linf", "l2" or "l1".
        eps: radius.
        impl: implementation of the linf window.
        projection: implementation of l1's projection.
    """

    norm: str
    eps: float
    impl: str
    projection: str

    def start(self, x0: Tensor, draws: Draws) -> Tensor:
        if self.norm == "linf":
            return stripes(x0, self.eps, draws)
        return self._inside(x0, tiles(x0, self.norm, draws))

    def candidate(self, best: Tensor, x0: Tensor, window: Window, drawn: Drawn) -> Tensor:
        if self.norm == "linf":
            return square_window(
                best, x0, drawn.places, drawn.signs, eps=self.eps, window=window, impl=self.impl
            )
        return self._inside(x0, self._moved(best - x0, window, drawn))

    def accept_(
        self, best: Tensor, candidate: Tensor, improved: Tensor, window: Window, drawn: Drawn
    ) -> None:
        """best <- candidate in the rows that improved."""
        if self.norm == "linf":
            square_accept_(best, candidate, improved, drawn.places, window=window, impl=self.impl)
        else:
            torch.where(improved[:, None, None, None], candidate, best, out=best)

    def _inside(self, x0: Tensor, delta: Tensor) -> Tensor:
        """The point of the ball's surface in this direction, cut to the box; l1: the nearest point of ball and box."""
        if self.norm == "l2":
            return torch.clamp(x0 + delta / (_norm(delta, "l2") + _TINY) * self.eps, 0.0, 1.0)
        return (
            x0 + delta + l1_box_correction(delta, x0, eps=self.eps * _INSIDE, impl=self.projection)
        )

    def _moved(self, delta: Tensor, window: Window, drawn: Drawn) -> Tensor:
        """The perturbation with what is in a second window brought to the first one, and what was left of eps.

        Square Attack, section 3.4 and algorithm 3; for l1 as in the published implementation of AutoAttack.
        """
        assert drawn.others is not None and drawn.turned is not None
        channels = delta.shape[1]
        first, second = (_places(delta, at, window) for at in (drawn.places, drawn.others))
        held = delta[first]
        union = torch.zeros_like(delta)
        union[first] = union[second] = 1.0
        size, both, own = _norm(delta, self.norm), delta * union, _in_window(held, self.norm)
        upright, turned = (pattern(*window, self.norm, t).to(delta) for t in (False, True))
        laid = torch.where(drawn.turned[:, None, None], turned, upright)[:, None]
        new = laid * drawn.signs[:, :, None, None] + held / (_TINY + own)
        new = new / (_TINY + _in_window(new, self.norm))
        spent = _in_window(both, self.norm)
        eps = torch.full_like(size, self.eps)
        if self.norm == "l2":
            left = torch.clamp(eps**2 - size**2, min=0.0)
            new = new * (left / channels + spent**2).sqrt()
        else:
            new = new * (torch.clamp(eps - size, min=0.0) / channels + spent) * channels
        delta[second] = 0.0
        delta[first] = new
        return delta


def _norm(delta: Tensor, norm: str) -> Tensor:
    """[n, 1, 1, 1]."""
    flat = delta.reshape(len(delta), -1)
    size = (flat**2).sum(-1).sqrt() if norm == "l2" else flat.abs().sum(-1)
    return size.view(-1, 1, 1, 1)


def _in_window(values: Tensor, norm: str) -> Tensor:
    """[n, C, 1, 1] norms of each channel."""
    if norm == "l2":
        return (values**2).sum((-2, -1), keepdim=True).sqrt()
    return values.abs().sum((-2, -1), keepdim=True)


def _places(x: Tensor, places: Tensor, window: Window) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The index of each row's window: x[...] is [n, C, height, width]."""
    device = x.device
    rows = torch.arange(len(x), device=device)[:, None, None, None]
    channels = torch.arange(x.shape[1], device=device)[None, :, None, None]
    down = places[:, 0, None, None, None] + torch.arange(window[0], device=device)[:, None]
    across = places[:, 1, None, None, None] + torch.arange(window[1], device=device)
    return rows, channels, down, across
