"""Functions of the spectrum by stochastic Lanczos quadrature.

m Lanczos steps from z give a tridiagonal T whose eigenvalues t and first eigenvector entries u are the Gauss rule of
the spectrum as z sees it: z^T f(Theta) z / |z|^2 ~ sum u^2 f(t), exactly for polynomials of degree 2m - 1 (Golub and
Meurant, "Matrices, Moments and Quadrature with Applications", 2010). Its mean over random z is tr f(Theta) / n (Ubaru,
Chen and Saad, SIAM J. Matrix Anal. Appl. 38, 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .estimators import Estimate, check_samples, jackknife, signs

if TYPE_CHECKING:
    from .operator import NTKOperator

NAMES = ("trace", "frobenius", "logdet", "effective_rank")
Function = str | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Density:
    grid: Tensor  # [g] float64, eigenvalues
    density: Tensor  # [g], integral 1
    stderr: Tensor  # [g], from the spread over the probes
    width: float  # standard deviation of the Gaussian each eigenvalue became


@dataclass(frozen=True)
class Quadrature:
    """Of each probe the nodes and weights [probes, steps], float64; weights sum to 1. `size`: rows of the matrix."""

    nodes: Tensor
    weights: Tensor
    size: int

    def functional(
        self, function: Function | Sequence[str], ridge: float
    ) -> Estimate | dict[str, Estimate]:
        """
        "trace" and "frobenius" norm; "logdet" of Theta + ridge I; "effective_rank" exp(-sum p ln p), p = lambda / trace
        (Roy and Vetterli, EUSIPCO 2007); a callable f: tr f(Theta).
        """
        if isinstance(function, str) or callable(function):
            return self._one(function, ridge)
        return {name: self._one(name, ridge) for name in function}

    def density(self, grid: Tensor | None, width: float | None) -> Density:
        top = float(self.nodes.max())
        if grid is None:
            grid = torch.linspace(0, 1.05 * top, 200, dtype=torch.float64)
        grid = torch.as_tensor(grid).to(self.nodes)
        if grid.dim() != 1 or not len(grid):
            raise ValueError(f"grid must be a tensor [g] of eigenvalues, got {tuple(grid.shape)}")
        width = 0.01 * top if width is None else width
        if not width > 0:
            raise ValueError(f"width must be above 0, got {width}")
        bumps = (grid[:, None, None] - self.nodes) / width
        each = ((-bumps.square() / 2).exp() * self.weights).sum(2) / (
            width * math.sqrt(2 * math.pi)
        )
        return Density(grid, each.mean(1), each.std(1) / each.shape[1] ** 0.5, width)

    def _one(self, function: Function, ridge: float) -> Estimate:
        if callable(function):
            return self._mean(function(self.nodes))
        # Theta has no eigenvalue below 0; a node there is rounding.
        nodes = self.nodes.clamp(min=0)
        if function == "trace":
            return self._mean(nodes)
        if function == "frobenius":
            return jackknife(lambda m: (self.size * m).sqrt(), self._each(nodes.square()))
        if function == "logdet":
            if not (nodes + ridge > 0).all():
                raise ValueError(
                    f"logdet: Theta has eigenvalues of 0 to rounding; pass a ridge above {ridge}"
                )
            return self._mean((nodes + ridge).log())
        if function == "effective_rank":
            moments = torch.stack(
                [self._each(nodes), self._each(torch.special.xlogy(nodes, nodes))], 1
            )
            return jackknife(lambda m: ((self.size * m[0]).log() - m[1] / m[0]).exp(), moments)
        raise ValueError(
            f"function must be one of {', '.join(NAMES)} or a callable, got {function!r}"
        )

    def _each(self, values: Tensor) -> Tensor:
        """Of each probe, [probes]."""
        return (values * self.weights).sum(1)

    def _mean(self, values: Tensor) -> Estimate:
        return jackknife(lambda m: self.size * m, self._each(values))


def run(operator: NTKOperator, probes: int, steps: int, seed: int) -> Quadrature:
    check_samples(probes, "probes")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an integer of 1 or more, got {steps!r}")
    with operator.repeated():
        return lanczos(operator.apply, signs(operator, probes, seed).double(), steps)


def lanczos(apply: Callable[[Tensor], Tensor], z: Tensor, steps: int) -> Quadrature:
    """Of the probes z [probes, n] side by side, each with full reorthogonalisation against its own basis."""
    probes, size = z.shape
    steps = min(steps, size)
    basis = z.new_zeros(steps, probes, size)
    alpha, beta = z.new_zeros(probes, steps), z.new_zeros(probes, steps)
    v = z / z.norm(dim=1, keepdim=True)
    for step in range(steps):
        basis[step] = v
        w = apply(v.T).T
        alpha[:, step] = (v * w).sum(1)
        known = basis[: step + 1]
        for _ in range(2):
            w = w - torch.einsum("spn,sp->pn", known, torch.einsum("spn,pn->sp", known, w))
        norm = w.norm(dim=1)
        # A space that is used up has no further direction: zeros from there on, of weight 0.
        ended = norm <= 1e-12 * alpha.abs().amax(1)
        beta[:, step] = norm.masked_fill(ended, 0)
        v = torch.where(ended[:, None], 0.0, w / norm.clamp(min=1e-300)[:, None])
    off = beta[:, : steps - 1]
    t = torch.diag_embed(alpha) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    nodes, vectors = torch.linalg.eigh(t)
    return Quadrature(nodes, vectors[:, 0].square(), size)
