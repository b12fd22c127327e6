import math
from types import SimpleNamespace

import pytest
import torch

from advfast.ntk import metrics
from advfast.ntk.scalars import NAMES, summary

from .kernels import random_kernel

Y = torch.arange(12) % 3
K = random_kernel()


def loops_trace(theta):
    n, r = theta.shape[0], theta.shape[2]
    return torch.tensor(
        [[sum(theta[i, j, c, c] for c in range(r)) / r for j in range(n)] for i in range(n)]
    ).double()


def loops_full(theta):
    n, r = theta.shape[0], theta.shape[2]
    k = torch.zeros(n * r, n * r, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            for a in range(r):
                for b in range(r):
                    k[i * r + a, j * r + b] = theta[i, j, a, b]
    return k


MATRICES = {"trace": loops_trace, "full": loops_full}


def h(n):
    return torch.eye(n).double() - torch.ones(n, n).double() / n


def kta(k, target):
    """The centred alignment of two kernels, with matrices H."""
    a, b = h(len(k)) @ k @ h(len(k)), h(len(k)) @ target @ h(len(k))
    return float(torch.trace(a @ b.T) / (torch.linalg.norm(a) * torch.linalg.norm(b)))


@pytest.mark.parametrize("of", MATRICES)
def test_spectral_metrics(of):
    k = MATRICES[of](K)
    values = torch.linalg.eigh(k).eigenvalues.clamp(min=0).tolist()
    total = sum(values)
    entropy = -sum(v / total * math.log(v / total) for v in values if v > 0)
    squares = sorted((v * v for v in values), reverse=True)
    expected = {
        "trace": float(torch.trace(k)),
        "effective_rank": math.exp(entropy),
        "participation_ratio": total**2 / sum(squares),
        "top_share": max(values) / total,
        "top_mass": sum(squares[:10]) / sum(squares),
    }
    for name, value in expected.items():
        assert getattr(metrics, name)(K, of=of) == pytest.approx(value, rel=1e-10)
    assert metrics.top_mass(K, 2, of) == pytest.approx(sum(squares[:2]) / sum(squares), rel=1e-10)
    assert summary(K, of=of) == pytest.approx(expected, rel=1e-10)
    assert metrics.spectrum(K, of).tolist() == pytest.approx(sorted(values, reverse=True), abs=1e-9)
    # Seven columns in all outputs' Jacobians together.
    assert (metrics.spectrum(K, "full") > 1e-9).sum() == 7


@pytest.mark.parametrize("of", MATRICES)
def test_distance_velocity_and_polar(of):
    other, last = random_kernel(seed=1), random_kernel(seed=2)
    a, b, c = (MATRICES[of](k) for k in (K, other, last))
    cos = torch.trace(a @ b) / (torch.linalg.norm(a) * torch.linalg.norm(b))
    assert metrics.kernel_distance(K, other, of) == pytest.approx(1 - float(cos), rel=1e-10)
    assert metrics.kernel_velocity(K, other, 0.25, of) == pytest.approx(4 - 4 * float(cos))
    radius, angle = metrics.polar(other, K, last, of=of)
    expected = torch.linalg.norm(b - a) / torch.linalg.norm(c - a)
    assert radius == pytest.approx(float(expected), rel=1e-10)
    assert angle == pytest.approx(math.acos(float(cos)), rel=1e-10)
    free, _ = metrics.polar(other, K, of=of)
    assert free == pytest.approx(float(torch.linalg.norm(b - a)), rel=1e-10)
    assert metrics.polar(last, K, last, of=of)[0] == 1


def test_polar_in_the_leading_eigenspaces():
    other = random_kernel(seed=1)

    def cut(k, rank):
        u, s, vh = torch.linalg.svd(loops_trace(k))
        return u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank]

    a, b = cut(K, 2), cut(other, 2)
    radius, angle = metrics.polar(other, K, k=2)
    assert radius == pytest.approx(float(torch.linalg.norm(a - b)), rel=1e-9)
    cos = (a * b).sum() / (torch.linalg.norm(a) * torch.linalg.norm(b))
    assert angle == pytest.approx(math.acos(float(cos)), rel=1e-9)
    assert metrics.polar(other, K, k=12) == pytest.approx(metrics.polar(other, K), rel=1e-9)


def test_centred_alignment():
    one_hot = torch.eye(3).double()[Y]
    expected = kta(loops_trace(K), one_hot @ one_hot.T)
    assert metrics.alignment(K, Y) == pytest.approx(expected, rel=1e-10)
    assert metrics.alignment(K, one_hot) == pytest.approx(expected, rel=1e-10)
    assert metrics.alignment(5 + one_hot @ one_hot.T, Y) == pytest.approx(1, rel=1e-12)


def test_alignment_of_centred_jacobians():
    """From the Jacobians themselves, as the definition has it."""
    generator = torch.Generator().manual_seed(3)
    j = torch.randn(12, 3, 40, dtype=torch.float64, generator=generator) + 0.5
    j_centred = (j - j.mean(0)).reshape(36, 40)
    k = j_centred @ j_centred.T
    y = torch.eye(3).double()[Y]
    y = (y - y.mean(0)).flatten()
    expected = y @ k @ y / (torch.linalg.norm(k) * (y @ y))
    theta = torch.einsum("irp,jsp->ijrs", j, j)
    assert metrics.alignment(theta, Y, "jacobian") == pytest.approx(float(expected), rel=1e-10)


def test_specialization():
    y = torch.tensor([0, 1, 2, 2, 1, 0, 0, 0, 1, 2, 2, 1])
    found = metrics.specialization(K, y)
    expected = torch.empty(3, 3).double()
    for k in range(3):
        for c in range(3):
            member = (y == c).double()
            expected[k, c] = kta(K[:, :, k, k], torch.outer(member, member))
    torch.testing.assert_close(found.matrix, expected, rtol=1e-10, atol=1e-12)
    ratios = [expected[c, c] / (sum(expected[k, c] for k in range(3)) / 3) for c in range(3)]
    assert found.value == pytest.approx(float(sum(ratios) / 3), rel=1e-10)


def test_specialization_of_equal_and_of_separate_heads():
    same = random_kernel(r=1).expand(12, 12, 3, 3)
    assert metrics.specialization(same, Y).value == pytest.approx(1, rel=1e-12)
    theta = torch.zeros(6, 6, 3, 3).double()
    y = torch.arange(6) % 3
    for c in range(3):
        member = (y == c).double() - 1 / 3
        theta[:, :, c, c] = torch.outer(member, member)
    # Centred members of three classes have cosine -1/2, its square 1/4: 1 / ((1 + 1/4 + 1/4) / 3).
    assert metrics.specialization(theta, y).value == pytest.approx(2, rel=1e-12)


def test_specialization_leaves_out_classes_without_samples():
    y = torch.arange(12) % 2
    found = metrics.specialization(K, y)
    assert found.matrix[:, 2].isnan().all()
    ratios = [found.matrix[c, c] / found.matrix[:, c].mean() for c in range(2)]
    assert found.value == pytest.approx(float(sum(ratios) / 2), rel=1e-12)


def test_class_block_means():
    y = torch.tensor([0, 0, 2, 2, 2, 0, 0, 2, 2, 2, 0, 2])
    k, found = loops_trace(K), metrics.class_block_means(K, y)
    for a in (0, 2):
        for b in (0, 2):
            expected = k[y == a][:, y == b].mean()
            assert float(found[a, b]) == pytest.approx(float(expected), rel=1e-10)
    assert found[1].isnan().all()
    assert found[:, 1].isnan().all()


def test_scale_and_order_of_samples_do_not_matter():
    order = torch.randperm(12)
    moved = 7.5 * K[order][:, order]
    before, after = summary(K, Y), summary(moved, Y[order])
    assert tuple(before) == NAMES
    assert after.pop("trace") == pytest.approx(7.5 * before.pop("trace"), rel=1e-10)
    assert after == pytest.approx(before, rel=1e-9)
    assert metrics.kernel_distance(K, 3 * K) == pytest.approx(0, abs=1e-15)


def test_bounds_of_rank_and_share():
    eye = torch.eye(9)
    assert metrics.effective_rank(eye) == pytest.approx(9)
    assert metrics.participation_ratio(eye) == pytest.approx(9)
    assert metrics.top_share(eye) == pytest.approx(1 / 9)
    ones = torch.ones(9, 9)
    assert metrics.effective_rank(ones) == pytest.approx(1)
    assert metrics.top_share(ones) == pytest.approx(1)
    assert metrics.kernel_distance(torch.diag(eye[0]), torch.diag(eye[1])) == 1


def test_a_result_of_ntk_and_a_plain_matrix_are_taken():
    result = SimpleNamespace(tensor=K)
    assert summary(result, Y) == summary(K, Y)
    plain = loops_trace(K)
    assert summary(plain, Y) == pytest.approx(summary(K, Y, tuple(summary(plain, Y))), rel=1e-12)
    assert "specialization" not in summary(plain, Y)
    assert set(summary(plain)) == {
        "trace",
        "top_share",
        "effective_rank",
        "participation_ratio",
        "top_mass",
    }


def test_float32_kernels_are_reduced_in_float64():
    single = K.float()
    assert summary(single, Y) == summary(single.double(), Y)


def test_rounding_that_is_not_symmetric_is_evened_out():
    single = K.float()
    uneven = single * (1 + 1e-6 * torch.randn(single.shape))
    for of in metrics.OF:
        k = metrics.matrix(uneven, of)
        assert torch.equal(k, k.T)
        torch.testing.assert_close(k, metrics.matrix(single, of), rtol=1e-5, atol=1e-6)


BROKEN = {
    "nan": lambda: torch.full((2, 2), float("nan")),
    "asymmetric": lambda: torch.tensor([[1.0, 0.5], [0.4, 1.0]]),
    "asymmetric readouts": lambda: K + torch.randn(3, 3),
    "rectangular": lambda: K[:4],
    "three axes": lambda: K[:, :, 0],
    "integers": lambda: torch.eye(3, dtype=torch.int64),
    "empty": lambda: torch.empty(0, 0),
    "not a tensor": lambda: [[1.0]],
}
MESSAGES = ["NaN", "symmetric", "symmetric", "got (4, 12", "[N, N]", "int64", "(0, 0)", "list"]


@pytest.mark.parametrize(("name", "message"), list(zip(BROKEN, MESSAGES, strict=True)))
def test_bad_kernels(name, message):
    with pytest.raises((ValueError, TypeError)) as raised:
        metrics.effective_rank(BROKEN[name]())
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.spectrum(torch.diag(torch.tensor([1.0, -0.5]))), "semi-definite"),
        (lambda: metrics.spectrum(torch.zeros(3, 3)), "not zero"),
        (lambda: metrics.trace(K, "sum"), "of must be"),
        (lambda: metrics.top_mass(K, 0), "k must be 1 .. 12"),
        (lambda: metrics.top_mass(K, 13), "k must be 1 .. 12"),
        (lambda: metrics.kernel_distance(K, K[:5, :5]), "same samples"),
        (lambda: metrics.kernel_distance(K, 0 * K), "zero"),
        (lambda: metrics.kernel_velocity(K, K, 0), "dt must be above 0"),
        (lambda: metrics.polar(K, K, K), "no way"),
        (lambda: metrics.alignment(K, Y[:5]), "[12]"),
        (lambda: metrics.alignment(K, Y * 0), "same for all"),
        (lambda: metrics.alignment(K, Y - 1), "got -1 .. 1"),
        (lambda: metrics.alignment(K, Y, "cka"), "form must be"),
        (lambda: metrics.alignment(K, Y + 1, "jacobian"), "0 .. 2, got 1 .. 3"),
        (lambda: metrics.alignment(torch.ones(12, 12), Y), "does not tell"),
        (lambda: metrics.specialization(K[:, :, :1, :1], Y), "got 1 readout"),
        (lambda: metrics.specialization(K, Y.double()), "class indices"),
        (lambda: metrics.class_block_means(K, Y[:3]), "[12]"),
        (lambda: summary(K, Y, ["effective_rnk"]), "did you mean 'effective_rank'"),
        (lambda: summary(K, None, ["alignment"]), "needs the labels"),
        (lambda: summary(K, Y, []), "at least one"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError) as raised:
        call()
    assert message in str(raised.value)
