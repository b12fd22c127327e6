"""APGD itself: what it returns, on which inputs, at which cost. Against pyautoattack: test_apgd_parity.py."""

import copy

import pytest
import torch
from torch import nn

from advfast.attacks import APGD, APGDT
from advfast.attacks.search.apgd_start import Draws

from .digits import images, linear_network, robust_network

EPS = {"linf": 0.1, "l2": 0.7, "l1": 2.0}


def size(delta, norm):
    flat = delta.double().flatten(1)
    if norm == "linf":
        return flat.abs().amax(1)
    return flat.norm(dim=1) if norm == "l2" else flat.abs().sum(1)


def robust_to_linf(network, x, y, eps):
    """[B] bool: no image of the ball and the box has another class than y, of a linear network, in closed form."""
    x, weight, bias = x.flatten(1).double(), network.weight.double(), network.bias.double()
    low, high = (x - eps).clamp(min=0) - x, (x + eps).clamp(max=1) - x
    towards = weight[y][:, None] - weight[None]  # [B, K, D]
    margins = (towards * x[:, None]).sum(2) + bias[y][:, None] - bias
    worst = torch.minimum(low[:, None] * towards, high[:, None] * towards).sum(2)
    least = margins + worst
    least[torch.arange(len(y)), y] = 1.0
    return (least > 0).all(1)


@pytest.mark.parametrize("settings", [{"loss": "ce"}, {"loss": "dlr", "targets": 9}], ids=str)
def test_success_on_a_linear_network_is_what_the_closed_form_allows(settings):
    network = linear_network()
    x, y = images(200)
    x = x.flatten(1)
    eps = 0.06
    found = APGD(network, eps, steps=50, **settings)(x, y)
    wrong = network(found).argmax(1) != y
    robust = robust_to_linf(network, x, y, eps)
    assert 20 < robust.sum() < 180
    assert not (wrong & robust).any()
    # Towards each class the ratio has one maximum, and nothing is missed; the cross-entropy has several.
    assert (~wrong & ~robust).sum() <= (0 if "targets" in settings else 15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", list(EPS))
def test_ball_box_and_the_clean_image_elsewhere(norm, dtype):
    network = copy.deepcopy(robust_network()).to(dtype)
    x, y = images(40)
    x = x.to(dtype)
    found = APGD(network, EPS[norm], norm=norm, steps=20)(x, y)
    assert found.dtype == dtype and found.shape == x.shape
    assert found.min() >= 0 and found.max() <= 1
    slack = 1e-5 if dtype in (torch.float32, torch.float16, torch.bfloat16) else 1e-12
    assert (size(found.double() - x.double(), norm) <= EPS[norm] * (1 + slack)).all()
    wrong = network(found).argmax(1) != y
    assert wrong.float().mean() > 0.25
    assert torch.equal(found[~wrong], x[~wrong])
    clean_wrong = network(x).argmax(1) != y
    assert torch.equal(found[clean_wrong], x[clean_wrong])


@pytest.mark.parametrize(
    ("norm", "settings"),
    [
        ("linf", {"loss": "dlr", "targets": 3, "restarts": 2}),
        ("l2", {"loss": "ce", "restarts": 3}),
        ("l1", {"loss": "dlr", "targets": 2, "large_eps": True}),
    ],
    ids=str,
)
def test_independent_of_the_batch_and_of_how_runs_are_folded(norm, settings):
    """In float64, so that rounding, which knows the batch size, decides nothing."""
    network = copy.deepcopy(robust_network()).double()
    x, y = images(50)
    x = x.double()
    attack = APGD(network, EPS[norm] * 0.7, norm=norm, steps=9, **settings)
    whole = attack(x, y)
    broken = network(whole).argmax(1) != y
    assert 0.1 < broken.double().mean() < 0.9
    ids = torch.arange(50)
    parts = [attack(x[i::3], y[i::3], sample_ids=ids[i::3]) for i in range(3)]
    attack.batch_size = 7  # too few rows for two runs at once
    narrow = attack(x, y)
    attack.batch_size = None
    for i, part in enumerate(parts):
        assert torch.allclose(part, whole[i::3], rtol=0, atol=1e-9)
    assert torch.allclose(narrow, whole, rtol=0, atol=1e-9)
    assert not torch.equal(attack(x, y, sample_ids=ids + 50), whole)
    attack.seed = 1
    assert not torch.equal(attack(x, y), whole)


class Robust(nn.Module):
    """Constant logits with a slope too small to change the class."""

    def __init__(self, classes, dim):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(1e-3 * torch.randn(classes, dim, generator=generator))
        self.bias = nn.Parameter(-torch.arange(classes).float())

    def forward(self, x):
        return x.flatten(1) @ self.weight.t() + self.bias


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize(
    ("settings", "passes", "gradients"),
    [
        ({"steps": 10}, 11, 10),
        ({"steps": 10, "restarts": 3}, 33, 30),
        ({"steps": 10, "restarts": 2, "targets": 3, "loss": "dlr"}, 66, 60),
        ({"steps": 5, "eot": 4}, 21, 20),
        ({"steps": 10, "norm": "l1"}, 11, 10),
        ({"steps": 10, "norm": "l1", "large_eps": True}, 13, 10),
    ],
    ids=str,
)
def test_what_a_robust_sample_costs(settings, passes, gradients, fold):
    attack = APGD(Robust(5, 12), 0.1, fold=fold, **settings)
    x = torch.rand(6, 3, 4)
    assert torch.equal(
        attack(x, torch.tensor([0, 0, 0, 1, 0, 0])), x
    )  # the fourth is wrong already
    assert attack.backwards == 5 * gradients
    assert attack.forwards == 6 + 5 * passes  # and all once, clean


def test_what_breaks_at_the_start_costs_one_gradient():
    network = robust_network()
    x, y = images(30)
    attack = APGD(network, 1.0, steps=100)
    right = int((network(x).argmax(1) == y).sum())
    found = attack(x, y)
    assert (network(found).argmax(1) != y).all()
    assert right <= attack.backwards < 12 * right


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("norm", list(EPS))
def test_few_classes(classes, norm):
    generator = torch.Generator().manual_seed(1)
    network = nn.Linear(30, classes).requires_grad_(False)
    network.weight.copy_(torch.randn(classes, 30, generator=generator))
    network.bias.copy_(-(network.weight * 0.5).sum(1))
    x = 0.5 + 0.1 * torch.randn(60, 30, generator=generator)
    y = network(x).argmax(1)
    eps = {"linf": 0.03, "l2": 0.17, "l1": 0.35}[norm]
    for settings in (
        {"loss": "ce"},
        {"loss": "dlr"},
        {"loss": "dlr", "targets": classes - 1},
        {"loss": "ce", "targets": classes - 1},
    ):
        found = APGD(network, eps, norm=norm, steps=30, **settings)(x, y)
        wrong = network(found).argmax(1) != y
        assert 6 < wrong.sum() < 60
        if norm == "linf":
            robust = robust_to_linf(network, x, y, eps)
            missed = (~wrong & ~robust).sum()
            assert not (wrong & robust).any()
            assert missed <= (1 if settings["loss"] == "dlr" and "targets" in settings else 5)
    with pytest.raises(ValueError, match=f"needs at least {classes + 1} classes, the model has"):
        APGD(network, eps, norm=norm, targets=classes)(x, y)


@pytest.mark.parametrize("norm", list(EPS))
@pytest.mark.parametrize("shape", [(9,), (2, 3, 5), (1, 4, 2, 3), (3, 6, 5)], ids=str)
def test_any_shape(shape, norm):
    torch.manual_seed(3)
    dim = torch.Size(shape).numel()
    network = nn.Sequential(nn.Flatten(), nn.Linear(dim, 4))
    x = torch.rand(12, *shape)
    y = network(x).argmax(1)
    for fold in (True, False):
        found = APGD(
            network, {"linf": 0.3, "l2": 1.5, "l1": 4.0}[norm], norm=norm, steps=8, fold=fold
        )(x)
        assert found.shape == x.shape and found.min() >= 0 and found.max() <= 1
        assert (network(found).argmax(1) != y).any()
    one = APGD(network, 0.3, norm=norm, steps=8)(x[:1])
    assert one.shape == (1, *shape)


class Noisy(nn.Module):
    """A network behind noise of its own generator, which starts again at each call of `reset`."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.reset()

    def reset(self):
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        return self.network(x + 0.2 * torch.randn(x.shape, generator=self.generator))


def test_expectation_over_a_random_layer():
    """The gradients of eot draws are averaged: the step has the sign of the mean."""
    x, y = images(24)
    network = Noisy(linear_network())
    x = x.flatten(1)
    attack = APGD(network, 0.1, steps=1, eot=5, fold=False, rng="upstream", seed=3)
    network(x)  # the clean pass
    right = network.network(x).argmax(1) == y
    network.reset()
    found = attack(x, y)
    network.reset()
    kept = network(x).argmax(1) == y
    assert attack.backwards == 5 * kept.sum()
    here, classes = x[kept], y[kept]
    drawn = 2 * torch.rand(here.shape, generator=torch.Generator().manual_seed(3)) - 1
    start = (here + 0.1 * (drawn / drawn.abs().amax(1, keepdim=True))).clamp(0, 1)
    total = torch.zeros_like(here)
    for _ in range(5):
        moved = start.clone().requires_grad_()
        loss = nn.functional.cross_entropy(network(moved), classes, reduction="sum")
        total += torch.autograd.grad(loss, moved)[0]
    expected = (start + 0.2 * total.sign()).clamp(here - 0.1, here + 0.1).clamp(0, 1)
    changed = (found[kept] != here).any(1)
    assert right.sum() > 10 and changed.sum() >= 2
    at_start = (found[kept] - start).abs().amax(1) < 1e-6
    at_step = (found[kept] - expected).abs().amax(1) < 1e-6
    assert (at_start | at_step)[changed].all() and at_step[changed].any()


def test_a_loss_of_the_caller():
    network = robust_network()
    x, y = images(60)

    def margin(logits, labels):
        own = logits.gather(1, labels[:, None])[:, 0]
        return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - own

    for settings in ({}, {"targets": 2}):
        found = APGD(network, 0.1, loss=margin, steps=20, **settings)(x, y)
        assert (network(found).argmax(1) != y).float().mean() > 0.3
    with pytest.raises(ValueError, match=r"one value a sample, shape \(\d+,\), got \(\)"):
        APGD(network, 0.1, loss=lambda z, y: margin(z, y).sum(), steps=2)(x, y)
    with pytest.raises(TypeError, match="must return a tensor, got float"):
        APGD(network, 0.1, loss=lambda z, y: 1.0, steps=2)(x, y)


def test_the_share_that_is_done_rises_to_one():
    network = robust_network()
    x, y = images(20)
    shares = []
    for settings in (
        {"targets": 3, "loss": "dlr"},
        {"restarts": 2},
        {"norm": "l1", "large_eps": True},
        {"fold": False, "restarts": 2},
    ):
        attack = APGD(network, 0.02, steps=5, **settings)
        with attack.oracle(x) as oracle:
            from advfast.attacks.search.base import Points

            x0 = oracle.iterate(x)
            points = Points(x0, y, torch.arange(20), oracle.logits(x0))
            points = points.selected((points.logits.argmax(1) == y).nonzero()[:, 0])
            shares.clear()
            found = attack.search(oracle, points, shares.append)
        assert not found.success.all()
        assert len(shares) >= 5 and shares == sorted(shares)
        assert shares[-1] == pytest.approx(1.0)


def test_apgdt_is_apgd_towards_nine():
    network = robust_network()
    x, y = images(20)
    attack = APGDT(network, 0.08, steps=5)
    assert (attack.targets, attack.loss) == (9, "dlr")
    assert torch.equal(attack(x, y), APGD(network, 0.08, loss="dlr", targets=9, steps=5)(x, y))
    assert "targets=9" in repr(attack) and "steps=5" in repr(attack)


def test_the_edges():
    network = robust_network()
    x, y = images(8)
    attack = APGD(network, 0.1, steps=3)
    assert attack(x[:0], y[:0]).shape == (0, 1, 8, 8)
    attack.eps = 0.0
    assert torch.equal(attack(x, y), x)
    attack.eps = 0.1
    wrong = (network(x).argmax(1) + 1) % 10
    assert torch.equal(attack(x, wrong), x) and attack.backwards == 0
    soft = nn.functional.one_hot(y, 10).float()
    assert torch.equal(attack(x, soft), attack(x, y))


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be an integer >= 1, got 0"),
        (
            {"steps": 2, "large_eps": True, "norm": "l1"},
            ValueError,
            "steps must be an integer >= 3",
        ),
        ({"restarts": 0}, ValueError, "restarts must be an integer >= 1"),
        ({"targets": -1}, ValueError, "targets must be an integer >= 0"),
        ({"eot": 0}, ValueError, "eot must be an integer >= 1"),
        ({"rho": 1.5}, ValueError, "rho must be a number between 0 and 1, got 1.5"),
        ({"loss": "crossentropy"}, ValueError, "loss must be one of ce, dlr, or a function"),
        ({"loss": "kl"}, ValueError, "loss must be one of ce, dlr"),
        ({"norm": "l0"}, ValueError, "norm must be one of linf, l2, l1"),
        ({"large_eps": True}, ValueError, "large_eps=True is for norm='l1', got norm='linf'"),
        ({"rng": "torch"}, ValueError, "rng must be one of philox, upstream"),
        ({"eps": -0.1}, ValueError, "eps must be a finite number >= 0"),
    ],
)
def test_bad_settings_are_refused_before_any_work(settings, kind, message):
    def never(x):
        raise AssertionError("the model was asked")

    with pytest.raises(kind, match=message):
        APGD(never, **settings)
    attack = APGD(never)
    for name, value in settings.items():
        setattr(attack, name, value)
    with pytest.raises(kind, match=message):
        attack(*images(2))
    with pytest.raises(ValueError, match="targets must be an integer >= 1"):
        APGDT(never, targets=0)


def test_iterates_against_a_slow_transcription():
    """One sample in float64: the model is shown the points of algorithm 1, with the returns to the best one."""
    torch.manual_seed(4)
    network = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    network[0].weight.data *= 6
    seen = []

    def model(x):
        seen.append(x.detach().clone())
        return network(x)

    x = torch.rand(1, 6, dtype=torch.float64)
    y, eps, steps = network(x).argmax(1), 0.2, 30
    APGD(model, eps, steps=steps, fold=False, rng="upstream")(x, y)

    def asked(point):
        point = point.clone().requires_grad_()
        loss = nn.functional.cross_entropy(network(point), y)
        return loss.item(), torch.autograd.grad(loss, point)[0]

    def inside(point):
        return point.clamp(x - eps, x + eps).clamp(0, 1)

    now = before = seen[1]
    loss, gradient = asked(now)
    best = best_then = (loss, now, gradient)
    last, size, rises, window, since, halved, returns = 0.0, 2 * eps, 0, 6, 0, True, 0
    for i in range(steps):
        ahead = inside(now + size * gradient.sign())
        share = 0.75 if i else 1.0
        now, before = inside(now + share * (ahead - now) + (1 - share) * (now - before)), now
        assert torch.allclose(seen[2 + i], now, rtol=0, atol=1e-12), i
        loss, gradient = asked(now)
        rises, last, since = rises + (loss > last), loss, since + 1
        best = max(best, (loss, now, gradient), key=lambda point: point[0])
        if since == window:
            halves = rises <= 0.75 * window or (not halved and best[0] == best_then[0])
            if halves:
                returns += loss < best[0]
                size, now, gradient = size / 2, best[1], best[2]
            halved, best_then, rises, since, window = halves, best, 0, 0, max(window - 1, 1)
    assert returns >= 2


@pytest.mark.parametrize("norm", list(EPS))
def test_each_run_has_a_start_of_its_own(norm):
    x0, ids = torch.full((3, 40), 0.5), torch.tensor([4, 5, 9])
    draws = Draws("philox", 0, norm)
    first, second = draws(x0, ids, 0), draws(x0, ids, 1)
    assert ((first - second).abs() > 1e-3).float().mean() > 0.9
    assert torch.equal(first[1:2], draws(x0[:1], ids[1:2], 0))
