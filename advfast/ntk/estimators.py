"""Random estimates of the trace and the Frobenius norm, with standard errors.

z has independent signs: E z z^T = I, so E z^T A z = tr A with the least variance (Hutchinson, Communications in
Statistics 18, 1989). As Theta = J J^T, z^T Theta z = |J^T z|^2 needs no second pass. The trace is that of the blocks
Theta_ii alone, so that J_i^T z_i sample by sample has the variance of those only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .exact import signed_diagonal

if TYPE_CHECKING:
    from .operator import NTKOperator


_AT_ONCE = 16  # readouts of the engine


@dataclass(frozen=True)
class Estimate:
    value: float
    stderr: float  # standard error of the value, from the spread over the samples
    samples: int

    def __float__(self) -> float:
        return self.value


def check_samples(samples: object, name: str) -> None:
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 2:
        raise ValueError(
            f"{name} must be an integer of 2 or more, for a standard error, got {samples!r}"
        )


def signs(operator: NTKOperator, samples: int, seed: int) -> Tensor:
    """[samples, N R], of the operator's dtype and device; the same on every device."""
    draw = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (samples, operator.shape[0]), generator=draw)
    return (2 * bits - 1).to(operator.device, operator.dtype)


def trace(operator: NTKOperator, samples: int, per_sample: bool, seed: int) -> Estimate:
    check_samples(samples, "samples")
    z = signs(operator, samples, seed).reshape(samples, operator.n, operator.readouts)
    if per_sample:
        parts = z.split(_AT_ONCE)
        values = torch.cat([signed_diagonal(operator, part).double().sum(1) for part in parts])
    else:
        parts = z.split(operator.width)
        with operator.repeated():
            values = torch.cat([_norms(operator._pull(part)) for part in parts])
    return _mean(values)


def frobenius(operator: NTKOperator, samples: int, seed: int) -> Estimate:
    check_samples(samples, "samples")
    with operator.repeated():
        products = operator.apply(signs(operator, samples, seed).T)
    square = _mean(products.square().sum(0))
    value = square.value**0.5
    # The error of a root, to first order.
    return Estimate(value, square.stderr / (2 * value) if value else 0.0, samples)


def jackknife(function: Callable[[Tensor], Tensor], samples: Tensor) -> Estimate:
    """A function of the mean over samples [m, ...], with the jackknife's standard error (Efron and Stein, Annals of
    Statistics 9, 1981)."""
    m = len(samples)
    mean = samples.mean(0)
    value = float(function(mean))
    without = torch.stack([function((m * mean - sample) / (m - 1)) for sample in samples])
    spread = (without - without.mean()).square().sum() * (m - 1) / m
    return Estimate(value, float(spread.sqrt()), m)


def _norms(w: list[Tensor]) -> Tensor:
    """Squared lengths of k vectors of the parameters' space."""
    return torch.stack([t.double().square().flatten(1).sum(1) for t in w]).sum(0)


def _mean(values: Tensor) -> Estimate:
    return Estimate(float(values.mean()), float(values.std() / len(values) ** 0.5), len(values))
