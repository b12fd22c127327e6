"""The metrics of a kernel that are one number, by name."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from advfast.kernels.pgd.api import nearest

from . import metrics
from .metrics import Kernel

NAMES = (
    "trace",
    "top_share",
    "effective_rank",
    "participation_ratio",
    "top_mass",
    "alignment",
    "jacobian_alignment",
    "specialization",
)
TOP = 10
"""Eigenvalues in "top_mass", or as many as there are."""
_OF_OUTPUTS = ("jacobian_alignment", "specialization")
_OF_LABELS = ("alignment", *_OF_OUTPUTS)


def summary(
    kernel: Kernel,
    y: Tensor | None = None,
    names: Iterable[str] | None = None,
    of: str = "trace",
    *,
    eigenvalues: Tensor | None = None,
) -> dict[str, float]:
    """Several metrics at once, with one eigen-decomposition.

    Args:
        kernel: [N, N], [N, N, R, R] or a result of `advfast.ntk.ntk`.
        y: classes int [N], for those of the labels.
        names: of `advfast.ntk.metrics`, in the order wanted: trace, top_share, effective_rank, participation_ratio,
            top_mass (of the 10 largest), alignment (the centred one), jacobian_alignment, specialization. None: all
            that this kernel and y allow.
        of: "trace" or "full", for the first five; the others say for themselves of which kernel they are.
        eigenvalues: `metrics.spectrum(kernel, of)`, where that is there already.

    Raises:
        TypeError, ValueError: as the metrics do; an unknown name; labels are missing.
    """
    metrics.check_of(of)
    theta = metrics.checked(kernel)
    if names is None:
        names = allowed(theta.shape[2], y)
    names = check_names(names, y)
    found: dict[str, float] = {}
    k = metrics.one_matrix(theta, of)
    values = eigenvalues
    if values is None and {"top_share", "effective_rank", "top_mass"} & set(names):
        values = metrics.spectrum(k)
    for name in names:
        if name in _OF_LABELS:
            assert y is not None  # check_names
            found[name] = _of_labels(name, theta, y)
        elif values is not None and name in ("top_share", "effective_rank", "top_mass"):
            found[name] = of_spectrum(name, values)
        else:
            found[name] = getattr(metrics, name)(k)
    return found


def _of_labels(name: str, theta: Tensor, y: Tensor) -> float:
    if name == "specialization":
        return metrics.specialization_from(theta, y).value
    return metrics.alignment_of(theta, y, "kta" if name == "alignment" else "jacobian")


def of_spectrum(name: str, values: Tensor) -> float:
    """top_share, effective_rank or top_mass, from all eigenvalues [M], the largest first."""
    if name == "effective_rank":
        return metrics.entropy_rank(values)
    if name == "top_share":
        return float(values[0] / values.sum())
    squares = values.square()
    return float(squares[:TOP].sum() / squares.sum())


def allowed(readouts: int, y: Tensor | None) -> tuple[str, ...]:
    """The names that make sense for R readouts and labels [N] (None: without them).

    Those of the outputs need one readout for each class.
    """
    if y is None:
        return tuple(name for name in NAMES if name not in _OF_LABELS)
    per_class = readouts >= 2 and not y.is_floating_point() and int(y.max()) < readouts
    return NAMES if per_class else tuple(name for name in NAMES if name not in _OF_OUTPUTS)


def check_names(
    names: Iterable[str], y: Tensor | None, known: tuple[str, ...] = NAMES
) -> tuple[str, ...]:
    """
    Raises:
        ValueError: an unknown name, none at all, or one that needs labels where there are none.
    """
    if isinstance(names, str):
        names = (names,)
    chosen = tuple(dict.fromkeys(names))
    for name in chosen:
        if name not in known:
            raise ValueError(
                f"metrics must be of {', '.join(known)}, got {name!r}{nearest(str(name), list(known))}"
            )
        if name in (*_OF_LABELS, "class_block_means") and y is None:
            raise ValueError(f"the metric {name!r} needs the labels y, got none")
    if not chosen:
        raise ValueError("metrics must name at least one")
    return chosen
