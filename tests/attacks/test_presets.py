"""FGSM, FGSM-RS, BIM, MI-FGSM and TPGD: each is the loop of its paper."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from advfast import PGDAttack, attacks
from advfast.attacks import BIM, FGSM, FGSMRS, MIFGSM, TPGD, GaussianPGD, losses

from .networks import batch, cnn, plain_pgd

PRESETS = (FGSM, FGSMRS, BIM, MIFGSM, TPGD, GaussianPGD)
EPS, ALPHA = 8 / 255, 2 / 255
NET = cnn()
IMAGES, LABELS = batch()


def momentum_by_hand(model, images, labels, eps, alpha, steps, decay, sign=1.0):
    """As in Dong et al., algorithm 1, with the mean in place of the sum: the direction is the same."""
    x, kept = images.clone(), torch.zeros_like(images)
    for _ in range(steps):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(sign * F.cross_entropy(model(x), labels), x)
        kept = decay * kept + gradient / gradient.abs().mean((1, 2, 3), keepdim=True)
        x = images + (x.detach() + alpha * kept.sign() - images).clamp(-eps, eps)
        x = x.clamp(0, 1)
    return x.detach()


@pytest.mark.parametrize("targeted", [False, True])
def test_fgsm(targeted):
    got = FGSM(NET, EPS, targeted=targeted, fold=False)(IMAGES, LABELS)
    assert torch.equal(got, plain_pgd(NET, IMAGES, LABELS, EPS, EPS, 1, targeted=targeted))
    x = IMAGES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(NET(x), LABELS), x)
    by_hand = (IMAGES + (-1 if targeted else 1) * EPS * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(got, by_hand, rtol=0, atol=1e-7)


def test_fgsm_of_l2_is_one_step_along_the_gradient():
    got = FGSM(NET, 0.5, norm="l2", fold=False)(IMAGES, LABELS)
    expected = plain_pgd(NET, IMAGES, LABELS, 0.5, 0.5, 1, norm="l2")
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("targeted", [False, True])
def test_fgsm_rs(targeted):
    attack = FGSMRS(NET, EPS, targeted=targeted, seed=4, fold=False)
    start = PGDAttack(NET, EPS, steps=0, seed=4)(IMAGES, LABELS)
    assert 0.9 * EPS < (start - IMAGES).abs().max() <= EPS * (1 + 1e-6)
    expected = plain_pgd(NET, IMAGES, LABELS, EPS, 1.25 * EPS, 1, start=start, targeted=targeted)
    assert torch.equal(attack(IMAGES, LABELS), expected)
    smaller = FGSMRS(NET, EPS, EPS, targeted=targeted, seed=4, fold=False)
    expected = plain_pgd(NET, IMAGES, LABELS, EPS, EPS, 1, start=start, targeted=targeted)
    assert torch.equal(smaller(IMAGES, LABELS), expected)


@pytest.mark.parametrize("targeted", [False, True])
def test_bim(targeted):
    got = BIM(NET, EPS, ALPHA, 4, targeted=targeted, fold=False)(IMAGES, LABELS)
    assert torch.equal(got, plain_pgd(NET, IMAGES, LABELS, EPS, ALPHA, 4, targeted=targeted))


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_mi_fgsm(targeted, decay):
    got = MIFGSM(NET, EPS, ALPHA, 5, decay, targeted=targeted, fold=False)(IMAGES, LABELS)
    sign = -1.0 if targeted else 1.0
    expected = momentum_by_hand(NET, IMAGES, LABELS, EPS, ALPHA, 5, decay, sign)
    # The mean is taken in another order: now and then the sign of a sum near zero.
    assert (got - expected).abs().lt(1e-6).float().mean() > 0.999
    bim = BIM(NET, EPS, ALPHA, 5, targeted=targeted, fold=False)(IMAGES, LABELS)
    assert (got - bim).abs().gt(1e-3).float().mean() > 0.01


def test_tpgd():
    start = TPGD(NET, EPS, steps=0, seed=4)(IMAGES)
    noise = (start - IMAGES)[(IMAGES > 0.01) & (IMAGES < 0.99)] / 0.001
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    assert abs((noise.abs() < 0.6745).float().mean() - 0.5) < 0.02  # half of a normal distribution
    assert 3 < noise.abs().max() < 6
    with torch.no_grad():
        clean = NET(IMAGES)
    expected = plain_pgd(
        NET, IMAGES, clean, EPS, ALPHA, 4, start=start, loss=lambda z, clean: losses.kl(z, clean)
    )
    got = TPGD(NET, EPS, ALPHA, 4, seed=4, fold=False)(IMAGES)
    assert torch.equal(got, expected)
    assert torch.equal(TPGD(NET, EPS, ALPHA, 4, seed=4, fold=False)(IMAGES, LABELS), expected)


def test_tpgd_draws_as_torchattacks_does():
    torch.manual_seed(3)
    start = TPGD(NET, EPS, steps=0, start="torch")(IMAGES)
    torch.manual_seed(3)
    assert torch.equal(start, (IMAGES + 0.001 * torch.randn_like(IMAGES)).clamp(0, 1))


def test_the_start_of_tpgd_belongs_to_the_sample():
    ids = torch.arange(16) + 100
    attack = TPGD(NET, EPS, steps=0, seed=4, restarts=1)
    whole = attack(IMAGES, sample_ids=ids)
    parts = [attack(IMAGES[part], sample_ids=ids[part]) for part in (slice(5), slice(5, 16))]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(attack(IMAGES), whole)
    assert not torch.equal(TPGD(NET, EPS, steps=0, seed=5)(IMAGES, sample_ids=ids), whole)
    noise = (whole - IMAGES)[:, :, 4:8].flatten(1)
    assert (torch.corrcoef(noise) - torch.eye(16)).abs().max() < 0.6  # each another one


def test_a_draw_at_the_end_of_the_interval_is_no_jump(monkeypatch):
    """It would be infinite as a normal number, and the start at the edge of the ball."""
    monkeypatch.setattr(
        "advfast.attacks.gaussian.random_start", lambda x0, **_: -torch.ones_like(x0)
    )
    start = TPGD(NET, EPS, steps=0, seed=4)(IMAGES)
    assert (start - IMAGES).abs().max() < 0.006 < EPS


def test_gaussian_pgd_is_pgd_from_the_start_of_tpgd():
    start = TPGD(NET, EPS, steps=0, seed=4)(IMAGES)
    assert 0.0005 < (start - IMAGES).std() < 0.0015
    got = GaussianPGD(NET, EPS, ALPHA, 4, seed=4, fold=False)(IMAGES, LABELS)
    assert torch.equal(got, plain_pgd(NET, IMAGES, LABELS, EPS, ALPHA, 4, start=start))


def test_restarts_of_tpgd_differ():
    one = TPGD(NET, 0.1, 0.02, 3, seed=4)(IMAGES, LABELS)
    five = TPGD(NET, 0.1, 0.02, 3, seed=4, restarts=5)(IMAGES, LABELS)
    broken = [(NET(x).argmax(1) != LABELS) for x in (one, five)]
    assert (broken[1] | ~broken[0]).all() and not torch.equal(one, five)


@pytest.mark.parametrize("preset", [FGSM, FGSMRS])
def test_the_step_follows_a_radius_that_changes(preset):
    attack = preset(NET, 0.01, seed=1)
    first = attack(IMAGES, LABELS)
    attack.eps = 0.05
    second = attack(IMAGES, LABELS)
    assert torch.equal(second, preset(NET, 0.05, seed=1)(IMAGES, LABELS))
    assert (first - IMAGES).abs().max() < 0.0101 < 0.049 < (second - IMAGES).abs().max()


@pytest.mark.parametrize("preset", PRESETS)
def test_each_raises_its_loss(preset):
    """Against standing still, and against noise of the same size."""
    got = preset(NET, EPS, seed=0)(IMAGES, LABELS)
    noise = PGDAttack(NET, EPS, steps=0, seed=0)(IMAGES, LABELS)
    with torch.no_grad():
        clean = NET(IMAGES)
        reference = clean if preset is TPGD else LABELS
        loss = losses.kl if preset is TPGD else losses.ce
        value, *others = (loss(z, reference) for z in (NET(got), NET(noise), clean))
    for other in others:
        assert (value > other).float().mean() > 0.9


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@settings(max_examples=8, deadline=None)
@given(eps=st.floats(0, 0.5), seed=st.integers(0, 2**62))
def test_ball_and_box(preset, dtype, eps, seed):
    images = IMAGES[:4].to(dtype)
    net = NET.double() if dtype == torch.float64 else NET.float()
    try:
        got = preset(net, eps, seed=seed)(images, LABELS[:4])
    finally:
        NET.float()
    assert got.dtype == dtype and got.shape == images.shape
    assert got.min() >= 0 and got.max() <= 1
    assert (got.double() - images.double()).abs().max() <= eps * (1 + 1e-6) + 1e-7


@pytest.mark.parametrize("preset", PRESETS)
def test_shows_copies_and_pickles(preset):
    attack = preset(NET, 0.02, seed=1)
    expected = attack(IMAGES, LABELS)
    assert repr(attack).startswith(f"{preset.__name__}(model=Sequential, ")
    assert "eps=0.02" in repr(attack) and "norm='linf'" in repr(attack)
    for other in (copy.deepcopy(attack), pickle.loads(pickle.dumps(attack)), copy.copy(attack)):
        assert type(other) is preset and repr(other) == repr(attack)
        assert torch.equal(other(IMAGES, LABELS), expected)
    assert getattr(attacks, preset.__name__) is preset and issubclass(preset, PGDAttack)
    assert "arXiv" in preset.__doc__ or "et al." in preset.__doc__


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FGSM(NET, -1), ValueError, "eps must be a finite number >= 0"),
        (lambda: FGSM(NET, EPS, nrom="l2"), TypeError, "unexpected keyword argument 'nrom'"),
        (lambda: FGSM(NET, EPS, steps=3), TypeError, "steps"),
        (lambda: FGSM(NET, EPS, restarts=2), ValueError, "repeats the same run"),
        (lambda: BIM(NET, loss="kl"), ValueError, "no gradient at the clean image"),
        (lambda: MIFGSM(NET, momentum=-1.0), ValueError, "momentum must be"),
        (lambda: TPGD(NET, std=0.0), ValueError, "std must be a finite number > 0 .* got 0.0"),
        (lambda: TPGD(NET, targeted=True), ValueError, "does not use labels"),
        (lambda: TPGD(NET, loss="ce"), TypeError, "loss"),
    ],
)
def test_bad_settings(make, error, message):
    with pytest.raises(error, match=message):
        make()
