"""FAB against the published implementation, linear models whose boundary is known, and itself in other batches."""

import copy
import math

import pytest
import torch
from torch import nn

from advfast.attacks import FAB, FABT
from advfast.attacks.search import fab

from ..networks import batch, cnn, mlp
from .trained import held_out, robust_cnn

ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}
# At these about half of the samples are broken.
RADIUS = {"linf": 0.1, "l2": 0.5, "l1": 1.5}


def lengths(delta, norm):
    return torch.linalg.vector_norm(delta.flatten(1).double(), ORDER[norm], dim=1)


def published(model, norm, eps, **settings):
    module = pytest.importorskip("pyautoattack.fab_pt")
    return module.FABAttack_PT(model, norm=norm.title(), eps=eps, device="cpu", **settings)


def broken(model, crafted, labels):
    with torch.no_grad():
        return model(crafted).argmax(1) != labels


@pytest.mark.parametrize("targets", [0, 9])
@pytest.mark.parametrize("norm", ORDER)
def test_outcomes_are_those_of_the_published_attack(norm, targets):
    model, (images, labels) = robust_cnn(), held_out(70)
    eps = RADIUS[norm]
    theirs = published(
        model, norm, eps, n_iter=15, targeted=targets > 0, n_target_classes=max(1, targets)
    )
    expected = broken(model, theirs.perturb(images, labels), labels)
    assert 0.2 < expected.float().mean() < 0.8
    for settings in ({"fold": False, "rng": "upstream"}, {"impl": "reference"}):
        attack = FAB(model, eps, norm=norm, steps=15, targets=targets, **settings)
        crafted = attack(images, labels)
        assert torch.equal(broken(model, crafted, labels), expected), settings
        assert lengths(crafted - images, norm).max() <= eps * (1 + 1e-6)
        assert crafted.min() >= 0 and crafted.max() <= 1


@pytest.mark.parametrize("norm", ORDER)
def test_draws_of_restarts_are_those_of_the_published_attack(norm):
    model, (images, labels) = robust_cnn(), held_out(60)
    eps = RADIUS[norm]
    theirs = published(model, norm, eps, n_iter=3, n_restarts=3, targeted=True, n_target_classes=2)
    theirs.seed = 7
    expected = theirs.perturb(images, labels)
    attack = FAB(
        model, eps, norm=norm, steps=3, restarts=3, targets=2, seed=7, rng="upstream", fold=False
    )
    state = torch.get_rng_state()
    crafted = attack(images, labels)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(broken(model, crafted, labels), broken(model, expected, labels))
    other = FAB(model, eps, norm=norm, steps=3, restarts=3, targets=2, seed=7)(images, labels)
    assert abs(int(broken(model, other, labels).sum() - broken(model, crafted, labels).sum())) < 10


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("norm", ORDER)
def test_closest_images_are_those_of_the_published_attack(norm, target):
    model, (images, labels) = robust_cnn(), held_out(60)
    right = ~broken(model, images, labels)
    images, labels = images[right], labels[right]
    theirs = published(model, norm, RADIUS[norm], n_iter=20)
    theirs.target_class = 2
    expected = theirs.attack_single_run(images, labels, is_targeted=target > 0)
    attack = FAB(
        model, RADIUS[norm], norm=norm, steps=20, targets=target, keep="closest", fold=False
    )
    crafted = attack(images, labels)
    assert broken(model, crafted, labels).all()
    difference = (crafted - expected).flatten(1).abs().amax(1)
    # Of the same boundary; a last step that crossed for one and not for the other is another image.
    assert (difference < 1e-5).float().mean() > 0.9
    gap = lengths(crafted - images, norm) / lengths(expected - images, norm)
    assert (gap - 1).abs().quantile(0.9) < 1e-4


def linear(classes, inputs=12):
    torch.manual_seed(4)
    return nn.Linear(inputs, classes).double().requires_grad_(False).eval()


def closest_boundary(weight, bias, x, label):
    """The smallest linf radius at which some other class ties with the label inside the box, by bisection."""
    radii = []
    for other in range(len(weight)):
        if other == label:
            continue
        w, margin = weight[other] - weight[label], (weight[label] - weight[other]) @ x
        margin = margin + bias[label] - bias[other]
        low, high = 0.0, 1.0
        if (torch.where(w > 0, w * (1 - x), -w * x)).sum() < margin:
            continue
        for _ in range(45):
            eps = (low + high) / 2
            most = torch.where(w > 0, w * (1 - x).clamp(max=eps), -w * x.clamp(max=eps)).sum()
            low, high = (low, eps) if most > margin else (eps, high)
        radii.append(high)
    return min(radii, default=math.inf)


@pytest.mark.parametrize("classes", [2, 5])
def test_finds_the_boundary_of_a_linear_model(classes):
    model = linear(classes)
    x = torch.rand(30, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = model(x).argmax(1)
    given = zip(x, labels.tolist(), strict=True)
    radii = torch.tensor([closest_boundary(model.weight, model.bias, *pair) for pair in given])
    radii = radii.double()
    assert radii.isfinite().sum() > 20
    for targets in {0, classes - 1}:
        found = FAB(model, 1.0, targets=targets, steps=60, keep="closest")(x)
        distance = lengths(found - x, "linf")
        reached = broken(model, found, labels)
        assert torch.equal(reached, radii.isfinite())
        assert (distance[reached] >= radii[reached] - 1e-12).all()
        near = distance[reached] < 1.02 * radii[reached]
        # Which boundary is the nearest one is judged without the box.
        assert near.all() if targets else near.float().mean() > 0.9
        # What counts as a success is what eps says.
        eps = float(radii[radii.isfinite()].median())
        hit = broken(model, FAB(model, eps, targets=targets, steps=60)(x), labels)
        assert not hit[radii > eps].any()
        assert hit[radii * 1.02 < eps].float().mean() > (0.99 if targets else 0.9)


def test_closest_takes_all_runs_and_goes_beyond_eps():
    model, (images, labels) = robust_cnn(), held_out(40)
    settings = {"norm": "l2", "steps": 15, "keep": "closest"}
    far = FAB(model, 1e-6, targets=3, **settings)(images, labels)
    wrong = broken(model, images, labels)
    assert broken(model, far, labels).all() and torch.equal(far[wrong], images[wrong])
    distances = lengths(far - images, "l2")
    assert (distances[~wrong] > 1e-3).all()
    alone = [FAB(model, 1.0, targets=t, **settings)(images, labels) for t in (1, 2, 3)]
    for crafted in alone:
        found = broken(model, crafted, labels)
        assert (lengths(crafted - images, "l2")[found] >= distances[found] - 1e-6).all()
    torch.testing.assert_close(alone[2], far, rtol=0, atol=1e-6)
    first = FAB(model, 10.0, norm="l2", steps=15, targets=3)(images, labels)
    assert (lengths(first - images, "l2") >= distances - 1e-6).all()


def test_closest_images_in_16_bits():
    model, (images, labels) = robust_cnn(), held_out(40)
    images = images.half()
    crafted = FAB(model, 1e-6, targets=2, steps=15, keep="closest")(images, labels)
    found = broken(model, crafted.float(), labels) & ~broken(model, images.float(), labels)
    assert crafted.dtype == torch.float16 and found.float().mean() > 0.5
    inside = FAB(model, 0.1, targets=2, steps=15)(images, labels)
    assert lengths(inside.double() - images, "linf").max() <= 0.1


@pytest.mark.parametrize("targets", [0, 3])
def test_does_not_depend_on_the_batch(targets):
    model, (images, labels) = copy.deepcopy(robust_cnn()).double(), held_out(24)
    images = images.double()
    attack = FAB(model, 0.08, steps=6, restarts=2, targets=targets, seed=3, keep="closest")
    whole = attack(images, labels)
    placed, ids = torch.empty_like(whole), torch.arange(24)
    attack.batch_size = 7
    for rows in ids.flip(0).split(10):
        placed[rows] = attack(images[rows], labels[rows], sample_ids=rows)
    torch.testing.assert_close(placed, whole, rtol=0, atol=1e-9)
    attack.restarts = 1
    once = attack(images, labels)
    assert (lengths(whole - images, "linf") <= lengths(once - images, "linf") + 1e-9).all()
    found = broken(model, whole, labels)
    attack = FAB(model, 0.08, steps=6, restarts=2, targets=targets, seed=3, batch_size=9)
    crafted = attack(images, labels)
    hit = found & (lengths(whole - images, "linf") <= 0.08)
    assert torch.equal(broken(model, crafted, labels), hit) and 0 < hit.sum() < len(hit)


@pytest.mark.parametrize("norm", ORDER)
def test_restarts_begin_half_way_out_in_the_ball(norm, monkeypatch):
    model, (images, labels) = robust_cnn(), held_out(20)
    seen, ids = [], torch.arange(20) + 100
    keyed = fab.keyed

    def spy(x0, eps, norm_, *, seed, stream, ids):
        start = keyed(x0, eps, norm_, seed=seed, stream=stream, ids=ids)
        assert eps == 0.2 and norm_ == norm and seed == 5 and start.min() >= 0 and start.max() <= 1
        assert lengths(start - x0, norm).max() <= 0.1 * (1 + 1e-6)
        seen.append((stream, ids, start))
        return start

    monkeypatch.setattr(fab, "keyed", spy)
    attack = FAB(model, 0.2, norm=norm, steps=2, restarts=3, targets=2, seed=5, keep="closest")
    attack(images, labels, sample_ids=ids)
    assert [stream for stream, _, _ in seen] == [1, 2, 4, 5]
    right = ~broken(model, images, labels)
    assert all(torch.equal(given, ids[right]) for _, given, _ in seen)
    starts = [start for _, _, start in seen]
    assert all(not torch.equal(a, b) for i, a in enumerate(starts) for b in starts[:i])


def test_one_pass_a_step_where_nothing_is_crossed():
    """Every class but the first is out of reach; the published loop takes 2 forward and 1 backward pass a step."""
    model = linear(3)
    model.bias.copy_(torch.tensor([100.0, 0.0, 0.0]))
    x = torch.rand(6, 12, dtype=torch.float64)
    attack = FAB(model, 0.1, targets=1, steps=5)
    assert torch.equal(attack(x), x)
    assert (attack.forwards, attack.backwards) == (6 * (1 + 5 + 1), 6 * 5)
    untargeted = FAB(model, 0.1, steps=5)
    assert torch.equal(untargeted(x), x)
    assert (untargeted.forwards, untargeted.backwards) == (6 * (1 + 2 * 5 + 1), 6 * 2 * 5)


def test_samples_that_are_done_take_no_more_passes():
    model, (images, labels) = robust_cnn(), held_out(100)
    counts = {}
    for eps in (0.02, 0.5):
        attack = FAB(model, eps, targets=9, steps=10)
        attack(images, labels)
        counts[eps] = attack.backwards
    assert counts[0.5] * 5 < counts[0.02]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_models_in_16_bits(precision):
    model, (images, labels) = robust_cnn(), held_out(60)
    exact = broken(model, FAB(model, 0.1, targets=3, steps=10)(images, labels), labels)
    crafted = FAB(model, 0.1, targets=3, steps=10, precision=precision)(images, labels)
    assert abs(int(exact.sum()) - int(broken(model, crafted, labels).sum())) <= 6
    assert lengths(crafted - images, "linf").max() <= 0.1 * (1 + 1e-6)


def test_progress():
    model, (images, labels) = robust_cnn(), held_out(30)
    attack, shares = FAB(model, 0.05, targets=4, steps=6, batch_size=20), []
    with attack.oracle(images) as oracle:
        from advfast.attacks.search.base import Points

        x = oracle.iterate(images)
        logits = oracle.logits(x)
        points = Points(x, labels, torch.arange(30), logits)
        points = points.selected((logits.argmax(1) == labels).nonzero()[:, 0])
        attack.search(oracle, points, shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 12
    assert 0 < shares[0] < 0.05


@pytest.mark.parametrize(
    "shape", [(20,), (1, 5, 4), (2, 3, 5, 2), (1, 2, 5, 2)], ids=lambda shape: f"{len(shape)}d"
)
def test_any_shape_of_image(shape):
    model = nn.Sequential(nn.Flatten(), mlp(math.prod(shape)))
    x = torch.rand(9, *shape, generator=torch.Generator().manual_seed(0))
    for targets in (0, 3):
        crafted = FAB(model, 0.5, targets=targets, steps=10)(x)
        assert broken(model, crafted, model(x).argmax(1)).float().mean() > 0.5
        assert crafted.shape == x.shape
    one = FAB(model, 0.5, targets=1, steps=10)(x[:1])
    assert one.shape == x[:1].shape


def test_layout_training_mode_and_labels():
    model, (images, _) = cnn(), batch(12)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    nhwc = images.contiguous(memory_format=torch.channels_last)
    crafted = FAB(model, 0.05, steps=5, targets=2)(nhwc)
    assert crafted.is_contiguous(memory_format=torch.channels_last)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.eval()
    labels = model(images).argmax(1)
    plain = FAB(model, 0.05, steps=5, targets=2)(images, nn.functional.one_hot(labels, 10).float())
    torch.testing.assert_close(plain, crafted.contiguous(), rtol=0, atol=1e-5)
    assert broken(model, plain, labels).any()


def test_nothing_to_attack():
    model, (images, labels) = robust_cnn(), held_out(8)
    wrong = (model(images).argmax(1) + 1) % 10
    assert torch.equal(FAB(model, 0.1)(images, wrong), images)
    assert torch.equal(FAB(model, 0.0)(images, labels), images)
    assert FAB(model, 0.1)(images[:0], labels[:0]).shape == (0, 1, 8, 8)


def test_fabt():
    attack = FABT(nn.Identity(), 0.1, norm="L2")
    assert isinstance(attack, FAB) and attack.targets == 9 and attack.steps == 100
    assert repr(attack).startswith("FABT(model=Identity, eps=0.1, norm='L2'")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": 10}, "targets=10 needs at least 11 classes, the model has 10"),
        ({"targets": -1}, "targets must be an integer >= 0"),
        ({"steps": 0}, "steps must be an integer >= 1"),
        ({"restarts": 1.5}, "restarts must be an integer >= 1"),
        ({"alpha_max": 1.5}, "alpha_max must be 0 to 1, got 1.5"),
        ({"eta": 0.9}, "eta must be a finite number >= 1, got 0.9"),
        ({"beta": 0.0}, "beta must be above 0 and at most 1, got 0.0"),
        ({"keep": "best"}, "keep must be one of ball, closest"),
        ({"norm": "l3"}, "norm must be one of"),
    ],
)
def test_bad_settings(settings, message):
    images, labels = held_out(4)
    with pytest.raises(ValueError, match=message):
        FAB(robust_cnn(), **settings)(images, labels)
