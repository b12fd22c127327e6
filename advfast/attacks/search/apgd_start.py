"""Where APGD starts: on the sphere, in a direction that is drawn for each sample and run."""

from __future__ import annotations

import torch
from torch import Tensor

from advfast.kernels import l1_box_correction, random_start

from .apgd_l1 import over

_TINY = 1e-12


def _flat(v: Tensor) -> Tensor:
    return v.reshape(v.shape[0], v.shape[1:].numel())


class Draws:
    """Directions for the starts.

    Args:
        rng: "philox": of a sample and a run they depend on `seed` alone. "upstream": in the order in which the
            published implementation asks torch's generator of the CPU for them.
    """

    def __init__(self, rng: str, seed: int, norm: str) -> None:
        self._seed, self._norm = seed, norm
        self._generator: torch.Generator | None = None
        if rng == "upstream":
            self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, x0: Tensor, ids: Tensor, run: int) -> Tensor:
        """Like x0: uniform in the cube (linf), normal (l2, l1), of no particular length.

        By Philox, l2 and l1 have the direction of a normal vector, and the length of about one, the square root of the
        number of pixels.
        """
        if self._generator is not None:
            drawn = torch.empty_like(x0)
            if self._norm == "linf":
                return drawn.copy_(2 * torch.rand(x0.shape, generator=self._generator) - 1)
            return drawn.copy_(torch.randn(x0.shape, generator=self._generator))
        cube = self._norm == "linf"
        drawn = random_start(
            torch.zeros_like(x0), eps=1.0, norm="linf" if cube else "l2", bounds=None,
            seed=self._seed, offset=run, sample_ids=ids,
        )  # fmt: skip
        if cube:
            return drawn
        return drawn * over(x0.shape[1:].numel() ** 0.5 / _flat(drawn).norm(dim=1), x0)

    def skip(self, x0: Tensor) -> None:
        """What the published implementation draws at a stage that starts from an earlier one's result, and drops."""
        if self._generator is not None:
            torch.randn(x0.shape, generator=self._generator)


def start(drawn: Tensor, x0: Tensor, eps: float, norm: str, impl: str) -> Tensor:
    """x0 moved along a drawn direction to the sphere (l1: x0 + drawn projected onto ball and box); not yet clamped."""
    if norm == "l1":
        return x0 + drawn + l1_box_correction(drawn, x0, eps=eps, impl=impl)
    flat = _flat(drawn)
    size = flat.abs().amax(1) if norm == "linf" else (flat**2).sum(1).sqrt()
    return x0 + eps * torch.ones_like(x0) * (drawn / (over(size, x0) + _TINY))
