"""The functions of papers' repositories, against loops by hand written from their description."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advfast.compat import research
from advfast.models import Normalise

from ..attacks.networks import batch, cnn
from ..attacks.test_contract import assert_untouched, prepared, snapshot

EPS, ALPHA = 8 / 255, 2 / 255
MU = torch.tensor([0.4, 0.5, 0.6]).reshape(3, 1, 1)
SIGMA = torch.tensor([0.2, 0.3, 0.25]).reshape(3, 1, 1)


def lengths(v):
    return v.flatten(1).norm(dim=1).reshape(-1, *[1] * (v.dim() - 1))


def losses(model, images, labels):
    with torch.no_grad():
        return F.cross_entropy(model(images), labels, reduction="none")


def delta_by_hand(model, x0, delta, loss, eps, alpha, steps, lo, hi, norm="linf", stop=None):
    """The published loops keep the perturbation, not the image, and confine it to ball, then box."""
    delta = torch.max(torch.min(delta, hi - x0), lo - x0)
    for _ in range(steps):
        d = delta.clone().requires_grad_()
        logits = model(x0 + d)
        (grad,) = torch.autograd.grad(loss(logits), d)
        if norm == "linf":
            moved = torch.max(torch.min(delta + alpha * grad.sign(), eps), -eps)
        else:
            moved = delta + alpha * grad / (lengths(grad) + 1e-10)
            moved = moved * (eps / lengths(moved)).clamp(max=1)
        moved = torch.max(torch.min(moved, hi - x0), lo - x0)
        going = torch.ones(len(x0)) if stop is None else (logits.argmax(1) == stop).float()
        delta = torch.where(going.bool().reshape(-1, 1, 1, 1), moved, delta)
    return delta


def rice_by_hand(model, x, y, eps, alpha, steps, restarts, norm, early_stop=False, loss=None):
    loss = loss or (lambda logits: F.cross_entropy(logits, y, reduction="none"))
    best, highest = torch.zeros_like(x), torch.zeros(len(x), dtype=x.dtype)
    zero, one = torch.zeros(()).to(x), torch.ones(()).to(x)
    for _ in range(restarts):
        if norm == "l_inf":
            delta = torch.zeros_like(x).uniform_(-eps, eps)
        else:
            delta = torch.zeros_like(x).normal_()
            delta *= torch.zeros_like(lengths(delta)).uniform_(0, 1) / lengths(delta) * eps
        delta = delta_by_hand(
            model, x, delta, lambda logits: loss(logits).sum(), one * eps, alpha, steps, zero, one,
            "linf" if norm == "l_inf" else "l2", y if early_stop else None,
        )  # fmt: skip
        with torch.no_grad():
            value = loss(model(x + delta))
        best = torch.where((value >= highest).reshape(-1, 1, 1, 1), delta, best)
        highest = torch.max(highest, value)
    return best


# The published loops add the perturbation to the image anew in every pass and we keep the image: the two round
# differently in the last bit, which in float64 no sign notices.
@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize(("norm", "eps", "alpha"), [("l_inf", EPS, ALPHA), ("l_2", 0.5, 0.1)])
def test_rice(norm, eps, alpha, restarts, early_stop):
    model, (images, labels) = cnn().double(), batch(32)
    images = images.double()
    torch.manual_seed(5)
    expected = rice_by_hand(
        model, images, labels, eps, alpha, 10, restarts, norm, early_stop=early_stop
    )
    torch.manual_seed(5)
    got = research.attack_pgd(
        model, images, labels, eps, alpha, 10, restarts, norm, early_stop, fold=False
    )
    assert (got - expected).abs().max() < (1e-14 if norm == "l_inf" else 1e-8)
    if early_stop:
        plain = research.attack_pgd(model, images, labels, eps, alpha, 10, restarts, norm)
        assert (got.abs().mean((1, 2, 3)) < plain.abs().mean((1, 2, 3)) - 1e-4).any()


@pytest.mark.parametrize("fold", [False, True])
def test_rice_in_float32(fold):
    model, (images, labels) = cnn(), batch(32)
    torch.manual_seed(5)
    expected = rice_by_hand(model, images, labels, EPS, ALPHA, 10, 1, "l_inf")
    torch.manual_seed(5)
    got = research.attack_pgd(model, images, labels, EPS, ALPHA, 10, 1, "l_inf", fold=fold)
    flipped = ((got - expected).abs() > 1e-7).double().mean()
    assert flipped < 1e-3 if fold else flipped == 0
    assert (
        got.abs().max() <= EPS + 1e-7
        and ((images + got).clamp(0, 1) - images - got).abs().max() < 1e-7
    )
    gap = losses(model, images + got, labels) - losses(model, images + expected, labels)
    assert gap.abs().max() < 1e-3


def test_rice_mixup():
    model, (images, labels) = cnn().double(), batch(32)
    images, other, lam = images.double(), labels.flip(0), 0.3

    def mixed(logits):
        one, two = (F.cross_entropy(logits, y, reduction="none") for y in (labels, other))
        return lam * one + (1 - lam) * two

    torch.manual_seed(5)
    expected = rice_by_hand(model, images, labels, EPS, ALPHA, 10, 2, "l_inf", loss=mixed)
    torch.manual_seed(5)
    got = research.attack_pgd(
        model, images, labels, EPS, ALPHA, 10, 2, "l_inf", mixup=True, y_a=labels, y_b=other,
        lam=lam, fold=False,
    )  # fmt: skip
    assert (got - expected).abs().max() < 1e-14
    with pytest.raises(ValueError, match="mixup=True needs y_a, y_b and lam"):
        research.attack_pgd(model, images, labels, EPS, ALPHA, 1, 1, "l_inf", mixup=True)


def test_normalize_stands_for_the_global():
    model, (images, labels) = cnn(), batch()
    settings = (images, labels, EPS, ALPHA, 5, 1, "l_inf")
    results = []
    for normalize in (Normalise([0.5] * 3, [0.25] * 3), lambda x: (x - 0.5) / 0.25):
        for net in (model, lambda x: model(x)):
            torch.manual_seed(5)
            results.append(research.attack_pgd(net, *settings, normalize=normalize, fold=False))
    torch.manual_seed(5)
    inside = nn.Sequential(Normalise([0.5] * 3, [0.25] * 3), model)
    expected = research.attack_pgd(inside, *settings, fold=False)
    assert all(torch.equal(result, expected) for result in results)
    torch.manual_seed(5)
    assert not torch.equal(research.attack_pgd(model, *settings, fold=False), expected)


@pytest.mark.parametrize("restarts", [1, 3])
def test_fast(restarts):
    model, (images, labels) = cnn().double(), batch(32)
    mu, sigma = MU.double(), SIGMA.double()
    x, lo, hi = (images.double() - mu) / sigma, (0 - mu) / sigma, (1 - mu) / sigma
    eps, alpha = EPS / sigma, ALPHA / sigma
    torch.manual_seed(5)
    best, highest = torch.zeros_like(x), torch.zeros(len(x)).double()
    for _ in range(restarts):
        delta = torch.zeros_like(x)
        for channel in range(3):
            delta[:, channel].uniform_(-eps[channel].item(), eps[channel].item())
        delta = delta_by_hand(
            model, x, delta, lambda logits: F.cross_entropy(logits, labels), eps, alpha, 10, lo, hi, stop=labels,
        )  # fmt: skip
        value = losses(model, x + delta, labels)
        best = torch.where((value >= highest).reshape(-1, 1, 1, 1), delta, best)
        highest = torch.max(highest, value)
    torch.manual_seed(5)
    got = research.attack_pgd(
        model, x, labels, eps, alpha, 10, restarts, None, lower_limit=lo, upper_limit=hi, fold=False
    )
    assert (got - best).abs().max() < 1e-14
    assert (got.abs() <= eps + 1e-12).all()
    assert (x + got >= lo - 1e-12).all() and (x + got <= hi + 1e-12).all()


def test_fast_with_numbers_is_rice_with_early_stop():
    model, (images, labels) = cnn(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    results = []
    for call in (
        lambda: research.attack_pgd(model, images, labels, EPS, ALPHA, 5, 1),
        lambda: research.attack_pgd(model, images, labels, EPS, ALPHA, 5, 1, optimizer),
        lambda: research.attack_pgd(model, images, labels, EPS, ALPHA, 5, 1, opt=optimizer),
        lambda: research.attack_pgd_fast(model, images, labels, EPS, ALPHA, 5, 1, optimizer),
        lambda: research.attack_pgd(model, images, labels, EPS, ALPHA, 5, 1, "l_inf", True),
        lambda: research.attack_pgd(
            model, images, labels, torch.tensor(EPS), torch.full((3,), ALPHA), 5, 1, "l_inf", True
        ),
        lambda: research.attack_pgd_rice(
            model, images, labels, EPS, ALPHA, 5, 1, norm="l_inf", early_stop=True
        ),
    ):
        torch.manual_seed(5)
        results.append(call())
    assert all(torch.equal(result, results[0]) for result in results)
    torch.manual_seed(5)
    assert not torch.equal(
        research.attack_pgd(model, images, labels, EPS, ALPHA, 5, 1, "l_inf"), results[0]
    )


def test_images_that_round_beyond_the_limits():
    model, (images, labels) = cnn(), batch()
    images = images.round()
    x, lo, hi = (images - MU) / SIGMA, (0 - MU) / SIGMA, (1 - MU) / SIGMA
    x = x * (1 + 1e-7)
    got = research.attack_pgd(
        model, x, labels, EPS / SIGMA, ALPHA / SIGMA, 2, 1, lower_limit=lo, upper_limit=hi
    )
    assert got.abs().max() > 0.01


@pytest.mark.parametrize("mode", ["train", "eval", "frozen"])
def test_model_is_left_as_found(mode):
    model, (images, labels) = prepared(mode), batch()
    before = snapshot(model)
    research.attack_pgd(model, images, labels, EPS, ALPHA, 2, 2, "l_inf")
    research.attack_pgd(model, images, labels, EPS, ALPHA, 2, 1)
    research.pgd_whitebox(model, images, labels)
    research.LinfPGDAttack(model, nb_iter=2).perturb(images, labels)
    assert_untouched(model, before)


def test_modes_are_those_of_the_caller():
    model, (images, labels) = cnn(dropout=0.0), batch()
    results = {}
    for training in (False, True):
        for bn in (None, "eval"):
            model.train(training)
            torch.manual_seed(5)
            results[training, bn] = research.attack_pgd(
                model, images, labels, EPS, ALPHA, 3, 1, "l_inf", bn=bn
            )
    assert torch.equal(results[False, None], results[True, "eval"])
    assert not torch.equal(results[True, None], results[True, "eval"])
    before = model[1].running_mean.clone()
    research.attack_pgd(model, images, labels, EPS, ALPHA, 3, 1, "l_inf", bn="train-update")
    assert not torch.equal(model[1].running_mean, before)


def test_errors_of_attack_pgd():
    model, (images, labels) = cnn(), batch()
    eps = torch.full((3, 1, 1), EPS)
    for call, message in (
        ((EPS, ALPHA, 1, 1, "l_1"), "norm must be 'l_inf' or 'l_2', got 'l_1'"),
        ((EPS, ALPHA, 1, 0, "l_inf"), "restarts must be an integer >= 1, got 0"),
        ((eps, eps, 1, 1), "lower_limit and upper_limit must be given"),
        ((eps[:2], ALPHA, 1, 1, None, 0, 1), "got 7|takes 8 arguments, got 10"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            research.attack_pgd(model, images, labels, *call)
    with pytest.raises(ValueError, match="a number or 3 values, one a channel, got 2"):
        research.attack_pgd(
            model, images, labels, eps[:2], ALPHA, 1, 1, lower_limit=0.0, upper_limit=1.0
        )
    with pytest.raises(TypeError, match=r"use torch\.manual_seed"):
        research.attack_pgd(model, images, labels, EPS, ALPHA, 1, 1, seed=1)


# --- TRADES ---


def trades_by_hand(model, x, y, step, eps, steps, beta, distance):
    """Crafts in eval mode, with the clean logits computed in every step; then three passes in train mode."""
    model.eval()
    start = x + 0.001 * torch.randn_like(x)
    if distance == "l_2":
        start = x + 0.001 * torch.randn_like(x)
    adv = start.clamp(0, 1)
    for _ in range(steps):
        adv.requires_grad_()
        q, p = model(adv).log_softmax(1), model(x).softmax(1)
        (grad,) = torch.autograd.grad(F.kl_div(q, p, reduction="sum"), adv)
        adv = adv.detach()
        if distance == "l_inf":
            adv = adv + step * grad.sign()
            adv = torch.min(torch.max(adv, x - eps), x + eps).clamp(0, 1)
        else:
            adv = (adv + 2 * eps / steps * grad / lengths(grad)).clamp(0, 1)
            adv = x + (adv - x) * (eps / lengths(adv - x)).clamp(max=1)
    model.train()
    adv = adv.clamp(0, 1).detach()
    natural = model(x)
    robust = F.kl_div(model(adv).log_softmax(1), model(x).softmax(1), reduction="sum") / len(x)
    return F.cross_entropy(natural, y) + beta * robust


@pytest.mark.parametrize("repeat_clean", [True, False])
@pytest.mark.parametrize(("distance", "eps"), [("l_inf", 0.031), ("l_2", 0.5)])
def test_trades_loss(distance, eps, repeat_clean):
    images, labels = batch(16)
    images, found = images.double(), []
    for ours in (False, True):
        model = cnn(dropout=0.0).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
        torch.manual_seed(5)
        if ours:
            loss = research.trades_loss(
                model, images, labels, optimizer, 0.007, eps, 10, 6.0, distance, fold=False,
                repeat_clean=repeat_clean,
            )  # fmt: skip
            assert model[0].weight.grad is None
        else:
            loss = trades_by_hand(model, images, labels, 0.007, eps, 10, 6.0, distance)
            optimizer.zero_grad()
        assert all(module.training for module in model.modules())
        loss.backward()
        found.append(
            (loss.detach(), [p.grad for p in model.parameters()], dict(model.named_buffers()))
        )
    tolerance = (
        {"rtol": 1e-9, "atol": 1e-11} if distance == "l_inf" else {"rtol": 1e-6, "atol": 1e-8}
    )
    assert found[0][0].shape == () and found[0][0] > 0
    torch.testing.assert_close(found[1][0], found[0][0], **tolerance)
    torch.testing.assert_close(found[1][1], found[0][1], **tolerance)
    same = torch.allclose(found[0][2]["1.running_mean"], found[1][2]["1.running_mean"])
    assert same == repeat_clean


def test_trades_loss_defaults_and_modes():
    images, labels = batch(16)
    torch.manual_seed(5)
    expected = research.trades_loss(
        cnn(dropout=0.0), images, labels, None, 0.003, 0.031, 10, 1.0, "l_inf"
    )
    torch.manual_seed(5)
    assert torch.equal(research.trades_loss(cnn(dropout=0.0), images, labels, None), expected)
    torch.manual_seed(5)
    exact = research.trades_loss(cnn(dropout=0.0), images, labels, None, fold=False)
    torch.testing.assert_close(exact, expected, rtol=1e-4, atol=1e-5)
    model = prepared("frozen")
    research.trades_loss(model, images, labels, None)
    assert model.training and not model[1].training
    with pytest.raises(ValueError, match="distance must be 'l_inf' or 'l_2', got 'l_1'"):
        research.trades_loss(model, images, labels, None, distance="l_1")


def test_trades_trains():
    model, (images, labels) = cnn(dropout=0.0), batch(32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    history = []
    for _ in range(15):
        loss = research.trades_loss(model, images, labels, optimizer, 0.01, 0.03, 3, beta=6.0)
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < history[0] / 2


# --- evaluation and classes ---


@pytest.mark.parametrize("random", [True, False])
def test_whitebox(random):
    model, (images, labels) = cnn(), batch(64)
    labels = torch.where(torch.arange(64) % 4 > 0, model(images).argmax(1), labels)
    torch.manual_seed(5)
    x = images + torch.zeros_like(images).uniform_(-0.02, 0.02) * random
    x = x.clamp(0, 1)
    for _ in range(20):
        x.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x), labels), x)
        x = (images + (x.detach() + 0.003 * grad.sign() - images).clamp(-0.02, 0.02)).clamp(0, 1)
    expected = [(model(v).argmax(1) != labels).float().sum() for v in (images, x)]
    model.train()
    torch.manual_seed(5)
    got = research._pgd_whitebox(
        model,
        images,
        labels,
        epsilon=0.02,
        num_steps=20,
        step_size=0.003,
        random=random,
        fold=False,
    )
    assert list(got) == expected and got[0].dtype == torch.float32
    assert 0 < expected[0] < expected[1]


def perturb_by_hand(model, x, y, eps, step, steps, norm, kind, targeted=False):
    delta = torch.zeros_like(x)
    if kind == "normal":
        delta = 0.001 * torch.randn_like(x)
    elif kind == "uniform" and norm == "linf":
        delta = delta.uniform_(-1, 1) * eps
    elif kind == "uniform":
        delta = delta.uniform_(0, 1) - x
        delta = delta * (eps / lengths(delta)).clamp(max=1)
    z = (x + delta).clamp(0, 1)
    for _ in range(steps):
        z.requires_grad_()
        loss = F.cross_entropy(model(z), y, reduction="sum")
        (grad,) = torch.autograd.grad(-loss if targeted else loss, z)
        z = z.detach()
        if norm == "linf":
            z = (x + (z + step * grad.sign() - x).clamp(-eps, eps)).clamp(0, 1)
        else:
            z = (z + step * grad / lengths(grad)).clamp(0, 1)
            z = x + (z - x) * (eps / lengths(z - x)).clamp(max=1)
    return z


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("kind", ["uniform", "normal", None])
@pytest.mark.parametrize(("norm", "eps", "step"), [("linf", 0.03, 0.01), ("l2", 0.5, 0.1)])
def test_perturb(norm, eps, step, kind, targeted):
    model, (images, labels) = cnn(), batch(32)
    torch.manual_seed(5)
    expected = perturb_by_hand(model, images, labels, eps, step, 5, norm, kind, targeted)
    make = research.LinfPGDAttack if norm == "linf" else research.L2PGDAttack
    attack = make(
        model,
        None,
        eps,
        5,
        step,
        kind is not None,
        0.0,
        1.0,
        targeted,
        kind or "uniform",
        fold=False,
    )
    torch.manual_seed(5)
    x_adv, delta = attack.perturb(images, labels)
    if norm == "linf":
        assert torch.equal(x_adv, expected)
    assert (x_adv - expected).abs().max() < 1e-6 and torch.equal(delta, x_adv - images)


def test_perturb_settings():
    model, (images, labels) = cnn(), batch(32)
    attack = research.LinfPGDAttack(model, nb_iter=3, rand_init=False, with_delta=False)
    assert (attack.eps, attack.eps_iter, research.LinfPGDAttack(model).nb_iter) == (0.3, 0.01, 40)
    predicted = model(images).argmax(1)
    assert torch.equal(attack.perturb(images), attack.perturb(images, predicted))
    summed = nn.CrossEntropyLoss(reduction="sum")
    other = research.LinfPGDAttack(model, summed, nb_iter=3, rand_init=False, with_delta=False)
    assert torch.equal(other.perturb(images, labels), attack.perturb(images, labels))
    attack.eps = torch.linspace(0.0, 0.1, 32)
    reach = (attack.perturb(images, labels) - images).abs().flatten(1).amax(1)
    assert (reach <= attack.eps + 1e-7).all() and reach[-1] > 0.02 and reach[0] == 0
    attack.rand_init, attack.rand_init_type = True, "none"
    with pytest.raises(ValueError, match="'uniform' or 'normal', got 'none'"):
        attack.perturb(images, labels)


def test_delta_is_from_the_given_image():
    model, (images, labels) = cnn(), batch(8)
    images[0, 0, 0, 0] = 1.5
    attack = research.LinfPGDAttack(model, nb_iter=2, rand_init=False)
    x_adv, delta = attack.perturb(images, labels)
    assert x_adv.max() <= 1 and torch.equal(delta, x_adv - images)
