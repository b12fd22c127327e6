"""The Square attack: what it returns, asks and promises, and that it is the published one."""

import pytest
import torch
from torch import nn

from advfast.attacks import Square
from advfast.attacks.search.base import Points
from advfast.attacks.search.oracle import Oracle

NORMS = {"linf": 0.02, "l2": 0.4, "l1": 2.0}


def network(shape=(1, 10, 10), classes=10, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(shape[0], 6, 3, padding=1, stride=2), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * ((shape[1] + 1) // 2) * ((shape[2] + 1) // 2), classes),
    )  # fmt: skip
    with torch.no_grad():
        model[1].running_mean.normal_(0, 0.2)
        model[4].weight *= 4
    return model.eval()


def linear(shape, classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), classes)).eval()


def data(model, shape=(1, 10, 10), count=16, seed=1):
    x = torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return x, model(x).argmax(1)


def broken(model, x, y):
    with torch.no_grad():
        return model(x).argmax(1) != y


def size(delta, norm):
    flat = delta.double().flatten(1)
    return {"linf": flat.abs().amax(1), "l2": flat.norm(dim=1), "l1": flat.abs().sum(1)}[norm]


@pytest.mark.parametrize("loss", ["margin", "ce"])
@pytest.mark.parametrize("norm", list(NORMS))
@pytest.mark.parametrize("shape", [(1, 10, 10), (3, 13, 13)])
def test_upstream_draws_give_the_published_images(norm, shape, loss):
    published = pytest.importorskip("pyautoattack.square").SquareAttack
    model = network(shape)
    x, y = data(model, shape, 20)
    y[3] = (y[3] + 1) % 10
    settings = {"eps": NORMS[norm], "seed": 5, "loss": loss}
    theirs = published(
        model, norm=norm.capitalize(), n_queries=80, n_restarts=2, resc_schedule=False,
        device="cpu", **settings,
    )  # fmt: skip
    expected = theirs.perturb(x, y)
    attack = Square(
        model, norm=norm, queries=80, restarts=2, rng="upstream", fold=False, **settings
    )
    found = attack(x, y)
    assert broken(model, found, y).sum() > 3
    assert torch.equal(found, expected)
    attack.fold = True
    # Rounding may take a search another way, and the other samples' draws with it.
    assert (broken(model, attack(x, y), y) != broken(model, expected, y)).sum() <= 2


def test_upstream_on_images_that_are_not_square():
    published = pytest.importorskip("pyautoattack.square").SquareAttack
    model = linear((2, 5, 12))
    x, y = data(model, (2, 5, 12))
    theirs = published(model, eps=0.03, n_queries=60, resc_schedule=True, device="cpu", seed=2)
    attack = Square(
        model, 0.03, queries=60, rescale_schedule=True, rng="upstream", seed=2, fold=False
    )
    assert torch.equal(attack(x, y), theirs.perturb(x, y))


@pytest.mark.parametrize("norm", list(NORMS))
@pytest.mark.parametrize("rng", ["philox", "upstream"])
def test_inside_the_ball_and_the_box_and_misclassified(norm, rng):
    model = network()
    x, y = data(model)
    x[:4] = x[:4].round()
    y = model(x).argmax(1)
    for dtype in (torch.float32, torch.float16):
        attack = Square(model, NORMS[norm], norm=norm, queries=100, rng=rng)
        found = attack(x.to(dtype), y)
        assert found.dtype == dtype and found.min() >= 0 and found.max() <= 1
        assert (size(found.double() - x.to(dtype).double(), norm) <= NORMS[norm] * (1 + 1e-5)).all()
        moved = (found != x.to(dtype)).flatten(1).any(1)
        assert moved.any() and torch.equal(moved, broken(model, found.float(), y))


@pytest.mark.parametrize("norm", list(NORMS))
def test_no_matter_how_the_batch_is_split(norm):
    model = network()
    x, y = data(model, count=10)
    ids = torch.arange(10) * 7
    attack = Square(model, NORMS[norm], norm=norm, queries=50, fold=False, restarts=2)
    whole = attack(x, y, sample_ids=ids)
    assert 0 < broken(model, whole, y).sum() < 10
    parts = torch.cat([attack(x[i : i + 1], y[i : i + 1], sample_ids=ids[i : i + 1]) for i in range(10)])  # fmt: skip
    assert torch.allclose(parts, whole, atol=1e-5)
    order = torch.randperm(10)
    assert torch.allclose(attack(x[order], y[order], sample_ids=ids[order]), whole[order], atol=1e-5)  # fmt: skip
    attack.seed = 1
    assert not torch.allclose(attack(x, y, sample_ids=ids), whole, atol=1e-5)


class Counting(nn.Module):
    """A model of two classes whose margin is what `script` says of each image; keeps what it was asked."""

    def __init__(self, script):
        super().__init__()
        self.script, self.asked = script, []

    def forward(self, x):
        self.asked.append(x.clone())
        margin = self.script(x)
        return torch.stack((margin, torch.zeros_like(margin)), 1)


def test_margins_only_fall_and_the_best_image_is_kept():
    target = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(3))
    model = Counting(lambda x: 1 + (x - target).abs().flatten(1).sum(1))
    x = torch.rand(5, 1, 8, 8)
    Square(model, 0.1, queries=120, fold=False)(x, torch.zeros(5, dtype=torch.long))
    margins = [model.script(asked) for asked in model.asked[-121:]]
    best, image = margins[0], model.asked[-121]
    for margin, asked in zip(margins[1:], model.asked[-120:], strict=True):
        # Each candidate differs from the best image in one window only.
        changed = (asked != image).flatten(1).float().mean(1)
        assert changed.max() < 0.8
        image = torch.where((margin < best)[:, None, None, None], asked, image)
        best = torch.minimum(best, margin)
    assert (best < margins[0] - 1).all()


def test_solved_samples_are_asked_no_more():
    model = Counting(lambda x: x.flatten(1).mean(1) - 0.02)
    x = torch.full((6, 1, 6, 6), 0.5)
    x[0] = 0.03
    attack = Square(model, 0.05, queries=40, fold=False)
    found = attack(x, torch.zeros(6, dtype=torch.long))
    assert (found[1:] == x[1:]).all() and found[0].mean() < 0.02
    asked = [len(rows) for rows in model.asked]
    # Clean and the start, queries of all six until the one is found, of five from then on, and a second look at it.
    assert asked[:2] == [6, 6] and asked[-1] == 1 and attack.forwards == sum(asked)
    queries = asked[2:-1]
    assert len(queries) == 40 and queries == sorted(queries, reverse=True)
    assert 0 < queries.count(5) == 40 - queries.count(6)


def test_nothing_is_asked_once_the_start_has_broken_all():
    model = Counting(lambda x: (x == 0.5).flatten(1).all(1).float() - 0.5)
    x = torch.full((3, 1, 6, 6), 0.5)
    attack = Square(model, 0.1, queries=1000, fold=False)
    found = attack(x, torch.zeros(3, dtype=torch.long))
    assert attack.forwards == 9 and (found != x).all()  # clean, start, second look


def test_passes_are_those_the_algorithm_needs():
    model = linear((6,), classes=4)
    x, y = data(model, (6,), 5)
    y[0] = (y[0] + 1) % 4
    attack = Square(model, 1e-6, queries=30, restarts=2, fold=False)
    assert torch.equal(attack(x, y), x)
    assert (attack.forwards, attack.backwards) == (5 + 2 * 31 * 4, 0)
    attack.eps = 0.0
    assert torch.equal(attack(x, y), x) and attack.forwards == 5


@pytest.mark.parametrize("norm", list(NORMS))
@pytest.mark.parametrize("rng", ["philox", "upstream"])
@pytest.mark.parametrize(
    "shape", [(64,), (3, 20), (2, 4, 19), (1, 19, 4), (2, 3, 4, 5), (1, 1, 1), (12,)]
)
def test_any_shape_of_image_two_classes_one_sample(shape, rng, norm):
    model = linear(shape, classes=2)
    for count in (1, 6):
        x, y = data(model, shape, count)
        # Far enough for a linear model: from a clean margin to its other side.
        eps = {"linf": 0.9, "l2": 3.0, "l1": 30.0}[norm]
        attack = Square(model, eps, norm=norm, queries=60, rng=rng)
        found = attack(x, y)
        assert found.shape == x.shape and (size(found - x, norm) <= eps * (1 + 1e-5)).all()
        assert torch.equal((found != x).flatten(1).any(1), broken(model, found, y))
        if count == 6 and len(shape) > 1 and shape != (1, 1, 1) and norm == "linf":
            assert broken(model, found, y).float().mean() >= 0.5


@pytest.mark.parametrize("nhwc", [False, True])
def test_16_bit_models(nhwc):
    model = network()
    x, y = data(model)
    if nhwc:
        x = x.contiguous(memory_format=torch.channels_last)
    for settings in ({"precision": "bf16"}, {}):
        used = model if settings else network().to(torch.bfloat16)
        images = x if settings else x.to(torch.bfloat16)
        with torch.no_grad():
            labels = y if settings else used(images).argmax(1)
        found = Square(used, 0.05, queries=60, **settings)(images, labels)
        assert found.dtype == images.dtype and found.stride() == images.stride()
        assert (found.double() - images.double()).abs().max() <= 0.05 * (1 + 1e-6)
        assert (found != images).any()


def test_restarts_go_on_with_what_is_left():
    model = network()
    x, y = data(model, count=24)
    once, thrice = (Square(model, 0.02, queries=12, restarts=r) for r in (1, 3))
    first, all_ = once(x, y), thrice(x, y)
    hit = broken(model, first, y)
    assert torch.equal(all_[hit], first[hit])
    assert broken(model, all_, y).sum() > hit.sum()
    left = (~hit).sum()
    assert thrice.forwards > once.forwards + left


def test_it_tells_how_far_it_is():
    model = network()
    x, y = data(model, count=4)
    attack, told = Square(model, 1e-6, queries=20, restarts=2), []
    with Oracle(model, x) as oracle, torch.no_grad():
        points = Points(oracle.iterate(x), y, torch.arange(4), oracle.logits(x))
        attack.search(oracle, points, told.append)
    assert told == sorted(told) and told[0] == 0.0 and told[-1] == 1.0 and len(told) == 41


def test_torchs_generator_and_the_model_are_left_alone():
    model = network().train()
    x, y = data(model)
    before = torch.get_rng_state()
    for rng in ("philox", "upstream"):
        Square(model, 0.02, queries=5, rng=rng)(x, y)
    assert torch.equal(torch.get_rng_state(), before) and model.training


def test_bad_settings_are_refused():
    model = linear((4,))
    for settings, message in (
        ({"queries": 0}, "queries must be an integer >= 1, got 0"),
        ({"restarts": 2**16}, "restarts must be at most 32768"),
        ({"p_init": 0.0}, "p_init is a share of the image"),
        ({"p_init": 1.5}, "got 1.5"),
        ({"loss": "dlr"}, "loss must be one of margin, ce"),
        ({"norm": "l0"}, "norm"),
        ({"rng": "torch"}, "rng must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            Square(model, **settings)
    one = linear((4,), classes=1)
    x = torch.rand(2, 4)
    with pytest.raises(ValueError, match="2 classes or more"):
        Square(one, 0.1)(x, torch.zeros(2, dtype=torch.long))


def test_sample_ids_are_one_number_a_sample():
    model = linear((6,), classes=4)
    x, y = data(model, (6,), 5)
    with pytest.raises(ValueError, match=r"sample_ids must be int64 of shape \(5,\)"):
        Square(model, 0.1, queries=2)(x, y, sample_ids=torch.arange(4))
    with pytest.raises(TypeError, match="unexpected keyword argument 'querys'"):
        Square(model, 0.1, querys=2)
