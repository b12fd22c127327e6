"""The ntk family: products of per-sample Jacobians of one layer, the Jacobian itself never held.

A layer applies its weight [groups, c, T, e] at S positions; position p reads pixels `taps[p]` of its input (-1: zero
padding), which covers convolutions of any rank with any stride, padding, dilation and groups, and linear layers on
tokens (taps None: T = 1, position p reads pixel p). Operands:

* `x` [n, groups, L, e]: the layer's input, L pixels of e channels a group;
* `g` [n, R, groups, S, c]: gradient of readout r with respect to the layer's output, c channels a group;
* `taps` int32 [S, T], values -1 .. L-1.

The kernel of two samples, Theta[i, r, j, r'] = sum_{p,q} (a_ip . a_jq) (g_irp . g_jr'q) with a the patches, is added to
`out` [n1*R1, n2*R2] in one of three orders: `ntk_gram_` of `ntk_rows` (M), `ntk_chain_` (C), `ntk_hadamard_` (G).
`reference.py` is the code of the definition. Source: Novak et al., ICML 2022, section 3, for M and C.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ops import (
    ntk_chain_op,
    ntk_gram_op,
    ntk_hadamard_op,
    ntk_patch_gram_op,
    ntk_rows_op,
)
from .reference import PRECISIONS

_FLOATS = (torch.float32, torch.float64)


def _check_precision(op: str, precision: str, dtype: torch.dtype) -> None:
    if precision not in PRECISIONS:
        raise ValueError(
            f"{op}: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}"
        )
    if (precision == "fp64") != (dtype == torch.float64):
        raise ValueError(f"{op}: precision {precision!r} does not go with {dtype} operands")


def _check_same(op: str, first: tuple[str, Tensor], *others: tuple[str, Tensor]) -> None:
    """One dtype, one device, float32 or float64, contiguous."""
    name, like = first
    for other, t in (first, *others):
        if not isinstance(t, Tensor):
            raise TypeError(f"{op}: {other} must be a tensor, got {type(t).__name__}")
        if t.dtype not in _FLOATS:
            raise TypeError(f"{op}: {other} must be float32 or float64, got {t.dtype}")
        if t.dtype != like.dtype or t.device != like.device:
            raise ValueError(
                f"{op}: {other} must be {like.dtype} on {like.device} like {name}, got {t.dtype} on {t.device}"
            )
        if not t.is_contiguous():
            raise ValueError(
                f"{op}: {other} must be contiguous, got strides {t.stride()} for shape {tuple(t.shape)}; no hidden "
                "copy is made"
            )


def _check_factors(op: str, x: Tensor, g: Tensor, taps: Tensor | None, side: str) -> None:
    xn, gn, tn = f"x{side}", f"g{side}", f"taps{side}"
    if x.dim() != 4:
        raise ValueError(f"{op}: {xn} must be [n, groups, L, e], got shape {tuple(x.shape)}")
    if g.dim() != 5 or g.shape[0] != x.shape[0] or g.shape[2] != x.shape[1]:
        raise ValueError(
            f"{op}: {gn} must be [n={x.shape[0]}, R, groups={x.shape[1]}, S, c], got shape {tuple(g.shape)}"
        )
    if taps is None:
        if g.shape[3] != x.shape[2]:
            raise ValueError(
                f"{op}: without {tn} there is a position a pixel: {gn} must have S={x.shape[2]}, got {g.shape[3]}"
            )
        return
    if taps.dtype != torch.int32 or taps.dim() != 2 or taps.shape[0] != g.shape[3]:
        raise ValueError(
            f"{op}: {tn} must be int32 [S={g.shape[3]}, T], got {taps.dtype} {tuple(taps.shape)}"
        )
    if taps.device != x.device or not taps.is_contiguous():
        raise ValueError(f"{op}: {tn} must be contiguous on {x.device}, got {taps.device}")


def _check_out(op: str, out: Tensor, rows: int, columns: int, like: Tensor, upper: bool) -> None:
    if tuple(out.shape) != (rows, columns) or out.stride(1) != 1 or out.stride(0) < columns:
        raise ValueError(
            f"{op}: out must be [{rows}, {columns}] with rows dense in memory, got shape {tuple(out.shape)} with "
            f"strides {out.stride()}"
        )
    if out.dtype != like.dtype or out.device != like.device:
        raise ValueError(
            f"{op}: out must be {like.dtype} on {like.device}, got {out.dtype} on {out.device}"
        )
    if upper and rows != columns:
        raise ValueError(f"{op}: upper needs a square block, got [{rows}, {columns}]")


def ntk_rows(x: Tensor, g: Tensor, taps: Tensor | None = None, *, impl: str = "auto") -> Tensor:
    """Each sample's and readout's gradient with respect to the layer's weight.

    Args:
        x, g, taps: see the module; float32 or float64, contiguous.
        impl: "auto", "reference", "cpp" (CPU, float32) or "triton" (CUDA, float32).

    Returns:
        [n, R, groups, c, T, e], the dtype and device of x. Rows of `ntk_gram_` are this, flattened from groups on.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit.
        RuntimeError: `impl` cannot run here.
    """
    _check_same("ntk_rows", ("x", x), ("g", g))
    _check_factors("ntk_rows", x, g, taps, "")
    return ntk_rows_op(x, g, taps, impl)


def ntk_patch_gram(
    x1: Tensor,
    x2: Tensor,
    taps1: Tensor | None = None,
    taps2: Tensor | None = None,
    *,
    precision: str = "fp32",
    impl: str = "auto",
) -> Tensor:
    """Inner products of all patches of two sets of samples.

    Args:
        x1: [n1, groups, L1, e]; x2: [n2, groups, L2, e].
        taps1, taps2: int32 [S1, T], [S2, T], or None.
        precision: "fp32", "tf32", "bf16", "bf16x3"; "fp64" for float64 operands.
        impl: as `ntk_chain_`, without "cuda".

    Returns:
        [n1, n2, groups, S1, S2].
    """
    _check_same("ntk_patch_gram", ("x1", x1), ("x2", x2))
    _check_precision("ntk_patch_gram", precision, x1.dtype)
    return ntk_patch_gram_op(x1, x2, taps1, taps2, precision, impl)


def ntk_gram_(
    out: Tensor,
    j1: Tensor,
    j2: Tensor,
    *,
    precision: str = "fp32",
    upper: bool = False,
    impl: str = "auto",
) -> Tensor:
    """out += j1 j2^T (order M).

    Args:
        out: [n1*R1, n2*R2], rows dense; written.
        j1: [n1, R1, K]; j2: [n2, R2, K].
        precision: of the operands; sums are float32 (fp64: float64).
        upper: only pairs of samples i <= j are wanted; what stands below is then unspecified.
        impl: "auto" or "reference" (a matrix product is the library's).

    Returns:
        out.
    """
    _check_same("ntk_gram_", ("j1", j1), ("j2", j2))
    _check_precision("ntk_gram_", precision, j1.dtype)
    if j1.dim() != 3 or j2.dim() != 3 or j1.shape[2] != j2.shape[2]:
        raise ValueError(
            f"ntk_gram_: j1 and j2 must be [n, R, K] with one K, got {tuple(j1.shape)} and {tuple(j2.shape)}"
        )
    _check_out("ntk_gram_", out, j1.shape[:2].numel(), j2.shape[:2].numel(), j1, upper)
    ntk_gram_op(out, j1, j2, precision, upper, impl)
    return out


def _pair(name, op, out, x1, g1, x2, g2, taps1, taps2, precision, upper, impl) -> Tensor:
    _check_same(name, ("x1", x1), ("g1", g1), ("x2", x2), ("g2", g2))
    _check_precision(name, precision, x1.dtype)
    _check_factors(name, x1, g1, taps1, "1")
    _check_factors(name, x2, g2, taps2, "2")
    t1, t2 = (1 if taps is None else taps.shape[1] for taps in (taps1, taps2))
    if x1.shape[1] != x2.shape[1] or x1.shape[3] != x2.shape[3] or g1.shape[4] != g2.shape[4]:
        raise ValueError(
            f"{name}: both sides must be of one layer, got x1 {tuple(x1.shape)}, g1 {tuple(g1.shape)} and x2 "
            f"{tuple(x2.shape)}, g2 {tuple(g2.shape)}"
        )
    if t1 != t2:
        raise ValueError(f"{name}: taps1 and taps2 must have one T, got {t1} and {t2}")
    _check_out(name, out, g1.shape[:2].numel(), g2.shape[:2].numel(), x1, upper)
    op(out, x1, g1, x2, g2, taps1, taps2, precision, upper, impl)
    return out


def ntk_chain_(
    out: Tensor,
    x1: Tensor,
    g1: Tensor,
    x2: Tensor,
    g2: Tensor,
    taps1: Tensor | None = None,
    taps2: Tensor | None = None,
    *,
    precision: str = "fp32",
    upper: bool = False,
    impl: str = "auto",
) -> Tensor:
    """out += kernel of one layer by the chain (A1 A2^T) G2, then G1^T of it (order C); no intermediate is stored.

    Args:
        out: [n1*R1, n2*R2], rows dense; written.
        x1, g1, taps1 and x2, g2, taps2: see the module; contiguous.
        precision: of the operands of every product, the two intermediate ones included; sums are float32. "fp64" goes
            with float64 operands, the others with float32.
        upper: only pairs of samples i <= j are wanted; what stands below is then unspecified.
        impl: "auto", "reference", "cpp" (CPU, float32, precision fp32), "triton" or "cuda" (CUDA, float32).

    Returns:
        out.

    Raises:
        ValueError, TypeError: shapes, dtypes, devices or precision do not fit.
        RuntimeError: `impl` cannot run here.
    """
    name, op = "ntk_chain_", ntk_chain_op
    return _pair(name, op, out, x1, g1, x2, g2, taps1, taps2, precision, upper, impl)


def ntk_hadamard_(
    out: Tensor,
    x1: Tensor,
    g1: Tensor,
    x2: Tensor,
    g2: Tensor,
    taps1: Tensor | None = None,
    taps2: Tensor | None = None,
    *,
    precision: str = "fp32",
    upper: bool = False,
    impl: str = "auto",
) -> Tensor:
    """out += kernel of one layer by two Gram matrices, multiplied entry by entry and summed (order G).

    The Gram matrix of the gradients [n1*R1*S1, n2*R2*S2] is never stored. Arguments and errors: as `ntk_chain_`.
    """
    name, op = "ntk_hadamard_", ntk_hadamard_op
    return _pair(name, op, out, x1, g1, x2, g2, taps1, taps2, precision, upper, impl)
