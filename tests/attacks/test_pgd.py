"""PGDAttack: equal to the hand-written loop, inside ball and box, and every option does what it says."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import advfast
from advfast import PGDAttack

from .networks import batch, cnn, plain_pgd

EPS, ALPHA = 8 / 255, 2 / 255
ATTACK_IMPLS = [i for i in ("reference", "cpp") if i in advfast.available_impls("pgd_step_", "cpu")]


@pytest.fixture(params=ATTACK_IMPLS)
def impl(request):
    return request.param


# --- the same as the plain loop --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 16, 33])
@pytest.mark.parametrize("fold", [True, False])
def test_linf_equals_the_plain_loop_bit_for_bit(impl, n, fold):
    model, (images, labels) = cnn(), batch(n)
    got = PGDAttack(model, EPS, ALPHA, 10, False, fold=fold, impl=impl)(images, labels)
    assert torch.equal(got, plain_pgd(model, images, labels, EPS, ALPHA, 10))


@pytest.mark.parametrize("order", ["ball-box", "box-ball-box"])
def test_l2_equals_the_plain_loop(impl, order):
    model, (images, labels) = cnn(), batch()
    got = PGDAttack(model, 0.5, 0.1, 10, False, norm="L2", l2_order=order, impl=impl)(
        images, labels
    )
    expected = plain_pgd(model, images, labels, 0.5, 0.1, 10, "l2", order)
    assert (got - expected).abs().max() < 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_float64_equals_the_plain_loop(impl, norm):
    model, (images, labels) = cnn().double(), batch()
    images = images.double()
    eps, alpha = (EPS, ALPHA) if norm == "linf" else (0.5, 0.1)
    got = PGDAttack(model, eps, alpha, 10, False, norm=norm, impl=impl)(images, labels)
    expected = plain_pgd(model, images, labels, eps, alpha, 10, norm)
    # For l2 the hand-written loop adds 1e-10 to the norm of the gradient.
    assert got.dtype == torch.float64
    assert (got - expected).abs().max() < (1e-12 if norm == "linf" else 1e-9)


def test_float32_gives_the_losses_of_float64(impl):
    model, (images, labels) = cnn(), batch()
    loss = {}
    for dtype in (torch.float32, torch.float64):
        adversarial = PGDAttack(model.to(dtype), EPS, ALPHA, 10, False, impl=impl)(
            images.to(dtype), labels
        )
        loss[dtype] = F.cross_entropy(model.double()(adversarial.double()), labels).item()
        model.float()
    assert abs(loss[torch.float32] - loss[torch.float64]) < 2e-3 * loss[torch.float64]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_stays_in_ball_and_box_and_raises_the_loss(impl, norm):
    model, (images, labels) = cnn(), batch(32)
    eps = {"linf": EPS, "l2": 0.5, "l1": 6.0}[norm]
    adversarial = PGDAttack(model, eps, eps / 4, 10, norm=norm, seed=0, impl=impl)(images, labels)
    delta = (adversarial.double() - images.double()).flatten(1)
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    sizes = torch.linalg.vector_norm(delta, order, dim=1)
    assert (sizes <= eps * (1 + 1e-6)).all() and sizes.max() > 0.9 * eps
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    before = F.cross_entropy(model(images), labels, reduction="none")
    after = F.cross_entropy(model(adversarial), labels, reduction="none")
    assert (after > before).float().mean() > 0.95


def test_on_a_linear_model_linf_reaches_the_corner(impl):
    """z = w.x with two classes: the worst point of the cube is known exactly."""
    w = torch.randn(2, 3 * 12 * 12, generator=torch.Generator().manual_seed(5))
    images, _ = batch(8)
    images = images * 0.8 + 0.1
    labels = torch.arange(8) % 2

    def model(x):
        return x.flatten(1) @ w.T

    adversarial = PGDAttack(model, 0.05, 0.05 / 4, 10, impl=impl, seed=0)(images, labels)
    direction = (w[1] - w[0]).sign() * (1 - 2 * labels)[:, None]
    corner = images + 0.05 * direction.reshape(images.shape)
    assert (adversarial - corner).abs().max() < 1e-7


def test_each_step_uses_a_fresh_gradient(impl):
    """Two steps on a bent function end where only fresh gradients lead: a stale one overshoots."""

    def model(x):
        bent = -(x - 0.55).abs().sum(1)
        return torch.stack((bent * 0, bent), 1)

    images = torch.full((4, 5), 0.5)
    labels = torch.zeros(4, dtype=torch.long)
    attack = PGDAttack(model, 0.3, 0.04, 7, False, impl=impl)
    got = attack(images, labels)
    assert torch.equal(got, plain_pgd(model, images, labels, 0.3, 0.04, 7))
    assert (got - 0.55).abs().max() <= 0.04


# --- options ---------------------------------------------------------------------------------------------------------


def test_targeted_lowers_the_loss_of_the_target(impl):
    model, (images, labels) = cnn(), batch(32)
    target = (labels + 3) % 10
    attack = PGDAttack(model, 0.1, 0.02, 10, False, targeted=True, impl=impl)
    adversarial = attack(images, target)
    assert torch.equal(adversarial, plain_pgd(model, images, target, 0.1, 0.02, 10, targeted=True))
    reached = (model(adversarial).argmax(1) == target).float().mean()
    assert reached > (model(images).argmax(1) == target).float().mean() + 0.3


@pytest.mark.parametrize("loss", ["margin", "dlr", "kl"])
def test_losses_follow_their_formula(loss):
    model, (images, labels) = cnn(), batch(32)

    def margin(z, y):
        own = z.gather(1, y[:, None])[:, 0]
        other = torch.stack(
            [torch.cat((row[:k], row[k + 1 :])).max() for row, k in zip(z, y, strict=True)]
        )
        return other - own

    def dlr(z, y):
        ordered = z.sort(1, descending=True).values
        return margin(z, y) / (ordered[:, 0] - ordered[:, 2])

    clean = model(images).softmax(1).detach()

    def kl(z, y):
        return (clean * (clean.log() - z.log_softmax(1))).sum(1)

    formula = {"margin": margin, "dlr": dlr, "kl": kl}[loss]
    torch.manual_seed(4)
    got = PGDAttack(model, EPS, ALPHA, 5, True, loss=loss, start="torch")(images, labels)
    torch.manual_seed(4)
    start = (images + torch.empty_like(images).uniform_(-EPS, EPS)).clamp(0, 1)
    expected = plain_pgd(model, images, labels, EPS, ALPHA, 5, start=start, loss=formula)
    # Formulas written differently round differently: a few signs of nearly zero entries may flip.
    assert (got != expected).float().mean() < 0.01
    gain = formula(model(got), labels).mean() - formula(model(start), labels).mean()
    assert gain > 0


def test_a_callable_loss_may_return_one_value_a_sample_or_their_mean():
    model, (images, labels) = cnn(), batch()
    named = PGDAttack(model, EPS, ALPHA, 5, False)(images, labels)
    for loss in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="none")):
        assert torch.equal(PGDAttack(model, EPS, ALPHA, 5, False, loss=loss)(images, labels), named)


def test_random_start_is_used_and_keyed(impl):
    model, (images, labels) = cnn(), batch(16)
    make = lambda **k: PGDAttack(model, EPS, ALPHA, **{"steps": 0, "impl": impl, **k})  # noqa: E731
    start = make(seed=1)(images, labels)
    moved = (start - images).abs()
    assert moved.max() <= EPS + 1e-7 and (moved > 0).float().mean() > 0.98
    assert 0.4 < (moved / EPS).mean() < 0.6  # uniform in the cube, less what the box cuts off
    assert torch.equal(start, make(seed=1)(images, labels))
    assert not torch.equal(start, make(seed=2)(images, labels))
    assert torch.equal(make(seed=1, random_start=False)(images, labels), images)
    # Keyed by sample: the split into batches changes nothing.
    ids = torch.arange(16)
    halves = [make(seed=1)(images[i], labels[i], sample_ids=ids[i]) for i in (ids[:5], ids[5:])]
    assert torch.equal(torch.cat(halves), start)


def test_without_a_seed_torch_governs_the_start():
    model, (images, labels) = cnn(), batch(4)
    attack = PGDAttack(model, EPS, ALPHA, 0)
    torch.manual_seed(9)
    first, second = attack(images, labels), attack(images, labels)
    torch.manual_seed(9)
    assert torch.equal(attack(images, labels), first) and not torch.equal(first, second)


def test_result_does_not_depend_on_the_batch(impl):
    model, (images, labels) = cnn(), batch(8)
    model.double()
    images = images.double()
    attack = PGDAttack(model, EPS, ALPHA, 5, seed=3, impl=impl)
    whole = attack(images, labels)
    for i in range(8):
        ids = torch.tensor([i])
        alone = attack(images[i : i + 1], labels[i : i + 1], sample_ids=ids)
        assert (alone[0] - whole[i]).abs().max() < 1e-9


def test_restarts_keep_the_worst_for_each_sample(impl):
    model, (images, labels) = cnn(), batch(32)
    labels = model(images).argmax(1)
    settings = {"eps": 0.02, "alpha": 0.005, "steps": 3, "seed": 5, "impl": impl}
    best = PGDAttack(model, restarts=4, **settings)(images, labels)
    runs = []
    for restart in range(4):
        start = advfast.kernels.random_start(images, eps=0.02, seed=5, offset=restart, impl=impl)
        runs.append(plain_pgd(model, images, labels, 0.02, 0.005, 3, start=start))
    with torch.no_grad():
        logits = torch.stack([model(run) for run in runs])
    wrong = logits.argmax(2) != labels
    loss = torch.stack([F.cross_entropy(z, labels, reduction="none") for z in logits])
    pick = (wrong * 1e6 + loss.double()).argmax(0)
    expected = torch.stack(runs)[pick, torch.arange(32)]
    assert pick.unique().numel() > 1
    assert torch.equal(best, expected)


def test_targeted_restarts_prefer_the_target():
    model, (images, _) = cnn(), batch(32)
    target = (model(images).argmax(1) + 1) % 10
    hits = []
    for restarts in (1, 6):
        attack = PGDAttack(model, 0.06, 0.015, 4, targeted=True, restarts=restarts, seed=2)
        hits.append((model(attack(images, target)).argmax(1) == target).sum().item())
    assert hits[1] >= hits[0] and hits[1] > 0


def test_start_torch_is_the_start_of_torchattacks(impl):
    model, (images, labels) = cnn(), batch(8)
    torch.manual_seed(11)
    got = PGDAttack(model, EPS, ALPHA, 0, start="torch", impl=impl)(images, labels)
    torch.manual_seed(11)
    assert torch.equal(got, (images + torch.empty_like(images).uniform_(-EPS, EPS)).clamp(0, 1))
    torch.manual_seed(11)
    got = PGDAttack(model, 0.5, 0.1, 0, norm="l2", start="torch", impl=impl)(images, labels)
    torch.manual_seed(11)
    delta = torch.empty_like(images).normal_()
    n = delta.view(8, -1).norm(p=2, dim=1).view(8, 1, 1, 1)
    delta *= torch.zeros_like(n).uniform_(0, 1) / n * 0.5
    assert (got - (images + delta).clamp(0, 1)).abs().max() < 1e-7


def test_settings_may_change_between_calls():
    model, (images, labels) = cnn(), batch(8)
    attack = PGDAttack(model, EPS, ALPHA, 10, False)
    attack(images, labels)
    attack.eps, attack.alpha, attack.steps, attack.norm = 0.1, None, 3, "Linf"
    assert torch.equal(attack(images, labels), plain_pgd(model, images, labels, 0.1, 0.025, 3))
    attack.model = other = cnn(classes=5)
    assert torch.equal(
        attack(images, labels % 5), plain_pgd(other, images, labels % 5, 0.1, 0.025, 3)
    )
    attack.eps = -1.0
    with pytest.raises(ValueError, match="eps must be a finite number >= 0"):
        attack(images, labels)


def test_weights_that_change_between_calls_are_seen():
    model, (images, labels) = cnn(), batch(8)
    attack = PGDAttack(model, EPS, ALPHA, 3, False)
    attack(images, labels)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.5)
    assert torch.equal(attack(images, labels), plain_pgd(model, images, labels, EPS, ALPHA, 3))


def test_eps_for_each_sample(impl):
    model, (images, labels) = cnn(), batch(4)
    eps = torch.tensor([0.0, 0.01, 0.05, 0.2]).reshape(4, 1, 1, 1)
    adversarial = PGDAttack(model, eps, None, 10, seed=0, impl=impl)(images, labels)
    sizes = (adversarial - images).abs().flatten(1).amax(1)
    assert torch.equal(adversarial[0], images[0])
    assert (sizes <= eps.flatten() * (1 + 1e-5)).all() and (
        sizes[1:] > 0.9 * eps.flatten()[1:]
    ).all()


def test_bounds_other_than_the_unit_box():
    model, (images, labels) = cnn(), batch(4)
    images = images * 4 - 2
    low = [-2.0, -1.5, -2.0]
    images[:, 1].clamp_(min=-1.5)
    adversarial = PGDAttack(model, 0.5, 0.2, 5, bounds=(low, 2.0))(images, labels)
    assert (adversarial.amin((0, 2, 3)) >= torch.tensor(low)).all() and adversarial.max() <= 2
    free = PGDAttack(model, 0.5, 0.2, 5, bounds=None)(images, labels)
    assert free.max() > 2


def test_no_labels_means_the_prediction():
    model, (images, _) = cnn(), batch(8)
    attack = PGDAttack(model, EPS, ALPHA, 5, False)
    assert torch.equal(attack(images), attack(images, model(images).argmax(1)))


def test_zero_steps_zero_eps_and_empty_batch():
    model, (images, labels) = cnn(), batch(8)
    assert torch.equal(PGDAttack(model, EPS, ALPHA, 0, False)(images, labels), images)
    assert torch.equal(PGDAttack(model, 0.0, ALPHA, 5)(images, labels), images)
    assert PGDAttack(model)(images[:0], labels[:0]).shape == (0, 3, 12, 12)


def test_repr_shows_the_settings():
    text = repr(PGDAttack(cnn(), 0.1, norm="l2"))
    assert "PGDAttack(model=Sequential, eps=0.1" in text and "norm='l2'" in text


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bit_precision_is_not_falsely_robust(precision, loss, fold):
    """Confident samples: the gradient of their cross-entropy, e^-20 to e^-80, is 0 in float16 unless rescaled."""
    model, (images, _) = cnn(dropout=0.0), batch(128)
    with torch.no_grad():
        top = model(images).topk(2, 1)
        margins = top.values[:, 0] - top.values[:, 1]
        middle = margins.median()
        chosen = (margins > middle / 2) & (margins < middle * 2)
        images, labels = images[chosen], top.indices[chosen, 0]
        model[-1].weight.mul_(40 / middle)
        model[-1].bias.mul_(40 / middle)
    settings = {"eps": 0.012, "alpha": 0.002, "steps": 5, "random_start": False}
    settings |= {"loss": loss, "fold": fold}
    moved, accuracy = {}, {}
    for name in ("fp32", precision):
        adversarial = PGDAttack(model, precision=name, **settings)(images, labels)
        moved[name] = (adversarial != images).float().mean().item()
        accuracy[name] = (model(adversarial).argmax(1) == labels).float().mean().item()
    assert moved["fp32"] > 0.9 and moved[precision] > 0.95 * moved["fp32"]
    assert 0.1 < accuracy["fp32"] < 0.9 and abs(accuracy[precision] - accuracy["fp32"]) <= 0.05


def test_a_nonfinite_gradient_is_reported():
    def model(x):
        return torch.stack((x.flatten(1).sum(1), (x.flatten(1)[:, 0] - 0.5).sqrt()), 1)

    images = torch.full((3, 4), 0.75)
    images[1, 0] = 0.25
    attack = PGDAttack(model, 0.01, 0.01, 1, False)
    with pytest.warns(RuntimeWarning, match="gradient entries were not finite"):
        attack(images, torch.zeros(3, dtype=torch.long))
    assert attack.nonfinite.item() == 4
