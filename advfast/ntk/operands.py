"""Vectors that users pass to an operator, checked and in the layout of its products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .operator import NTKOperator


def vector(operator: NTKOperator, v: object, name: str) -> tuple[Tensor, Sequence[int]]:
    """v [N, R] or [N R] as [1, N, R] of the operator's dtype, and the shape it came in."""
    rows = operator.shape[0]
    expected = f"[{operator.n}, {operator.readouts}] or [{rows}]"
    v = _floats(v, name, expected)
    if tuple(v.shape) not in ((operator.n, operator.readouts), (rows,)):
        raise ValueError(f"{name} must have shape {expected}, got {tuple(v.shape)}")
    columns = v.detach().to(operator.device, operator.dtype)
    return columns.reshape(1, operator.n, operator.readouts), v.shape


def matrix(operator: NTKOperator, v: object, name: str) -> Tensor:
    """V [N R, k] as [k, N, R] of the operator's dtype."""
    rows = operator.shape[0]
    expected = f"[{rows}, k] with k of 1 or more"
    v = _floats(v, name, expected)
    if v.dim() != 2 or len(v) != rows or not v.shape[1]:
        raise ValueError(f"{name} must have shape {expected}, got {tuple(v.shape)}")
    columns = v.detach().to(operator.device, operator.dtype)
    return columns.T.reshape(-1, operator.n, operator.readouts)


def right_hand_side(operator: NTKOperator, b: object) -> Tensor:
    """b [N, R], [N R] or [N R, k] as [N R, k] float64."""
    rows = operator.shape[0]
    shapes = (operator.n, operator.readouts), (rows,)
    expected = f"[{operator.n}, {operator.readouts}], [{rows}] or [{rows}, k]"
    b = _floats(b, "b", expected)
    if tuple(b.shape) not in shapes and not (b.dim() == 2 and len(b) == rows and b.shape[1]):
        raise ValueError(f"b must have shape {expected}, got {tuple(b.shape)}")
    b = b.detach().to(operator.device, torch.float64)
    whole = tuple(b.shape) in shapes
    return b.reshape(rows, 1) if whole else b


def weights(operator: NTKOperator, w: Mapping[str, Tensor]) -> list[Tensor]:
    """A tensor for each parameter, by name, as [1, *shape] each."""
    products = operator.products
    if set(w) != set(products.names):
        odd = sorted(set(w) ^ set(products.names))[0]
        raise ValueError(
            f"w must hold a tensor for each of the {len(products.names)} parameters by name, and no other; see {odd!r}"
        )
    out = []
    for name, p in zip(products.names, products.parameters, strict=True):
        if w[name].shape != p.shape:
            raise ValueError(
                f"w[{name!r}] must have shape {tuple(p.shape)}, got {tuple(w[name].shape)}"
            )
        out.append(w[name].detach().to(operator.device, operator.dtype)[None])
    return out


def targets(operator: NTKOperator, y: Tensor | None) -> Tensor:
    """[N, R] in the operator's dtype, of what may be classes [N], or None for the labels."""
    y = operator.labels if y is None else y
    if y is None:
        raise ValueError("there are no labels: pass y, or x with labels")
    if isinstance(y, Tensor) and not y.is_floating_point():
        n, classes = operator.n, operator.cotangents.outputs
        readout = operator.cotangents.readout
        if not (isinstance(readout, str) and readout == "full"):
            raise ValueError(
                f"classes are made one-hot for readout='full' only; pass targets [{n}, {operator.readouts}]"
            )
        if tuple(y.shape) != (n,) or int(y.min()) < 0 or int(y.max()) >= classes:
            raise ValueError(
                f"y must be [{n}] classes 0 .. {classes - 1} or targets [{n}, {operator.readouts}], got {y.dtype} of "
                f"shape {tuple(y.shape)}"
            )
        y = torch.nn.functional.one_hot(y.long(), classes).to(operator.dtype)
    return vector(operator, y, "y")[0][0]


def _floats(v: object, name: str, expected: str) -> Tensor:
    if not isinstance(v, Tensor) or not v.is_floating_point():
        got = v.dtype if isinstance(v, Tensor) else type(v).__name__
        raise TypeError(f"{name} must be a float tensor {expected}, got {got}")
    if not v.isfinite().all():
        raise ValueError(f"{name} has entries that are not finite")
    return v
