"""Momentum, EoT, masks, given starts, splits and outputs: what each one does, and that all stay in ball and box."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from advfast import PGDAttack
from advfast.attacks.momentum import Momentum
from advfast.attacks.split import pieces

from .networks import batch, cnn, mlp, plain_pgd
from .test_contract import assert_untouched, snapshot
from .test_finish import Noisy

EPS, ALPHA = 8 / 255, 2 / 255


def mifgsm_by_hand(model, images, labels, decay, steps):
    """As torchattacks.MIFGSM: its operations in its order."""
    x, velocity = images.clone(), torch.zeros_like(images)
    for _ in range(steps):
        x.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x), labels), x)
        grad = grad / torch.mean(torch.abs(grad), dim=(1, 2, 3), keepdim=True)
        velocity = grad = grad + velocity * decay
        delta = torch.clamp(x.detach() + ALPHA * grad.sign() - images, -EPS, EPS)
        x = torch.clamp(images + delta, 0, 1).detach()
    return x


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_momentum_is_that_of_torchattacks_bit_for_bit(decay):
    model, (images, labels) = cnn(), batch(16)
    got = PGDAttack(model, EPS, ALPHA, 8, False, momentum=decay, fold=False)(images, labels)
    assert torch.equal(got, mifgsm_by_hand(model, images, labels, decay, 8))
    assert not torch.equal(got, plain_pgd(model, images, labels, EPS, ALPHA, 8))


def test_a_sample_without_gradient_does_not_spoil_its_velocity():
    def model(x):
        return torch.stack(
            (x[:, 0] * 0, (x[:, 0] - 0.52).clamp(min=0) - (0.5 - x[:, 0]).clamp(min=0)), 1
        )

    images = torch.full((2, 3), 0.49)
    result = PGDAttack(model, 0.2, 0.01, 6, False, momentum=1.0)(images, torch.tensor([0, 0]))
    # A slope up to 0.5, a plateau to 0.52 that the velocity carries over, and a slope again.
    assert torch.allclose(result[:, 0], torch.tensor([0.55, 0.55]))
    assert torch.equal(result[:, 1:], images[:, 1:])


def test_eot_follows_the_mean_gradient_and_the_passes_differ():
    model, (images, labels) = Noisy(0.05), batch(16)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(4)
    got = PGDAttack(model, EPS, ALPHA, 3, False, eot=5)(images, labels)
    assert len(calls) == 15

    torch.manual_seed(4)
    expected = images
    for _ in range(3):
        x = expected.clone().requires_grad_()
        total = sum(
            torch.autograd.grad(F.cross_entropy(model(x), labels, reduction="sum"), x)[0]
            for _ in range(5)
        )
        expected = (images + (expected + ALPHA * total.sign() - images).clamp(-EPS, EPS)).clamp(
            0, 1
        )
    assert (got != expected).float().mean() < 1e-3
    torch.manual_seed(4)
    assert not torch.equal(PGDAttack(model, EPS, ALPHA, 3, False)(images, labels), got)


def test_eot_finds_a_direction_in_noise():
    class Signal(nn.Module):
        def forward(self, x):
            flat = x.flatten(1)
            slope = 1 + 3 * torch.randn_like(flat)
            return torch.stack((flat.sum(1) * 0, (flat * slope).sum(1)), 1)

    images = torch.full((4, 200), 0.5)
    labels = torch.zeros(4, dtype=torch.long)
    torch.manual_seed(0)
    found = [
        (PGDAttack(Signal(), 0.01, 0.01, 1, False, eot=n)(images, labels) > images).float().mean()
        for n in (1, 40)
    ]
    assert found[0] < 0.75 and found[1] > 0.95


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("shape", [(8, 1, 1, 1), (1, 1, 12, 12), (12, 12), (8, 3, 12, 12)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_a_mask_covers_keeps_its_bits(norm, shape, layout):
    model, (images, labels) = cnn(), batch(8)
    images = images.contiguous(memory_format=layout)
    generator = torch.Generator().manual_seed(6)
    mask = torch.rand(shape, generator=generator) < 0.5
    eps = {"linf": EPS, "l2": 0.5, "l1": 6.0}[norm]
    attack = PGDAttack(model, eps, None, 4, norm=norm, seed=1)
    result = attack(images, labels, mask=mask)
    everywhere = mask.expand(images.shape)
    assert torch.equal(result[~everywhere], images[~everywhere])
    assert (result != images)[everywhere].float().mean() > (0.1 if norm == "l1" else 0.9)
    assert torch.equal(result, attack(images, labels, mask=mask.float()))
    assert result.stride() == images.stride()
    free = attack(images, labels, mask=torch.ones(shape))
    assert torch.equal(free, attack(images, labels))


@pytest.mark.parametrize("start", ["philox", "torch"])
def test_the_layout_inside_does_not_reach_the_start(start):
    """With fold the iterate lies as the network likes it; the draws are made as the images lie."""
    model, (images, labels) = cnn(), batch(8)
    results = []
    for fold in (True, False):
        torch.manual_seed(2)
        attack = PGDAttack(model, EPS, ALPHA, 0, start=start, fold=fold, restarts=2)
        results.append(attack(images, labels))
        assert results[-1].is_contiguous()
    assert torch.equal(*results) and not torch.equal(results[0], images)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_given_start(norm):
    model, (images, labels) = cnn(), batch(8)
    eps = {"linf": EPS, "l2": 0.5}[norm]
    start = (images + 0.9 * EPS * torch.rand_like(images)).clamp(0, 1)
    start = images + (start - images) * (0.1 if norm == "l2" else 1)
    kept = start.clone()
    for random_start in (True, False):
        attack = PGDAttack(model, eps, eps / 4, 3, random_start, norm=norm)
        got = attack(images, labels, init=start.double())
        expected = plain_pgd(model, images, labels, eps, eps / 4, 3, norm, start=start)
        assert (got - expected).abs().max() < 1e-6
    assert torch.equal(start, kept)
    # Far outside: projected before the first gradient.
    result = PGDAttack(model, eps, eps / 4, 0, norm=norm)(
        images, labels, init=torch.zeros_like(images)
    )
    order = torch.inf if norm == "linf" else 2
    assert (
        torch.linalg.vector_norm((result - images).flatten(1), order, dim=1) <= eps * (1 + 1e-6)
    ).all()


@pytest.mark.parametrize("start", ["philox", "torch"])
@pytest.mark.parametrize(
    "more",
    [{}, {"restarts": 3}, {"momentum": 1.0, "norm": "l2", "eps": 0.4}, {"early_stop": True}],
    ids=str,
)
def test_pieces_give_what_the_whole_gives(start, more):
    model, (images, labels) = cnn().double(), batch(17)
    images = images.double()
    eps = torch.linspace(0.005, 0.03, 17).reshape(-1, 1, 1, 1)
    mask = torch.rand(17, 1, 12, 12, generator=torch.Generator().manual_seed(1)) < 0.8
    results = []
    for split in ({}, {"batch_size": 5}, {"batch_size": 1}, {"max_bytes": 200_000}):
        torch.manual_seed(3)
        attack = PGDAttack(
            model, **{"eps": eps, "alpha": 0.005, "steps": 5, "start": start, **more, **split}
        )
        results.append(attack(images, labels, mask=mask))
    for result in results[1:]:
        assert torch.allclose(result, results[0], atol=1e-12, rtol=0)


def test_pieces_keep_layout_and_soft_labels_and_count_once():
    model, (images, labels) = cnn(), batch(9)
    soft = F.one_hot(labels, 10).float()
    given = images.contiguous(memory_format=torch.channels_last)
    whole = PGDAttack(model, EPS, ALPHA, 3, seed=0)(given, soft)
    split = PGDAttack(model, EPS, ALPHA, 3, seed=0, batch_size=4)(given, soft)
    assert split.stride() == given.stride() and (split != whole).float().mean() < 0.01
    assert list(pieces(9, 2, 4)) == [
        slice(0, 2),
        slice(2, 4),
        slice(4, 6),
        slice(6, 8),
        slice(8, 9),
    ]
    assert list(pieces(3, 9, 4)) == [slice(0, 1), slice(1, 2), slice(2, 3)]


def test_bad_values_anywhere_are_seen_before_the_first_piece():
    model, (images, labels) = cnn(), batch(9)
    calls = []
    images[8, 0, 0, 0] = 1.5
    attack = PGDAttack(model, EPS, ALPHA, 3, batch_size=2, loss=lambda z, y: calls.append(1))
    with pytest.raises(ValueError, match="images must lie in"):
        attack(images, labels)
    assert not calls


def peak_bytes(attack, images, labels):
    """The most that torch's allocator held above what it held before."""
    with torch.profiler.profile(profile_memory=True) as profile:
        attack(images, labels)
    held, peak = 0, 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize("fold", [True, False])
def test_max_bytes_limits_the_peak(fold):
    model, (images, labels) = cnn(), batch(256)
    make = lambda **k: PGDAttack(model, EPS, ALPHA, 2, seed=0, fold=fold, **k)  # noqa: E731
    whole = peak_bytes(make(), images, labels)
    inputs = (
        4 * images.numel() * 4
    )  # of the whole input: a copy, its pieces' results, and these joined
    limit = whole // 6
    limited = make(max_bytes=limit)
    assert peak_bytes(limited, images, labels) <= limit * 1.25 + inputs < whole
    # An honest estimate: neither far below nor far above what was measured.
    estimate = limited._prepared[1]._row_bytes * 256
    assert 0.5 * whole < estimate < 2.5 * whole


@pytest.mark.parametrize(
    "output", ["logits", 1, lambda out: out["logits"]], ids=["key", "index", "function"]
)
def test_output_says_where_the_logits_are(output):
    net, (images, labels) = cnn(), batch(8)

    def model(x):
        z = net(x)
        return (z * 0, z) if output == 1 else {"features": z * 0, "logits": z}

    got = PGDAttack(model, EPS, ALPHA, 3, False, output=output)(images, labels)
    assert torch.equal(got, plain_pgd(net, images, labels, EPS, ALPHA, 3))


OPTIONS = {
    "momentum": {"momentum": 1.0},
    "eot": {"eot": 2},
    "early stop": {"early_stop": True, "compact_every": 1},
    "targets": {"targets": 2, "restarts": 2},
    "cycles": {"steps": 33},
    "split": {"batch_size": 3},
    "bytes": {"max_bytes": 1},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_model_is_left_as_found(name):
    model, (images, labels) = cnn().train(), batch(6)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = snapshot(model)
    result = PGDAttack(model, **{"steps": 4, **OPTIONS[name]})(images, labels)
    assert_untouched(model, before)
    assert not result.requires_grad and result.is_leaf


@pytest.mark.parametrize("name", [n for n in OPTIONS if n != "momentum"])
def test_each_step_uses_a_fresh_gradient(name):
    """A function that bends: a stale gradient overshoots."""

    def model(x):
        bent = -(x - 0.55).abs().sum(1)
        return torch.stack((bent * 0 + 10, bent, bent - 1), 1)

    images = torch.full((4, 5), 0.5)
    labels = torch.zeros(4, dtype=torch.long)
    attack = PGDAttack(model, 0.2, 0.04, **{"steps": 7, "seed": 0, **OPTIONS[name]})
    assert (attack(images, labels) - 0.55).abs().max() <= 0.04 + 1e-6


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_ball_and_box_with_any_options(data):
    norm = data.draw(st.sampled_from(["linf", "l2", "l1"]))
    eps = data.draw(st.sampled_from([0.0, 0.01, 0.3, 2.0]))
    lo, hi = data.draw(st.sampled_from([(0.0, 1.0), (0.2, 0.7), (-1.0, 3.0)]))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
    options = {
        "steps": data.draw(st.sampled_from([0, 1, 4, 34])),
        "momentum": data.draw(st.sampled_from([0.0, 0.9])),
        "eot": data.draw(st.sampled_from([1, 2])),
        "early_stop": data.draw(st.booleans()),
        "targets": data.draw(st.sampled_from([0, 2])),
        "restarts": data.draw(st.sampled_from([1, 3])),
        "batch_size": data.draw(st.sampled_from([None, 1, 4])),
        "compact_every": data.draw(st.sampled_from([1, 5])),
        "fold": data.draw(st.booleans()),
        "precision": data.draw(st.sampled_from(["fp32", "bf16"])),
    }
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    images = (torch.rand(5, 20, generator=generator) * (hi - lo) + lo).to(dtype)
    images = images.clamp(torch.tensor(lo, dtype=dtype), torch.tensor(hi, dtype=dtype))
    images = images.double().clamp(lo, hi).to(dtype) if dtype == torch.float64 else images
    mask = torch.rand(5, 20, generator=generator) < 0.8
    attack = PGDAttack(mlp(), eps, 0.1, norm=norm, bounds=(lo, hi), seed=1, check=False, **options)
    result = attack(images, torch.arange(5) % 4, mask=mask)
    assert result.dtype == dtype and result.shape == images.shape
    assert torch.equal(result[~mask], images[~mask])
    slack = 1e-6 if dtype != torch.bfloat16 else 0.01
    assert result.double().min() >= lo - slack and result.double().max() <= hi + slack
    delta = (result.double() - images.double()).flatten(1)
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    limit = torch.tensor(eps).item() * (1 + 1e-5) + (6e-8 if norm == "linf" else 0)
    assert torch.linalg.vector_norm(delta, order, dim=1).max() <= limit


def test_nonfinite_entries_of_all_pieces_are_counted():
    images, labels = batch(9)
    images[4:] = 0.0

    def model(x):  # the square root has no finite gradient at 0
        return x.sqrt().flatten(1)[:, :10]

    attack = PGDAttack(model, EPS, ALPHA, 1, random_start=False, check=False)
    for attack.batch_size in (None, 2):
        attack(images, labels)
        assert attack.nonfinite.tolist() == [images[0].numel() * 5]


def test_an_entry_that_is_not_finite_spoils_one_step_of_the_velocity():
    momentum, ones = Momentum(0.5), torch.ones(2, 4)
    spoilt = ones.clone()
    spoilt[0, 1] = torch.nan
    assert momentum(spoilt, None).isfinite().sum() == 7
    second = momentum(ones, None)
    assert second[0, 1] == 1.0 and (second[1] == 1.5).all()


def test_runs_of_a_model_that_draws_are_judged_by_as_many_passes():
    model, (images, labels) = Noisy(0.05), batch(8)
    judged = []
    model.register_forward_hook(lambda *_: judged.append(not torch.is_grad_enabled()))
    PGDAttack(model, EPS, ALPHA, 2, restarts=3, eot=4, fold=False)(images, labels)
    assert (sum(judged), len(judged)) == (3 * 4, 3 * (2 + 1) * 4)
