"""A certificate: the computed kernel times a vector, against the same product by autograd alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .engine import Engine, Side

# Past these the two do not differ by rounding. The kernel's own errors are those of the products (docs/ntk.md) and, in
# float32, of the gradients.
_LIMITS = {"fp64": 1e-9, "fp32": 1e-3, "tf32": 1e-2, "bf16x3": 1e-3, "bf16": 3e-2}
_SAMPLES = 8


@dataclass(frozen=True)
class Check:
    """||Theta v - J (J^T v)|| / ||J (J^T v)|| for a random v, on the first samples of both sides."""

    error: float
    samples: tuple[int, int]
    limit: float


def _images(engine: Engine, side: Side, count: int) -> tuple[Tensor, Tensor]:
    """The first images, and their cotangents [n, R, O]."""
    subject = engine.subject
    rows = torch.arange(count)
    x = engine.placed(side.x[:count])
    y = None if side.y is None else side.y[:count].to(subject.device)
    with torch.no_grad():
        return x, side.cotangents(subject.logits(x), y, rows)


def checked(engine: Engine) -> Check:
    """Compares a block of the kernel with J (J^T v), J as autograd has it.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    subject = engine.subject
    piece = next(piece for _, _, piece in engine.pieces(lambda i, j: i == 0 and j == 0))
    n1, n2 = min(_SAMPLES, piece.i.stop), min(_SAMPLES, piece.j.stop)
    r = engine.readouts
    theta = piece.matrix.view(piece.i.stop, r, piece.j.stop, r)[:n1, :, :n2].double()
    generator = torch.Generator().manual_seed(0)
    with subject.running(), torch.enable_grad():
        x1, c1 = _images(engine, engine.left, n1)
        x2, c2 = _images(engine, engine.right, n2)
        trace = engine.left.cotangents.trace
        # With the trace readout the kernel is one number a pair: v is the same for all readouts, one at a time.
        v = torch.randn(n2, 1 if trace else r, generator=generator).to(theta)
        expected = torch.zeros(n1, r, dtype=torch.float64, device=theta.device)
        for k in range(c1.shape[1] if trace else 1):
            one, two = (c1[:, k : k + 1], c2[:, k : k + 1]) if trace else (c1, c2)
            expected += _product(engine, x1, one, x2, two, v)
    got = torch.einsum("irjs,js->ir", theta, v)
    error = float((got - expected).norm() / expected.norm().clamp(min=1e-300))
    limit = _LIMITS[engine.precision]
    if not error <= limit:
        raise RuntimeError(
            f"the kernel of the first {n1} x {n2} samples differs from J (J^T v) by autograd by {error:.2g} relative, "
            f"where rounding explains {limit:.0e}: the network does something that the capture does not see (please "
            "report it); params= can leave the part out, check=False skips this"
        )
    return Check(error, (n1, n2), limit)


def _product(engine: Engine, x1: Tensor, c1: Tensor, x2: Tensor, c2: Tensor, v: Tensor) -> Tensor:
    """J1 (J2^T v) [n1, R]; the second product as the derivative of the first kind with respect to its cotangent."""
    subject = engine.subject
    parameters = list(subject.parameters.values())
    cotangent = torch.einsum("nro,nr->no", c2, v.to(c2))
    direction = torch.autograd.grad(subject.logits(x2), parameters, cotangent, allow_unused=True)
    logits = subject.logits(x1)
    u = torch.zeros_like(logits, requires_grad=True)
    gradients = torch.autograd.grad(logits, parameters, u, create_graph=True, allow_unused=True)
    pairs = [
        (g, d) for g, d in zip(gradients, direction, strict=True) if g is not None and d is not None
    ]
    along = sum((g * d).sum() for g, d in pairs)
    if not isinstance(along, Tensor):
        return torch.zeros(len(x1), c1.shape[1], dtype=torch.float64, device=x1.device)
    (tangent,) = torch.autograd.grad(along, u)
    return torch.einsum("nro,no->nr", c1, tangent).double()
