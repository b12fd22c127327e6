"""The public functions: `ntk`, `tiles`, `plan`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .check import Check, checked
from .engine import Engine, Piece
from .planner import Plan
from .readouts import Readout
from .store import FileStore, put

Params = str | nn.Parameter | Iterable[str | nn.Parameter] | None


@dataclass(frozen=True)
class NTK:
    """An empirical neural tangent kernel, Theta[i, j, r, r'] = <d f_r(x1_i)/d theta, d f_r'(x2_j)/d theta>.

    The plain inner product: no division by the number of outputs or of parameters.
    """

    values: Tensor = field(repr=False)  # [N1*R, N2*R]
    readouts: int
    symmetric: bool
    plan: Plan = field(repr=False)
    check: Check | None = None
    path: Path | None = None
    parts: dict[str, Tensor] | None = field(default=None, repr=False)

    @property
    def n1(self) -> int:
        return self.values.shape[0] // self.readouts

    @property
    def n2(self) -> int:
        return self.values.shape[1] // self.readouts

    def _view(self, matrix: Tensor) -> Tensor:
        r = self.readouts
        return matrix.view(self.n1, r, self.n2, r).permute(0, 2, 1, 3)

    @property
    def tensor(self) -> Tensor:
        """[N1, N2, R, R], a view."""
        return self._view(self.values)

    def matrix(self) -> Tensor:
        """[N1*R, N2*R]: row i*R + r is readout r of sample i. No copy."""
        return self.values

    @property
    def per_layer(self) -> dict[str, Tensor]:
        """Each layer's part [N1, N2, R, R] by the name of its parameter; they add up to `tensor`.

        Raises:
            ValueError: the kernel was computed without `per_layer=True`.
        """
        if self.parts is None:
            raise ValueError("the layers' parts were not kept: call ntk(..., per_layer=True)")
        return {name: self._view(part) for name, part in self.parts.items()}


class Tile(NamedTuple):
    """A rectangle of a kernel: samples `i` of x1 and `j` of x2; `block` is [ni, R, nj, R]."""

    i: slice
    j: slice
    block: Tensor


def ntk(
    model: nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    y1: Tensor | None = None,
    y2: Tensor | None = None,
    readout: Readout | tuple[Readout, Readout] = "full",
    params: Params = None,
    bn: str = "eval",
    bn_batch: Tensor | None = None,
    method: str | dict[str, str] | Plan = "auto",
    precision: str = "auto",
    tile: int | None = None,
    max_bytes: int | None = None,
    out: str | Path | None = None,
    check: bool = True,
    per_layer: bool = False,
    group: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> NTK:
    """The empirical neural tangent kernel of a network, exact, without ever holding its Jacobian.

    Theta[i, j, r, r'] is the inner product of the gradients of readout r at x1[i] and readout r' at x2[j] with respect
    to the parameters (Jacot et al., NeurIPS 2018). Each layer is contracted in the order that the planner finds fastest
    (Novak et al., ICML 2022); see docs/ntk.md.

    Args:
        model: maps images [n, ...] to logits [n, O]; float32 or float64. Runs in eval mode and is left as it was.
        x1: [N1, ...] images in [0, 1] (or token indices), on any device.
        x2: [N2, ...]; None: the symmetric kernel of x1, of which one half is computed.
        y1, y2: class indices [N1], [N2], for the readouts "margin" and "loss".
        readout: of the O logits, "full" (each one: R = O), "sum" (their sum, the pseudo-NTK: R = 1), "trace" (the sum
            over r of Theta[r, r], R = 1), a class index, "margin" (of the label's logit over the best other), "loss"
            (the cross-entropy's gradient), a matrix [R, O], one a sample [N, R, O], or a callable from logits [n, O] to
            [n, R], differentiated at the present logits. A pair: one for each side.
        params: which parameters, by name (a module's name is all in it) or themselves; default all that require grad.
        bn: "eval" (running statistics), or "frozen" (the statistics of `bn_batch`, as constants).
        method: "auto", one order for all layers that can take it ("M", "C", "G"), a dict of orders by layer, or a Plan.
        precision: of the products: "fp64" (the network too), "fp32" (default on a CPU), "tf32" (default on CUDA;
            operands rounded to nearest), "bf16x3", "bf16". The gradients are always computed in the model's own dtype,
            without TF32.
        tile: samples of x1 whose factors are held at once, rounded up to whole blocks; default as many as fit. The
            result has the same bits for every tile.
        max_bytes: memory beyond the model and the images; default half of what is free.
        out: None (the model's device), "cpu", or a file: NAME.npy, with its description beside it. A computation that
            was interrupted goes on from such a file.
        check: compare Theta v for a random v on a first block with J (J^T v) by autograd, before the rest is computed;
            the relative error is in the result.
        per_layer: keep each layer's part (in memory, one kernel a layer).
        group: a torch.distributed process group, or "world": the pairs of blocks are shared out over its ranks, and
            each rank gets the whole kernel.
        progress: called with (pairs of blocks done, all of them).

    Raises:
        ValueError, TypeError: an argument does not fit, or there is too little memory; before any long work.
        RuntimeError: a parameter could not be attributed to a layer, or the check failed.
    """
    in_file = out is not None and str(out) != "cpu"
    if in_file and per_layer:
        raise ValueError(
            "per_layer=True keeps a kernel a layer in memory and does not go with out= a file"
        )
    engine = Engine(
        model, x1, x2, y1=y1, y2=y2, readout=readout, params=params, bn=bn, bn_batch=bn_batch, method=method,
        precision=precision, tile=tile, max_bytes=max_bytes, per_layer=per_layer, group=group,
        result_held=out is None or (str(out) == "cpu" and not _on_gpu(model)),
    )  # fmt: skip
    passed = checked(engine) if check else None
    r, symmetric = engine.readouts, engine.symmetric
    if in_file:
        assert out is not None
        store = FileStore(out, engine)
        _run(engine, store.add, store.missing, progress)
        engine.shards.barrier()
        return NTK(store.tensor(), r, symmetric, engine.plan, passed, store.path)
    shape = (len(engine.left.x) * r, len(engine.right.x) * r)
    place = "cpu" if out is not None else engine.subject.device
    values = torch.zeros(shape, dtype=engine.subject.dtype, device=place)
    parts: dict[str, Tensor] | None = None
    if per_layer:
        parts = {row.name: torch.zeros_like(values) for row in engine.plan.layers}

    def keep(i: int, j: int, piece: Piece) -> None:
        put(values, piece, r, symmetric=symmetric)
        for name, matrix in piece.per_layer.items():
            assert parts is not None
            put(parts[name], replace(piece, matrix=matrix), r, symmetric=symmetric)

    _run(engine, keep, lambda i, j: True, progress)
    for matrix in (values, *(parts or {}).values()):
        engine.shards.sum(matrix)
    return NTK(values, r, symmetric, engine.plan, passed, None, parts)


def _on_gpu(model: nn.Module) -> bool:
    return any(p.device.type != "cpu" for p in model.parameters())


def _run(
    engine: Engine,
    keep: Callable[[int, int, Piece], None],
    missing: Callable[[int, int], bool],
    progress: Callable[[int, int], None] | None,
) -> None:
    own = engine.shards.own
    todo = {pair for pair in own if missing(*pair)}
    done = len(own) - len(todo)
    for i, j, piece in engine.pieces(lambda i, j: (i, j) in todo):
        keep(i, j, piece)
        done += 1
        if progress is not None:
            progress(done, len(own))


def tiles(
    model: nn.Module, x1: Tensor, x2: Tensor | None = None, **settings: Any
) -> Iterator[Tile]:
    """The kernel in pieces, none of which is kept: for what is summed up on the way (see `advfast.ntk.reduce`).

    Args:
        settings: as `ntk`, but for `out`, `check`, `per_layer` and `progress`.

    Yields:
        Tile(i, j, block): block [ni, R, nj, R] of samples i of x1 and j of x2. With x2 None each pair of samples comes
        once: i.stop <= j.start, or i == j with both triangles.
    """
    engine = Engine(model, x1, x2, result_held=False, **settings)
    r = engine.readouts
    for _, _, piece in engine.pieces():
        n1, n2 = piece.i.stop - piece.i.start, piece.j.stop - piece.j.start
        yield Tile(piece.i, piece.j, piece.matrix.reshape(n1, r, n2, r))


def plan(model: nn.Module, x1: Tensor, x2: Tensor | None = None, **settings: Any) -> Plan:
    """How `ntk` would compute this kernel: order, cost and predicted time of each layer, memory. print() it.

    Args:
        x1, x2: the images; of x1 one sample is looked at.
        settings: as `ntk`.
    """
    for name in ("out", "check", "progress"):
        settings.pop(name, None)
    return Engine(model, x1, x2, **settings).plan
