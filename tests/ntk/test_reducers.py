import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from advfast.ntk import metrics
from advfast.ntk.leading import Leading, entropy_rank_bounds
from advfast.ntk.reducers import Histogram, Inner
from advfast.ntk.reduction import reduce_tiles

from .kernels import random_kernel

N, R = 24, 3
Y = torch.randint(R, (N,), generator=torch.Generator().manual_seed(5))
TILINGS = {
    "one tile": (N,),
    "even": (6, 6, 6, 6),
    "last one smaller": (10, 10, 4),
    "uneven": (1, 9, 3, 11),
    "single samples": (1,) * N,
}


@dataclass(frozen=True)
class Cut:
    i: slice
    j: slice
    block: Tensor


def cut(theta, sizes, *, order=None):
    """The tiles i <= j of a kernel [N, N, R, R]."""
    edges = [0, *itertools.accumulate(sizes)]
    spans = [slice(a, b) for a, b in itertools.pairwise(edges)]
    pairs = [(a, b) for a in range(len(spans)) for b in range(a, len(spans))]
    if order is not None:
        pairs = [pairs[p] for p in order(len(pairs))]
    for a, b in pairs:
        yield Cut(spans[a], spans[b], theta[spans[a], spans[b]].transpose(1, 2))


def kernel(rank=60, seed=0):
    return random_kernel(N, R, rank, seed)


def close(found, expected):
    assert found == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("of", ["trace", "full"])
@pytest.mark.parametrize("sizes", TILINGS.values(), ids=TILINGS)
def test_equal_to_the_metrics_of_the_whole_kernel(sizes, of):
    theta, other = kernel(), kernel(seed=1)
    names = ["trace", "norm", "participation_ratio", "alignment", "jacobian_alignment"]
    names += ["specialization", "class_block_means", "distance", "radius", "angle"]
    found = reduce_tiles(
        lambda: cut(theta, sizes), N, y=Y, metrics=names, other=lambda: cut(other, sizes), of=of
    )
    assert list(found) == names
    radius, angle = metrics.polar(theta, other, of=of)
    expected = {
        "trace": metrics.trace(theta, of),
        "norm": float(torch.linalg.norm(metrics.matrix(theta, of))),
        "participation_ratio": metrics.participation_ratio(theta, of),
        "alignment": metrics.alignment(theta, Y),
        "jacobian_alignment": metrics.alignment(theta, Y, "jacobian"),
        "specialization": metrics.specialization(theta, Y).value,
        "distance": metrics.kernel_distance(theta, other, of),
        "radius": radius,
        "angle": angle,
    }
    means = found.pop("class_block_means")
    torch.testing.assert_close(means, metrics.class_block_means(theta, Y), rtol=1e-10, atol=0)
    close(found, expected)


@pytest.mark.parametrize("of", ["trace", "full"])
def test_the_spectrum_by_sweeps(of):
    """Enough sweeps for k + 8 vectors each to span the space: then it is the whole spectrum."""
    theta = kernel()
    m = len(metrics.matrix(theta, of))
    found = reduce_tiles(
        lambda: cut(theta, (10, 10, 4)),
        N,
        metrics=["top_share", "top_mass", "effective_rank"],
        of=of,
        k=m,
    )
    assert found["sweeps"] == 1
    low, high = found["effective_rank"]
    close(low, metrics.effective_rank(theta, of))
    close(high, metrics.effective_rank(theta, of))
    close(found["top_share"], metrics.top_share(theta, of))
    close(found["top_mass"], 1)
    few = reduce_tiles(
        lambda: cut(theta, (5, 19)),
        N,
        y=Y,
        metrics=["top_share", "top_mass", "effective_rank", "trace"],
        of=of,
        k=4,
        sweeps=40,
    )
    assert few["residual"] <= 1e-9
    assert 1 < few["sweeps"] <= math.ceil(m / 12)
    close(few["top_share"], metrics.top_share(theta, of))
    close(few["top_mass"], metrics.top_mass(theta, 4, of))
    low, high = few["effective_rank"]
    assert low <= metrics.effective_rank(theta, of) <= high
    assert low > 4


def test_too_few_sweeps_give_lower_bounds_and_say_so():
    theta = kernel()
    sweeps = []

    def sweep():
        sweeps.append(1)
        return cut(theta, (12, 12))

    names = ["top_share", "effective_rank", "alignment"]
    found = reduce_tiles(sweep, N, y=Y, metrics=names, of="full", k=5, sweeps=2)
    assert len(sweeps) == found["sweeps"] == 2
    assert found["residual"] > 1e-6
    exact = metrics.top_share(theta, "full")
    assert 0.9 * exact < found["top_share"] < exact
    assert found["effective_rank"][1] >= metrics.effective_rank(theta, "full")
    close(found["alignment"], metrics.alignment(theta, Y))


def test_a_kernel_of_low_rank_ends_the_search():
    theta = kernel(rank=3)
    names = ["effective_rank", "top_mass"]
    found = reduce_tiles(lambda: cut(theta, (N,)), N, metrics=names, of="full", k=6, sweeps=50)
    assert found["sweeps"] <= 2
    low, high = found["effective_rank"]
    assert low == pytest.approx(metrics.effective_rank(theta, "full"), rel=1e-8)
    assert high == pytest.approx(low, rel=1e-8)
    close(found["top_mass"], 1)


def test_order_of_tiles_does_not_matter():
    theta, sizes = kernel(), (5, 8, 11)
    names = ["trace", "norm", "alignment", "specialization"]
    forward = reduce_tiles(lambda: cut(theta, sizes), N, y=Y, metrics=names)
    backward = reduce_tiles(
        lambda: cut(theta, sizes, order=lambda n: reversed(range(n))), N, y=Y, metrics=names
    )
    close(backward, forward)


def test_one_readout():
    theta = random_kernel(N, 1, 20)
    found = reduce_tiles(lambda: cut(theta, (7, 17)), N, y=Y)
    assert list(found) == ["trace", "norm", "participation_ratio", "alignment"]
    close(found["alignment"], metrics.alignment(theta[:, :, 0, 0], Y))
    with pytest.raises(ValueError, match="got 1 readout"):
        reduce_tiles(lambda: cut(theta, (7, 17)), N, y=Y, metrics=["specialization"])


def test_float32_tiles_are_summed_in_float64():
    theta = kernel().float()
    found = reduce_tiles(lambda: cut(theta, (7, 17)), N, metrics=["trace", "norm"])
    close(found["norm"], float(torch.linalg.norm(metrics.matrix(theta))))


def test_histogram_counts_every_entry_once():
    theta = kernel()
    k = metrics.matrix(theta)
    edges = torch.linspace(float(k.min()) + 0.5, float(k.max()) - 0.5, 9)
    found = reduce_tiles(lambda: cut(theta, (4, 9, 11)), N, metrics=["histogram"], edges=edges)[
        "histogram"
    ]
    edges = edges.tolist()
    expected = [sum(v < edges[0] for v in k.flatten().tolist())]
    for a, b in itertools.pairwise(edges):
        expected.append(sum(a <= v < b for v in k.flatten().tolist()))
    expected.append(sum(v >= edges[-1] for v in k.flatten().tolist()))
    assert found.tolist() == expected
    assert found.sum() == N * N


def test_bounds_of_the_rank_hold_for_any_spectrum():
    generator = torch.Generator().manual_seed(0)
    for power in (0.5, 2, 6):
        values = torch.rand(30, dtype=torch.float64, generator=generator).pow(power)
        values = values.sort(descending=True).values
        exact = metrics.entropy_rank(values)
        for k in (1, 5, 29, 30):
            low, high = entropy_rank_bounds(
                values[:k], float(values.sum()), float(values.square().sum()), 30
            )
            assert low <= exact * (1 + 1e-12)
            assert high >= exact * (1 - 1e-12)
        assert low == high == pytest.approx(exact, rel=1e-12)


def test_leading_eigenvalues_of_a_hard_spectrum():
    """Close together at the top, and many of the same size below."""
    q = torch.linalg.qr(torch.randn(80, 80, dtype=torch.float64))[0]
    values = torch.tensor([1.0, 0.99, 0.98] + [0.2] * 77, dtype=torch.float64)
    k = (q * values) @ q.T
    search = Leading(80, 3)
    steps = 0
    while search.block is not None:
        search.absorb(k @ search.block)
        steps += 1
    assert search.converged
    assert steps <= 4
    assert search.values.tolist() == pytest.approx([1, 0.99, 0.98], rel=1e-12)


def test_the_search_keeps_its_vectors_orthogonal():
    """Over thirteen orders of magnitude, where what a product adds to the known directions is mostly rounding."""
    q = torch.linalg.qr(torch.randn(120, 120, dtype=torch.float64))[0]
    values = 10 ** torch.linspace(0, -13, 120, dtype=torch.float64)
    k = (q * values) @ q.T
    search = Leading(120, 4, tol=0)
    while search.block is not None:
        search.absorb(k @ search.block)
    basis = torch.cat(search._basis, 1)
    assert basis.shape[1] > 40
    torch.testing.assert_close(
        basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64), rtol=0, atol=1e-12
    )
    assert search.values.tolist() == pytest.approx(values[:4].tolist(), rel=1e-13)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": ["distance"]}, "needs `other`"),
        ({"metrics": ["alignment"]}, "needs the labels"),
        ({"metrics": ["histogram"]}, "needs `edges`"),
        ({"metrics": ["norms"]}, "did you mean 'norm'"),
        ({"metrics": []}, "at least one"),
        ({"of": "sum"}, "of must be"),
        ({"metrics": ["top_share"], "k": 25}, "k must be 1 .. 24"),
        ({"sweeps": 0}, "sweeps must be"),
        ({"metrics": ["histogram"], "edges": torch.tensor([1.0, 1.0])}, "ascending"),
        ({"y": Y[:4]}, "[24]"),
        ({"metrics": ["trace"], "other": lambda: cut(kernel(), (N,))}, "none of which"),
        ({"metrics": ["distance"], "other": lambda: cut(kernel(), (5, 19))}, "same samples"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError) as raised:
        reduce_tiles(lambda: cut(kernel(), (N,)), N, **arguments)
    assert message in str(raised.value)


def test_kernels_nothing_can_be_read_off():
    with pytest.raises(ValueError, match="is zero"):
        reduce_tiles(lambda: cut(0 * kernel(), (N,)), N)
    with pytest.raises(ValueError, match="NaN"):
        reduce_tiles(lambda: cut(math.nan * kernel(), (N,)), N)
    with pytest.raises(ValueError, match="does not tell"):
        reduce_tiles(lambda: cut(torch.ones(N, N, R, R).double(), (N,)), N, y=Y)


def test_pairs_of_tiles_must_match():
    inner = Inner("trace")
    first, second = cut(kernel(), (5, 19)), cut(kernel(), (6, 18))
    with pytest.raises(ValueError, match="same samples"):
        inner.add(next(first), next(second))
    with pytest.raises(ValueError, match="ascending"):
        Histogram("trace", torch.tensor([2.0]))
