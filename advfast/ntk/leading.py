"""The largest eigenvalues of a matrix that is only ever multiplied with blocks of vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .metrics import entropy_rank

_SPARE = 8
"""Vectors more than eigenvalues that are wanted: the last ones converge slowest."""
_NEGLIGIBLE = 1e-13


class Leading:
    """Block Lanczos with full reorthogonalisation, started from given vectors and random ones.

    Usage: as long as `block` is not None, `absorb(K @ block)`. Every product counts, as it costs a whole kernel, so all
    earlier blocks are kept ([M, blocks x (k + 8)] numbers, twice).

    Args:
        m: size of the matrix K, symmetric positive semi-definite.
        k: eigenvalues wanted, 1 .. m.
        start: [M, s], directions in which large eigenvalues are expected; None for none.
        tol: a residual |K v - theta v| of so many times the largest eigenvalue is small enough.
        seed: of the random vectors.
    """

    def __init__(
        self, m: int, k: int, start: Tensor | None = None, *, tol: float = 1e-9, seed: int = 0
    ) -> None:
        self.k, self.tol = k, tol
        width = min(m, k + _SPARE)
        generator = torch.Generator().manual_seed(seed)
        random = torch.randn(m, width, dtype=torch.float64, generator=generator)
        if start is not None:
            start = start.double()[:, :width].cpu()
            random = torch.cat([start, random], 1)[:, :width]
        self.block: Tensor | None = torch.linalg.qr(random)[0]
        self._basis: list[Tensor] = []
        self._images: list[Tensor] = []
        self.values = self.residuals = torch.zeros(0, dtype=torch.float64)

    def absorb(self, product: Tensor) -> None:
        """K @ block, float64 [M, b]."""
        assert self.block is not None
        self._basis.append(self.block.to(product.device))
        self._images.append(product)
        q, image = torch.cat(self._basis, 1), torch.cat(self._images, 1)
        small = q.T @ image
        values, vectors = torch.linalg.eigh((small + small.T) / 2)
        values, vectors = values[-self.k :].flip(0), vectors[:, -self.k :].flip(1)
        residual = (image @ vectors - (q @ vectors) * values).norm(dim=0)
        self.values, self.residuals = values.clamp(min=0), residual
        scale = float(values[0])
        self.block = None
        if not self.converged:
            new = product - q @ (q.T @ product)
            left, sizes, _ = torch.linalg.svd(new, full_matrices=False)
            left = left[:, sizes > _NEGLIGIBLE * scale]
            left = left - q @ (q.T @ left)  # once is not enough where little was left
            if left.shape[1]:
                self.block = torch.linalg.qr(left)[0]

    @property
    def converged(self) -> bool:
        return bool(len(self.values)) and float(self.residuals.max()) <= self.tol * float(
            self.values[0]
        )


def entropy_rank_bounds(values: Tensor, trace: float, square: float, m: int) -> tuple[float, float]:
    """Between which the effective rank exp(entropy) of a spectrum lies, of which only the largest values are known.

    Above: what is left of the trace spread evenly over the other m - k eigenvalues. (This holds for Ritz values too,
    whose partial sums are at most those of the eigenvalues.) Below: what is left in as few as possible, none above the
    last one that is known; and the participation ratio, since the entropy is at least that of order 2.

    Args:
        values: [k], the largest eigenvalues, the largest first.
        trace, square: sums of all m eigenvalues and of their squares.
    """
    values = values.double().cpu()
    left = max(trace - float(values.sum()), 0.0)
    others, last = m - len(values), float(values[-1])
    if not others or left <= 1e-12 * trace:
        exact = entropy_rank(values)
        return exact, exact
    spread = values.new_full((others,), left / others)
    high = entropy_rank(torch.cat([values, spread]))
    low = trace**2 / square
    if last * others >= left:
        whole = math.floor(left / last)
        packed = values.new_tensor([last] * whole + [left - whole * last])
        low = max(low, entropy_rank(torch.cat([values, packed.clamp(min=0)])))
    return min(low, high), high
