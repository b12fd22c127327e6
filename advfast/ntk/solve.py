"""(Theta + ridge I) x = b, and prediction by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import operands
from .eigen import NotConverged

if TYPE_CHECKING:
    from .operator import NTKOperator

DENSE_ROWS = 4096
METHODS = ("auto", "cholesky", "cg")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
_RANK = 64
_RESTARTS = 5
_PATIENCE = 100  # iterations without a residual a tenth below the best: rounding is all there is
Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Solution:
    x: Tensor  # float64, in the shape of b
    residual: (
        float  # |b - (Theta + ridge I) x| / |b| by a product of its own, the largest of the columns
    )
    iterations: int  # products of the conjugate gradients; 0 for Cholesky
    method: str  # "cholesky" or "cg"


def solve(
    operator: NTKOperator,
    b: Tensor,
    ridge: float,
    tol: float | None,
    method: str,
    maxiter: int,
    rank: int | None,
    seed: int,
) -> Solution:
    rows = operator.shape[0]
    if not (isinstance(ridge, (int, float)) and 0 <= ridge < float("inf")):
        raise ValueError(f"ridge must be a number of 0 or more, got {ridge!r}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if rank is not None and not 0 <= rank <= rows:
        raise ValueError(f"rank must be 0 .. {rows}, the rows of the kernel, got {rank}")
    right = operands.right_hand_side(operator, b)
    if method == "auto":
        method = "cholesky" if rows <= DENSE_ROWS else "cg"

    def apply(v: Tensor) -> Tensor:
        return operator.apply(v) + ridge * v

    with operator.repeated():
        if method == "cholesky":
            x, iterations = _cholesky(operator.dense().double(), right, ridge), 0
            residual = _residual(apply, right, x)
        else:
            rank = min(rows, _RANK) if rank is None else rank
            precondition = nystrom(operator.apply, rows, rank, ridge, seed, operator.dtype, right)
            tol = TOLERANCE[operator.dtype] if tol is None else tol
            x, residual, iterations = cg(apply, right, precondition, tol, maxiter)
    return Solution(x.reshape(b.shape), residual, iterations, method)


def cg(
    apply: Apply, b: Tensor, precondition: Apply, tol: float, maxiter: int
) -> tuple[Tensor, float, int]:
    """Preconditioned conjugate gradients for the columns of b [n, k] side by side.

    What counts as converged is b - A x by a product of its own; where it has drifted from the recurrence, the
    iteration starts again from x.

    Returns:
        (x, the largest relative residual, iterations)
    """
    x, done, residual = torch.zeros_like(b), 0, 1.0
    size = b.norm(dim=0).clamp(min=1e-300)
    r = b.clone()
    for _ in range(_RESTARTS):
        z = precondition(r)
        p, rz = z, (r * z).sum(0)
        best, since = float("inf"), 0
        while done < maxiter and since < _PATIENCE:
            worst = float((r.norm(dim=0) / size).max())
            if worst <= tol:
                break
            best, since = (worst, 0) if worst < 0.9 * best else (best, since + 1)
            ap = apply(p)
            curvature = (p * ap).sum(0)
            if (curvature < -1e-6 * p.norm(dim=0) * ap.norm(dim=0)).any():
                raise NotConverged(
                    f"conjugate gradients: Theta + ridge I is not positive definite (p^T A p = "
                    f"{float(curvature.min()):.3g}) after {done} iterations; raise the ridge, or run the network in "
                    "float64 (model.double())",
                    x,
                )
            # A column that has converged has nothing left to divide by.
            alpha = torch.where(curvature > 0, rz / curvature.clamp(min=1e-300), 0.0)
            x = x + alpha * p
            r = r - alpha * ap
            z = precondition(r)
            new = (r * z).sum(0)
            p = z + torch.where(rz > 0, new / rz.clamp(min=1e-300), 0.0) * p
            rz, done = new, done + 1
        r = b - apply(x)
        before, residual = residual, float((r.norm(dim=0) / size).max())
        if residual <= tol:
            return x, residual, done
        if done >= maxiter or since >= _PATIENCE or residual > before / 2:
            break
    raise NotConverged(
        f"conjugate gradients: |b - (Theta + ridge I) x| / |b| is {residual:.3g} after {done} iterations, wanted "
        f"{tol:.3g}; raise the ridge, the rank of the preconditioner, maxiter or tol, or run the network in float64 "
        "(model.double())",
        x,
    )


def nystrom(
    apply: Apply, n: int, rank: int, ridge: float, seed: int, dtype: torch.dtype, like: Tensor
) -> Apply:
    """The preconditioner of a randomised Nystrom approximation of Theta of that rank (Frangella, Tropp and Udell, SIAM
    J. Matrix Anal. Appl. 44, 2023, algorithms 2.1 and 5.1). It takes `rank` products, of precision `dtype`."""
    if rank == 0:
        return lambda r: r
    draw = torch.Generator().manual_seed(seed)
    omega = torch.randn(n, rank, generator=draw, dtype=torch.float64).to(like)
    omega = torch.linalg.qr(omega)[0]
    y = apply(omega)
    # The shift that makes the small matrix definite in spite of the products' rounding.
    shift = n**0.5 * torch.finfo(dtype).eps * y.norm()
    for _ in range(10):
        shifted = y + shift * omega
        core = omega.T @ shifted
        factor, info = torch.linalg.cholesky_ex((core + core.T) / 2)
        if info == 0:
            break
        shift = 10 * shift
    else:
        return lambda r: r  # nothing that could be used: without a preconditioner
    root = torch.linalg.solve_triangular(factor, shifted.T, upper=False).T
    u, s, _ = torch.linalg.svd(root, full_matrices=False)
    values = (s.square() - shift).clamp(min=0)
    last = values[-1] + ridge
    if not last > 0:
        return lambda r: r
    gain = last / (values + ridge) - 1
    return lambda r: r + u @ (gain[:, None] * (u.T @ r))


def predict(
    operator: NTKOperator,
    x_test: Tensor,
    alpha: Tensor | None,
    targets: Tensor | None,
    ridge: float,
    tol: float | None,
) -> Tensor:
    readout = operator.cotangents.readout
    if (
        operator.cotangents.needs_labels
        or operator.cotangents.per_sample
        or not isinstance(readout, (str, int, Tensor))
    ):
        raise ValueError(
            "predict needs a readout that is the same combination of logits for every sample ('full', 'sum', a class, "
            f"a matrix [R, O]), got {readout if isinstance(readout, str) else type(readout).__name__}"
        )
    if operator.centre:
        raise ValueError(
            "predict is of the kernel itself: call it on the operator, not on centred()"
        )
    if not isinstance(x_test, Tensor) or x_test.dim() < 1 or not len(x_test):
        got = tuple(x_test.shape) if isinstance(x_test, Tensor) else type(x_test).__name__
        raise ValueError(f"x_test must be a tensor [n, ...] of at least one sample, got {got}")
    if (alpha is None) == (targets is None):
        raise ValueError("predict takes either alpha or targets")
    if alpha is None:
        assert targets is not None
        wanted = operands.targets(operator, targets).double() - operator.outputs().double()
        alpha = operator.solve(wanted, ridge=ridge, tol=tol).x
    return operator._linearised(x_test, alpha)


def _cholesky(theta: Tensor, b: Tensor, ridge: float) -> Tensor:
    diagonal = theta.diagonal()
    scale = float(diagonal.abs().max())
    diagonal += ridge
    factor, info = torch.linalg.cholesky_ex(theta)
    if info != 0:
        raise NotConverged(
            f"Theta + {ridge:g} I is not positive definite: Cholesky stopped at row {int(info)} of {len(theta)} (the "
            f"largest diagonal entry is {scale:.3g}); raise the ridge, or run the network in float64 (model.double())",
            None,
        )
    return torch.cholesky_solve(b, factor)


def _residual(apply: Apply, b: Tensor, x: Tensor) -> float:
    return float(((b - apply(x)).norm(dim=0) / b.norm(dim=0).clamp(min=1e-300)).max())
