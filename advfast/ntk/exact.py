"""What of an operator's kernel is computed exactly: the kernel itself and its diagonal, by the engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .engine import Engine
from .readouts import Readout

if TYPE_CHECKING:
    from .operator import NTKOperator


class Part(NamedTuple):
    """Theta of the samples i and j, [ni, R, nj, R]; i == j with both triangles, or i before j."""

    i: slice
    j: slice
    block: Tensor


def diagonal_blocks(operator: NTKOperator) -> Tensor:
    """Theta_ii [N, R, R]."""
    return torch.cat([_own(part.block) for part in _parts(operator, diagonal=True)])


def signed_diagonal(operator: NTKOperator, z: Tensor) -> Tensor:
    """z_i^T Theta_ii z_i [m, N] for z [m, N, R]: as the kernel of the readouts z_i^T C_i, R = m."""
    with operator.subject.running(), torch.no_grad():
        seeds = torch.cat(
            [
                torch.einsum(
                    "mnr,nro->nmo",
                    z[:, batch.start : batch.stop],
                    operator.products.readout(operator.subject.logits(batch.x), batch),
                )
                for batch in operator.batches
            ]
        )
    parts = _parts(operator, diagonal=True, readout=seeds)
    values = torch.cat([_own(part.block).diagonal(dim1=1, dim2=2) for part in parts]).T
    if operator.centre:
        means, mean = _means(operator)
        values = values + torch.einsum("mnr,nrs,mns->mn", z, mean - 2 * means, z)
    return values


def frobenius(operator: NTKOperator) -> float:
    total = 0.0
    for part in _parts(operator):
        total += float(part.block.double().square().sum()) * (1 if part.i == part.j else 2)
    return total**0.5


def dense(operator: NTKOperator) -> Tensor:
    n, r = operator.n, operator.readouts
    theta = torch.empty(n, r, n, r, dtype=operator.dtype, device=operator.device)
    for i, j, block in _parts(operator):
        theta[i, :, j] = block
        theta[j, :, i] = block.permute(2, 3, 0, 1)
    return theta.reshape(n * r, n * r)


def _parts(
    operator: NTKOperator, *, diagonal: bool = False, readout: Readout | None = None
) -> Iterator[Part]:
    """The kernel piece by piece, of `centred()` too; `diagonal`: only the pieces on it.

    With another readout than the operator's it is the kernel of that, not centred.
    """
    own = readout is None
    engine = Engine(
        operator.subject.model,
        torch.cat([batch.x for batch in operator.batches]),
        y1=operator.labels if operator.cotangents.needs_labels and own else None,
        readout=operator.cotangents.readout if readout is None else readout,
        params=list(operator.subject.parameters),
        bn=operator.subject.bn,
        bn_batch=operator.bn_batch,
        precision="fp64" if operator.dtype == torch.float64 else "fp32",
        result_held=False,
    )
    r = engine.readouts
    means = _means(operator) if operator.centre and own else None
    for _, _, piece in engine.pieces((lambda i, j: i == j) if diagonal else None):
        i, j = piece.i, piece.j
        block = piece.matrix.reshape(i.stop - i.start, r, j.stop - j.start, r)
        if means is not None:
            rows, mean = means
            # H Theta H, of which the mean over j is rows and the mean over i and j is mean.
            block = block - rows[i][:, :, None] - rows[j].permute(2, 0, 1) + mean[:, None]
        yield Part(i, j, block)


def _means(operator: NTKOperator) -> tuple[Tensor, Tensor]:
    """Means of Theta[i, j, r, s] over j [N, R, R], and over i and j [R, R], by R products."""
    n, r = operator.n, operator.readouts
    eye = torch.eye(r, dtype=operator.dtype, device=operator.device) / n
    rows = operator.uncentred().matmat(eye.repeat(n, 1)).reshape(n, r, r)
    return rows, rows.mean(0)


def _own(block: Tensor) -> Tensor:
    """The blocks [n, R, R] on the diagonal of [n, R, n, R]."""
    return block.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
