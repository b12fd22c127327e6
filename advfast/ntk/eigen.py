"""The largest eigenvalues of a symmetric operator, in float64 on the side of the samples.

LOBPCG: Knyazev, SIAM J. Sci. Comput. 23, 2001, with the basis made orthonormal as by Hetmaniuk and Lehoucq, J. Comput.
Phys. 218, 2006. Lanczos with thick restarts: Wu and Simon, SIAM J. Matrix Anal. Appl. 22, 2000; Stathopoulos, Saad and
Wu, SIAM J. Sci. Comput. 19, 1998. In both the projected matrix is made from the basis and its stored products (it is
small), so that no recurrence can lose the orthogonality that it counts on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .operator import NTKOperator

Apply = Callable[[Tensor], Tensor]  # [n, k] float64 to [n, k]
Pairs = tuple[Tensor, Tensor, Tensor]  # values descending, vectors, norms of A v - lambda v
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


class NotConverged(RuntimeError):
    """`partial`: what was reached, in the form of the result."""

    def __init__(self, message: str, partial: object):
        super().__init__(message)
        self.partial = partial


def eigsh(
    operator: NTKOperator,
    k: int,
    method: str,
    start: str | Tensor | None,
    tol: float | None,
    maxiter: int,
    seed: int,
) -> Pairs:
    n = operator.shape[0]
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n:
        raise ValueError(f"k must be an integer of 1 .. {n}, the rows of the kernel, got {k!r}")
    if method not in ("lobpcg", "lanczos"):
        raise ValueError(f"method must be lobpcg or lanczos, got {method!r}")
    if maxiter < 1:
        raise ValueError(f"maxiter must be 1 or more, got {maxiter}")
    tol = TOLERANCE[operator.dtype] if tol is None else tol
    if not tol > 0:
        raise ValueError(f"tol must be above 0, got {tol}")
    draw = torch.Generator().manual_seed(seed)
    block = min(n, k + max(2, k // 4))  # a few more than asked, so that the last ones converge too
    first = _start(operator, start, block, draw)
    with operator.repeated():
        if 3 * block >= n:  # the basis would be the whole space
            eye = torch.eye(n, dtype=torch.float64, device=operator.device)
            return _ritz(eye, operator.apply(eye), k)
        if method == "lobpcg":
            return lobpcg(operator.apply, first, k, tol, maxiter, draw)
        return lanczos(operator.apply, first.sum(1), k, tol, maxiter, draw)


def lobpcg(
    apply: Apply, start: Tensor, k: int, tol: float, maxiter: int, draw: torch.Generator
) -> Pairs:
    """From the columns of `start` [n, b], b >= k; an iteration multiplies those that have not converged."""
    x = torch.linalg.qr(_independent(start, start[:, :0], start.shape[1], draw))[0]
    ax = apply(x)
    p = ap = x[:, :0]
    fresh = True  # whether the products in hand are those of the vectors in hand, not combinations
    for _ in range(maxiter):
        values, c = _rayleigh(x, ax)
        x, ax = x @ c, ax @ c
        left = ax - x * values
        errors = left.norm(dim=0)
        limit = tol * values.abs().max()
        if (errors[:k] <= limit).all():
            if fresh:
                return values[:k], x[:, :k], errors[:k]
            x = torch.linalg.qr(x)[0]
            ax, p, ap, fresh = apply(x), x[:, :0], x[:, :0], True
            continue
        known = torch.cat([x, p], 1)
        w = _orthonormal(left[:, errors > limit], known)
        if not w.shape[1]:  # rounding is all that is left of it
            w = _orthonormal(_normal(draw, len(x), 1, x), known)
        basis = torch.cat([known, w], 1)
        products = torch.cat([ax, ap, apply(w)], 1)
        _, c = _rayleigh(basis, products)
        c, b = c[:, : x.shape[1]], x.shape[1]
        # The part of the new vectors that is not of the old ones, orthogonal to them within the basis.
        rest = c.clone()
        rest[:b] = 0
        rest = _orthonormal(rest, c)
        x, ax, p, ap, fresh = basis @ c, products @ c, basis @ rest, products @ rest, False
    raise _failure("LOBPCG", maxiter, errors[:k], limit, (values[:k], x[:, :k], errors[:k]))


def lanczos(
    apply: Apply, start: Tensor, k: int, tol: float, maxiter: int, draw: torch.Generator
) -> Pairs:
    """From the vector `start` [n].

    One vector's Krylov space holds one eigenvector of each eigenvalue only. So what has converged is confirmed by a
    further run from a random vector orthogonal to it, until that finds nothing that belongs among the k.
    """
    n = len(start)
    size = min(n, max(2 * k + 20, 40))
    basis, products = start.new_zeros(n, size), start.new_zeros(n, size)
    v, kept, confirmed = start / start.norm(), 0, None
    for _ in range(maxiter):
        scale = 0.0
        for j in range(kept, size):
            basis[:, j] = v
            products[:, j] = apply(v[:, None])[:, 0]
            scale = max(scale, float(products[:, j].norm()))
            v, norm = _orthogonal(products[:, j], basis[:, : j + 1])
            if norm <= 1e-13 * scale and j + 1 < n:  # the space is used up: go on outside
                v, _ = _orthogonal(_normal(draw, n, 1, start)[:, 0], basis[:, : j + 1])
        values, c = _rayleigh(basis, products)
        left = products @ c[:, :k] - basis @ (c[:, :k] * values[:k])
        errors, limit = left.norm(dim=0), tol * values.abs().max()
        found = values[:k], basis @ c[:, :k], errors
        done = bool((errors <= limit).all())
        if done and (
            size == n or (confirmed is not None and ((found[0] - confirmed).abs() <= limit).all())
        ):
            return found
        confirmed = found[0] if done else None
        kept = k if done else k + (size - k) // 3
        basis[:, :kept], products[:, :kept] = basis @ c[:, :kept], products @ c[:, :kept]
        if done:
            v, _ = _orthogonal(_normal(draw, n, 1, start)[:, 0], basis[:, :kept])
    raise _failure("Lanczos", maxiter, errors, limit, found)


def _start(
    operator: NTKOperator, start: str | Tensor | None, block: int, draw: torch.Generator
) -> Tensor:
    n = operator.shape[0]
    like = torch.empty(0, dtype=torch.float64, device=operator.device)
    if isinstance(start, Tensor):
        if start.dim() != 2 or len(start) != n or not start.shape[1]:
            raise ValueError(f"start must have shape [{n}, m], got {tuple(start.shape)}")
        if not start.isfinite().all():
            raise ValueError("start has entries that are not finite")
        return _independent(start.detach().to(like), like.new_empty(n, 0), block, draw)
    if start not in ("labels", "random", None):
        raise ValueError(f"start must be labels, random or a tensor, got {start!r}")
    labels = operator.labels
    if labels is not None and (labels.dim() != 1 or labels.is_floating_point()):
        labels = None  # targets of another kind
    if start == "labels" and labels is None:
        raise ValueError("start='labels' needs labels: pass y [N], or x with labels")
    noise = _normal(draw, n, block, like)
    if start == "random" or labels is None:
        return noise
    columns = _labels(labels, operator.readouts)[:, :block]
    # The noise keeps the start out of spaces that the kernel maps into themselves.
    noise[:, : columns.shape[1]] = columns + 1e-3 * noise[:, : columns.shape[1]] / n**0.5
    return noise


def _labels(labels: Tensor, r: int) -> Tensor:
    """Unit vectors [N R, m]: each class against the rest in its own readout, then the constant of each readout, then
    each class in the other readouts."""
    classes, which = labels.unique(return_inverse=True)
    member = torch.nn.functional.one_hot(which, len(classes)).double()
    member = member - member.mean(0)
    readouts = torch.eye(r, dtype=torch.float64, device=labels.device)
    count = len(classes)
    order = sorted(
        ((c, q) for c in range(count) for q in range(r)), key=lambda pair: pair[0] % r != pair[1]
    )
    own = [torch.outer(member[:, c], readouts[q]).flatten() for c, q in order]
    constant = [torch.outer(torch.ones_like(member[:, 0]), e).flatten() for e in readouts]
    columns = torch.stack([*own[: min(count, r)], *constant, *own[min(count, r) :]], 1)
    norms = columns.norm(dim=0)
    return columns[:, norms > 0] / norms[norms > 0]


def _ritz(basis: Tensor, products: Tensor, k: int) -> Pairs:
    values, c = _rayleigh(basis, products)
    x, ax = basis @ c[:, :k], products @ c[:, :k]
    return values[:k], x, (ax - x * values[:k]).norm(dim=0)


def _rayleigh(basis: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of the projected matrix, descending, and its eigenvectors."""
    t = basis.T @ products
    values, c = torch.linalg.eigh((t + t.T) / 2)
    return values.flip(0), c.flip(1)


def _orthogonal(w: Tensor, basis: Tensor) -> tuple[Tensor, float]:
    """w less its part in the basis, as a unit vector; and how long it was."""
    for _ in range(2):
        w = w - basis @ (basis.T @ w)
    norm = float(w.norm())
    return w / norm if norm else w, norm


def _orthonormal(w: Tensor, against: Tensor) -> Tensor:
    """An orthonormal basis of what the columns of w add to `against`; fewer columns where they add less."""
    for _ in range(2):
        w = w - against @ (against.T @ w)
        norms = w.norm(dim=0)
        w = w[:, norms > 0] / norms[norms > 0]
        if not w.shape[1]:
            return w
        u, s, _ = torch.linalg.svd(w, full_matrices=False)
        w = u[:, s > 1e-8 * s[0]]
    return w


def _independent(start: Tensor, against: Tensor, width: int, draw: torch.Generator) -> Tensor:
    """`width` orthonormal columns that span those of start, filled up at random."""
    x = _orthonormal(start, against)[:, :width]
    while x.shape[1] < width:
        more = _normal(draw, len(x), width - x.shape[1], x)
        x = torch.cat([x, _orthonormal(more, x)], 1)
    return x


def _normal(draw: torch.Generator, n: int, k: int, like: Tensor) -> Tensor:
    return torch.randn(n, k, generator=draw, dtype=torch.float64).to(like)


def _failure(
    name: str, maxiter: int, errors: Tensor, limit: Tensor, partial: object
) -> NotConverged:
    return NotConverged(
        f"{name}: {int((errors > limit).sum())} of {len(errors)} eigenvalues have not converged in {maxiter} "
        f"iterations: |Theta v - lambda v| is up to {float(errors.max()):.3g}, wanted {float(limit):.3g}; raise "
        "maxiter or tol, or run the network in float64 (model.double())",
        partial,
    )
