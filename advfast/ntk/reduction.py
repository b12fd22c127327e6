"""Metrics of a kernel, or of two, that are summed up while its tiles are computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from . import metrics as dense
from .labels import one_hot, targets
from .leading import Leading, entropy_rank_bounds
from .reducers import Histogram, Inner, Labelled, Moments, Tile, group_means
from .scalars import check_names

NAMES = (
    "trace",
    "norm",
    "participation_ratio",
    "alignment",
    "jacobian_alignment",
    "specialization",
    "class_block_means",
    "top_share",
    "top_mass",
    "effective_rank",
    "distance",
    "radius",
    "angle",
    "histogram",
)
_SPECTRAL = ("top_share", "top_mass", "effective_rank")
_OF_TWO = ("distance", "radius", "angle")

Sweep = Callable[[], Iterable[Tile]]
"""Computes the tiles of one kernel, anew at each call."""


def reduce(
    model: nn.Module,
    x: Tensor,
    *,
    y: Tensor | None = None,
    metrics: Iterable[str] | None = None,
    other: nn.Module | None = None,
    of: str = "trace",
    k: int = 10,
    sweeps: int = 4,
    edges: Tensor | None = None,
    readout: Any = "full",
    **arguments: Any,
) -> dict[str, Any]:
    """Metrics of the kernel Theta(x, x) of a model, without storing it: memory is that of a tile and of a few vectors.

    Args:
        x: samples [N, ...].
        y: classes int [N], for the metrics of the labels and the readouts "margin" and "loss".
        metrics: of "trace", "norm" (Frobenius), "participation_ratio", "alignment", "jacobian_alignment",
            "specialization", "class_block_means", "top_share", "top_mass", "effective_rank", "distance", "radius",
            "angle", "histogram". None: trace, norm, participation_ratio, with y alignment, with `other` distance.
        other: a second model, such as an earlier checkpoint, whose kernel is computed in step: "distance" is the kernel
            distance, "radius" |K - K'|_F, "angle" that between the kernels (radians).
        of: "trace": K = (1/R) sum_r Theta[r, r]; "full": Theta as [N R, N R]. For the metrics that
            `advfast.ntk.metrics` has `of` for, "norm" and "histogram".
        k: eigenvalues that are followed for "top_share", "top_mass" (its k) and "effective_rank".
        sweeps: most times that the whole kernel is computed for these three; one is enough for all others.
        edges: ascending [B + 1] for "histogram" of the entries.
        readout, arguments: of `advfast.ntk.tiles`, such as params, precision, tile, max_bytes.

    Returns:
        A number for each name, with the exceptions: "class_block_means" [C, C]; "histogram" int64 [B + 2], below, in
        and above the edges; "effective_rank" (low, high), between which it lies, the same number where k eigenvalues
        are all. With those of the spectrum come "residual", the largest |K v - theta v| / theta_1 of the k Ritz pairs,
        and "sweeps". The Ritz values are below the eigenvalues by at most about residual^2 / gap; so top_share and
        top_mass are lower bounds, and converged where residual <= 1e-9.

    Raises:
        TypeError, ValueError: as `advfast.ntk.tiles` and the metrics do; what a metric needs is missing.
    """
    from .kernel import tiles

    if not isinstance(x, Tensor) or x.dim() < 2 or not len(x):
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be samples [N, ...], N >= 1, got {got}")
    labels = y if isinstance(readout, str) and readout in ("margin", "loss") else None

    def sweep_of(subject: nn.Module) -> Sweep:
        return lambda: tiles(subject, x, y1=labels, readout=readout, **arguments)

    return reduce_tiles(
        sweep_of(model),
        len(x),
        y=y,
        metrics=metrics,
        other=None if other is None else sweep_of(other),
        of=of,
        k=k,
        sweeps=sweeps,
        edges=edges,
    )


def reduce_tiles(
    sweep: Sweep,
    n: int,
    *,
    y: Tensor | None = None,
    metrics: Iterable[str] | None = None,
    other: Sweep | None = None,
    of: str = "trace",
    k: int = 10,
    sweeps: int = 4,
    edges: Tensor | None = None,
) -> dict[str, Any]:
    """`reduce` for any kernel of n samples that comes in tiles."""
    dense.check_of(of)
    names = _names(metrics, y, other, edges, sweeps)
    stream = iter(sweep())
    first = next(stream)
    r = first.block.shape[1]
    m = n * r if of == "full" else n
    parts = _Parts(names, of, n, r, y, k, edges)
    others = iter(other()) if other is not None else None
    parts.add(first, others)
    for tile in stream:
        parts.add(tile, others)
    if parts.leading is not None:
        parts.absorb()
        done = 1
        while parts.leading.block is not None and done < sweeps:
            parts.moments = Moments(of, parts.leading.block)
            for tile in sweep():
                parts.moments.add(tile)
            parts.absorb()
            done += 1
        parts.sweeps = done
    return parts.results(names, m)


def _names(
    metrics: Iterable[str] | None,
    y: Tensor | None,
    other: Sweep | None,
    edges: Tensor | None,
    sweeps: int,
) -> tuple[str, ...]:
    if metrics is None:
        metrics = ["trace", "norm", "participation_ratio"]
        metrics += ["alignment"] if y is not None else []
        metrics += ["distance"] if other is not None else []
    names = check_names(metrics, y, NAMES)
    for name in names:
        if name in _OF_TWO and other is None:
            raise ValueError(
                f"the metric {name!r} compares two kernels and needs `other`, got none"
            )
        if name == "histogram" and edges is None:
            raise ValueError("the metric 'histogram' needs `edges`, got none")
    if other is not None and not set(_OF_TWO) & set(names):
        raise ValueError(
            f"`other` is for the metrics {', '.join(_OF_TWO)}, none of which was asked for"
        )
    if sweeps < 1:
        raise ValueError(f"sweeps must be 1 or more, got {sweeps}")
    return names


class _Parts:
    """The reducers that the metrics asked for need, each once."""

    def __init__(
        self,
        names: tuple[str, ...],
        of: str,
        n: int,
        r: int,
        y: Tensor | None,
        k: int,
        edges: Tensor | None,
    ) -> None:
        m = n * r if of == "full" else n
        self.leading: Leading | None = None
        self.sweeps = 1
        probe = group_means(n, m // n)[:, :0]
        if set(_SPECTRAL) & set(names):
            dense.check_k(k, m)
            start = None if y is None or y.is_floating_point() else one_hot(y).cpu()
            self.leading = Leading(m, k, start if of == "trace" else None)
            assert self.leading.block is not None
            probe = self.leading.block
        self.moments: Moments = Moments(of, probe)
        self.labelled: dict[str, Labelled] = {}
        if y is not None:
            self._compare_with(y, names, n, r)
        self.inner = Inner(of) if set(_OF_TWO) & set(names) else None
        self.histogram = (
            Histogram(of, edges) if "histogram" in names and edges is not None else None
        )
        self._totals: tuple[float, float] | None = None

    def _compare_with(self, y: Tensor, names: tuple[str, ...], n: int, r: int) -> None:
        if {"alignment", "class_block_means"} & set(names):
            members = one_hot(y) if "class_block_means" in names else None
            self.labelled["trace"] = Labelled("trace", targets(y, n), members)
        if "jacobian_alignment" in names:
            self.labelled["full"] = Labelled("full", targets(y, n, classes=r))
        if "specialization" in names:
            dense.check_heads(r)
            self.labelled["heads"] = Labelled("heads", targets(y, n, classes=r))

    def add(self, tile: Tile, others: Any) -> None:
        self.moments.add(tile)
        for labelled in self.labelled.values():
            labelled.add(tile)
        if self.inner is not None:
            self.inner.add(tile, next(others))
        if self.histogram is not None:
            self.histogram.add(tile)

    def absorb(self) -> None:
        """The product of the sweep that has ended, into the search for the largest eigenvalues."""
        assert self.leading is not None
        self.totals()
        self.leading.absorb(self.moments.product[0])

    def totals(self) -> tuple[float, float]:
        """Trace and squared norm; the same in every sweep."""
        if self._totals is None:
            self._totals = float(self.moments.trace[0]), float(self.moments.square[0])
        return self._totals

    def results(self, names: tuple[str, ...], m: int) -> dict[str, Any]:
        trace, square = self.totals()
        if not math.isfinite(square) or square <= 0:
            what = "is zero" if square == 0 else "holds NaN or infinity"
            raise ValueError(f"the kernel {what}, so that nothing can be read off it")
        found: dict[str, Any] = {}
        for name in names:
            if name == "trace":
                found[name] = trace
            elif name == "norm":
                found[name] = math.sqrt(square)
            elif name == "participation_ratio":
                found[name] = trace**2 / square
            elif name == "specialization":
                found[name] = self.labelled["heads"].specialization().value
            elif name == "class_block_means":
                found[name] = self.labelled["trace"].block_means().cpu()
            elif name == "alignment":
                found[name] = self.labelled["trace"].alignment()
            elif name == "jacobian_alignment":
                found[name] = self.labelled["full"].jacobian_alignment()
            elif self.inner is not None and name in _OF_TWO:
                found[name] = _of_two(name, self.inner)
            elif self.histogram is not None and name == "histogram":
                found[name] = self.histogram.counts
        if self.leading is not None:
            values = self.leading.values
            for name in set(_SPECTRAL) & set(names):
                found[name] = {
                    "top_share": lambda: float(values[0]) / trace,
                    "top_mass": lambda: min(float(values.square().sum()) / square, 1.0),
                    "effective_rank": lambda: entropy_rank_bounds(values, trace, square, m),
                }[name]()
            found["residual"] = float(self.leading.residuals.max() / values[0])
            found["sweeps"] = self.sweeps
        return found


def _of_two(name: str, inner: Inner) -> float:
    product, square, other_square, difference = inner.sums.tolist()
    if name == "radius":
        return math.sqrt(difference)
    cos = dense.cosine(product, square, other_square)
    return 1 - cos if name == "distance" else math.acos(cos)
