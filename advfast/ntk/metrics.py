"""What is read off a kernel: distances, spectrum, alignment with the labels, specialisation of the outputs.

Kernels are symmetric positive semi-definite: [N, N], [N, N, R, R] as `advfast.ntk.ntk` lays it out, or its result.
Where a [N, N, R, R] kernel is to be one matrix, `of` says which: "trace", the trace kernel
K = (1/R) sum_r Theta[:, :, r, r], [N, N] (the mean over the readouts, as neural-tangents has it); or "full", Theta with
row (i, r) and column (j, r'), [N R, N R] (as Tsilivis & Kempe, NeurIPS 2022, have it). A kernel [N, N] is the same
under both. All is computed in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .labels import centred, one_hot, targets


class HasTensor(Protocol):
    """What `advfast.ntk.ntk` returns."""

    @property
    def tensor(self) -> Tensor:
        """[N1, N2, R, R]."""
        ...


Kernel = Tensor | HasTensor

OF = ("trace", "full")
FORMS = ("kta", "jacobian")
_ROUNDING = {torch.float64: 1e-5}
_COARSE = 1e-3
"""Greatest asymmetry and greatest negative eigenvalue, relative to the largest entry and eigenvalue, that pass for
rounding: a float32 kernel may hold products of TF32 or bfloat16, a float64 one what was computed in float32."""
_ROWS = 64


def matrix(kernel: Kernel, of: str = "trace", name: str = "kernel") -> Tensor:
    """The kernel as one symmetric matrix, float64 [M, M]: M = N, or N R with of="full".

    Raises:
        TypeError, ValueError: not a square float kernel, empty, not finite, or asymmetric beyond rounding.
    """
    check_of(of)
    return one_matrix(checked(kernel, name), of)


def checked(kernel: Kernel, name: str = "kernel") -> Tensor:
    """The kernel as [N, N, R, R] in its own dtype, R = 1 for [N, N]."""
    theta = kernel if isinstance(kernel, Tensor) else getattr(kernel, "tensor", None)
    if not isinstance(theta, Tensor) or not theta.is_floating_point():
        got = theta.dtype if isinstance(theta, Tensor) else type(kernel).__name__
        raise TypeError(f"{name} must be a float tensor or a result of advfast.ntk.ntk, got {got}")
    shape = tuple(theta.shape)
    square = len(shape) in (2, 4) and shape[::2] == shape[1::2]
    if not square or not theta.numel():
        raise ValueError(
            f"{name} must be the kernel of one set of samples with itself, [N, N] or [N, N, R, R], got {shape}"
        )
    theta = theta.detach()
    if theta.dim() == 2:
        theta = theta[:, :, None, None]
    low, high = (float(value) for value in torch.aminmax(theta))
    largest = max(-low, high)
    if not math.isfinite(largest):
        raise ValueError(f"{name} holds NaN or infinity")
    asymmetry = 0.0
    for rows in range(0, len(theta), _ROWS):  # piece by piece: the kernel may fill half the memory
        block = theta[rows : rows + _ROWS].double()
        mirrored = theta[:, rows : rows + _ROWS].permute(1, 0, 3, 2)
        asymmetry = max(asymmetry, float((block - mirrored).abs().max()))
    if asymmetry > _ROUNDING.get(theta.dtype, _COARSE) * largest:
        raise ValueError(
            f"{name} must be symmetric, got entries that differ by {asymmetry:.3g} (largest {largest:.3g})"
        )
    return theta


def one_matrix(theta: Tensor, of: str) -> Tensor:
    """[N, N, R, R] -> float64 [N, N] or [N R, N R], exactly symmetric; see `matrix`."""
    n, r = theta.shape[0], theta.shape[2]
    if of == "full":
        k = theta.transpose(1, 2).reshape(n * r, n * r).double()
    else:
        k = theta.diagonal(dim1=2, dim2=3).double().mean(-1)
    return (k + k.T) / 2


def heads(theta: Tensor) -> Tensor:
    """[N, N, R, R] -> the kernel of each readout with itself, float64 [R, N, N]."""
    k = theta.diagonal(dim1=2, dim2=3).permute(2, 0, 1).double()
    return (k + k.mT) / 2


def check_of(of: str) -> None:
    if of not in OF:
        raise ValueError(f"of must be one of {', '.join(OF)}, got {of!r}")


def trace(kernel: Kernel, of: str = "trace") -> float:
    """Sum of the eigenvalues: of K = (1/R) sum_r Theta[r, r], or (of="full") of Theta, R times as much."""
    return float(matrix(kernel, of).diagonal().sum())


def spectrum(kernel: Kernel, of: str = "trace") -> Tensor:
    """Eigenvalues, float64 [M], from the largest on; those below zero by rounding are zero.

    `of`: K = (1/R) sum_r Theta[r, r] ("trace") or Theta ("full").

    Raises:
        ValueError: a negative eigenvalue beyond rounding, or none that is positive.
    """
    values = torch.linalg.eigvalsh(matrix(kernel, of)).flip(0)
    largest, smallest = float(values[0]), float(values[-1])
    if largest <= 0 or smallest < -_COARSE * largest:
        raise ValueError(
            f"kernel must be positive semi-definite and not zero, got eigenvalues {smallest:.3g} .. {largest:.3g}"
        )
    return values.clamp(min=0)


def effective_rank(kernel: Kernel, of: str = "trace") -> float:
    """exp(-sum_i p_i ln p_i), p_i = lambda_i / sum(lambda): 1 .. M (Roy & Vetterli, EUSIPCO 2007).

    `of`: K = (1/R) sum_r Theta[r, r] ("trace") or Theta ("full").
    """
    return entropy_rank(spectrum(kernel, of))


def entropy_rank(eigenvalues: Tensor) -> float:
    """`effective_rank` from eigenvalues [M], none negative."""
    p = eigenvalues / eigenvalues.sum()
    return math.exp(float(torch.special.entr(p).sum()))


def participation_ratio(kernel: Kernel, of: str = "trace") -> float:
    """(tr K)^2 / |K|_F^2, another effective rank, 1 .. M, that needs no eigenvalues. `of` as in `effective_rank`."""
    k = matrix(kernel, of)
    return float(k.diagonal().sum() ** 2 / k.square().sum())


def top_share(kernel: Kernel, of: str = "trace") -> float:
    """lambda_1 / tr K. `of` as in `effective_rank`."""
    values = spectrum(kernel, of)
    return float(values[0] / values.sum())


def top_mass(kernel: Kernel, k: int = 10, of: str = "trace") -> float:
    """sum_{i <= k} lambda_i^2 / sum_i lambda_i^2, of squares (Tsilivis & Kempe, NeurIPS 2022).

    `of` as in `effective_rank`.

    Raises:
        ValueError: k is not 1 .. M.
    """
    values = spectrum(kernel, of).square()
    check_k(k, len(values))
    return float(values[:k].sum() / values.sum())


def check_k(k: int, m: int) -> None:
    if not 1 <= k <= m:
        raise ValueError(f"k must be 1 .. {m} for a kernel with {m} eigenvalues, got {k}")


def kernel_distance(kernel: Kernel, other: Kernel, of: str = "trace") -> float:
    """1 - <K, K'>_F / (|K|_F |K'|_F): 0 .. 1, 0 for kernels that differ by a factor (Fort et al., NeurIPS 2020).

    `of`: both as K = (1/R) sum_r Theta[r, r] ("trace") or as Theta ("full").

    Raises:
        ValueError: kernels of different shapes, or one that is zero.
    """
    a, b = _pair(kernel, other, of)
    return 1 - cosine(float((a * b).sum()), float(a.square().sum()), float(b.square().sum()))


def kernel_velocity(kernel: Kernel, later: Kernel, dt: float, of: str = "trace") -> float:
    """kernel_distance(kernel, later) / dt, of kernels `dt` > 0 apart in training (Fort et al., NeurIPS 2020)."""
    if not dt > 0:
        raise ValueError(f"dt must be above 0, got {dt!r}")
    return kernel_distance(kernel, later, of) / dt


def cosine(inner: float, square: float, other_square: float) -> float:
    """Of the angle between two kernels, from their inner product and squared norms."""
    if square <= 0 or other_square <= 0:
        raise ValueError(
            "a kernel that is zero has no direction, and so no distance to another one"
        )
    return max(-1.0, min(1.0, inner / math.sqrt(square * other_square)))


def polar(
    kernel: Kernel,
    initial: Kernel,
    final: Kernel | None = None,
    *,
    k: int | None = None,
    of: str = "trace",
) -> tuple[float, float]:
    """(radius, angle in radians) of a kernel's way from the initial one (Tsilivis & Kempe, NeurIPS 2022).

    Args:
        final: radius is |K - K_0|_F / |K_T - K_0|_F; None: |K - K_0|_F.
        k: each kernel is first cut to its k largest eigenvalues.
        of: all as K = (1/R) sum_r Theta[r, r] ("trace") or as Theta ("full").
    """
    a, start = _pair(kernel, initial, of)
    end = None if final is None else _pair(kernel, final, of)[1]
    if k is not None:
        a, start = _cut(a, k), _cut(start, k)
        end = None if end is None else _cut(end, k)
    angle = math.acos(
        cosine(float((a * start).sum()), float(a.square().sum()), float(start.square().sum()))
    )
    radius = float((a - start).norm())
    if end is not None:
        whole = float((end - start).norm())
        if not whole:
            raise ValueError(
                "final is the initial kernel, so that there is no way to measure along"
            )
        radius /= whole
    return radius, angle


def _cut(k: Tensor, rank: int) -> Tensor:
    check_k(rank, len(k))
    values, vectors = torch.linalg.eigh(k)
    kept = vectors[:, -rank:]
    return (kept * values[-rank:]) @ kept.T


def _pair(kernel: Kernel, other: Kernel, of: str) -> tuple[Tensor, Tensor]:
    check_of(of)
    a, b = checked(kernel), checked(other, "other")
    if a.shape != b.shape:
        raise ValueError(
            f"kernels must be of the same samples and readouts, got shapes {tuple(a.shape)} and {tuple(b.shape)}"
        )
    return one_matrix(a, of), one_matrix(b, of)


def alignment(kernel: Kernel, y: Tensor, form: str = "kta") -> float:
    """How far the kernel is that of the labels, 0 .. 1.

    Args:
        y: classes int [N], or targets float [N, C].
        form: "kta": <H K H, H Y Y^T H>_F / (their norms), with the one-hot Y [N, C], H = I - 1 1^T / N and
            K = (1/R) sum_r Theta[r, r] (Cortes et al., JMLR 2012). "jacobian": y^T Theta y / (|Theta|_F |y|^2) of the
            full kernel with R = C and y [N C] the one-hot labels, those and the Jacobians behind Theta centred over
            the samples (Baratin et al., AISTATS 2021).

    Raises:
        ValueError: labels of the wrong number; all the same; "jacobian" with R other than C.
    """
    return alignment_of(checked(kernel), y, form)


def alignment_of(theta: Tensor, y: Tensor, form: str = "kta") -> float:
    """`alignment` of what `checked` gave."""
    n, r = theta.shape[0], theta.shape[2]
    if form == "jacobian":
        t = targets(y, n, classes=r, device=theta.device).flatten()
        k = centred(one_matrix(theta, "full"), r)
        return float(t @ k @ t / (_norm(k) * t.square().sum()))
    if form != "kta":
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    t = targets(y, n, device=theta.device)
    k = centred(one_matrix(theta, "trace"))
    return float((t * (k @ t)).sum() / (_norm(k) * (t.T @ t).norm()))


def _norm(k: Tensor) -> Tensor:
    norm = k.norm()
    if not norm:
        raise ValueError("the centred kernel is zero: it does not tell the samples apart")
    return norm


@dataclass(frozen=True)
class Specialization:
    """Attributes:
    matrix: float64 [R, C]: alignment of the kernel of output k with membership in class c; NaN columns for classes
        that no sample is of.
    value: KS, the mean over those classes of matrix[c, c] / mean_k matrix[k, c]: 1 for outputs whose kernels are
        alike, at most C.
    """

    matrix: Tensor
    value: float


def specialization(kernel: Kernel, y: Tensor) -> Specialization:
    """Whether each output's own kernel prefers its own class (Shan & Bordelon, 2021).

    matrix[k, c] = A(Theta[:, :, k, k], y_c y_c^T): A is the centred alignment ("kta"), y_c [N] the members of class c.

    Args:
        kernel: [N, N, R, R] with R >= 2, readout="full".
        y: classes int [N], 0 .. R-1.

    Raises:
        ValueError: R below 2, labels of other classes, fewer than two classes.
    """
    return specialization_from(checked(kernel), y)


def specialization_from(theta: Tensor, y: Tensor) -> Specialization:
    """`specialization` of what `checked` gave."""
    n, r = theta.shape[0], theta.shape[2]
    check_heads(r)
    if y.is_floating_point():
        raise ValueError(f"y must be class indices [{n}], got {y.dtype}")
    t = targets(y, n, classes=r, device=theta.device)
    own = centred(heads(theta))
    quadratic = torch.einsum("ic,kic->kc", t, own @ t)
    return specialization_of(quadratic, own.flatten(1).norm(dim=1), t)


def check_heads(r: int) -> None:
    if r < 2:
        raise ValueError(
            f"specialization compares the kernels of several outputs (readout='full'), got {r} readout"
        )


def specialization_of(quadratic: Tensor, norms: Tensor, t: Tensor) -> Specialization:
    """From t_c^T K_k t_c [R, C], |K_k|_F [R] of the centred kernels, and the centred targets t [N, C]."""
    if not bool((norms > 0).all()):
        raise ValueError(
            f"the centred kernel of output {int(norms.argmin())} is zero, so that it is aligned with nothing"
        )
    squares = t.square().sum(0)
    m = quadratic / (norms[:, None] * squares)  # 0/0 for a class that is not there
    own = (m.diagonal() / m.mean(0))[squares > 0]
    return Specialization(m, float(own.mean()))


def class_block_means(kernel: Kernel, y: Tensor) -> Tensor:
    """Mean of K = (1/R) sum_r Theta[r, r] over the pairs of classes, diagonal included: float64 [C, C], C = max(y) + 1.

    NaN for a class that no sample is of.
    """
    k = matrix(kernel)
    if len(y) != len(k):
        raise ValueError(f"y must be class indices [{len(k)}], got shape {tuple(y.shape)}")
    members = one_hot(y, device=k.device)
    return block_means(members.T @ k @ members, members)


def block_means(sums: Tensor, members: Tensor) -> Tensor:
    """From sums over the pairs of classes [C, C] and members [N, C]."""
    counts = members.sum(0)
    return sums / torch.outer(counts, counts)
