"""What the Square attack draws: windows by its schedule, places and signs of each sample by itself."""

import pytest
import torch

from advfast.attacks.search.square_draws import KeyedDraws, PublishedDraws
from advfast.attacks.search.square_starts import stripes, tiles
from advfast.attacks.search.square_windows import image_sides, pattern, share, window_sides


def test_the_share_is_halved_by_the_schedule():
    """The table of the paper's code, for 10,000 queries; queries at the ends of each stretch."""
    table = {0: 1, 10: 1, 11: 2, 50: 2, 51: 4, 200: 4, 201: 8, 500: 8, 501: 16, 1000: 16, 1001: 32,
             2000: 32, 2001: 64, 4000: 64, 4001: 128, 6000: 128, 6001: 256, 8000: 256, 8001: 512,
             9999: 512}  # fmt: skip
    for query, divisor in table.items():
        assert share(query, 5000, 0.8, False) == 0.8 / divisor
        assert share(query, 10_000, 0.8, True) == 0.8 / divisor
    # Half of the queries: each stretch is half as long.
    for query, divisor in ((5, 1), (6, 2), (25, 2), (26, 4), (2000, 64), (4001, 512)):
        assert share(query, 5000, 0.4, True) == 0.4 / divisor


def test_sides_of_the_window():
    of = {"channels": 1, "height": 28, "width": 28, "published": False}
    sides = [window_sides(share(q, 5000, 0.8, False), norm="linf", **of) for q in (0, 30, 400, 4500)]  # fmt: skip
    assert sides == [(25, 25), (18, 18), (9, 9), (2, 2)]
    assert window_sides(1e-6, norm="linf", **of) == (1, 1)
    odd = [window_sides(share(q, 5000, 0.8, False), norm="l2", **of) for q in (0, 30, 400, 4500)]
    assert odd == [(25, 25), (19, 19), (9, 9), (3, 3)]
    # An image that is not square: the window has its share of it all the same; as published it is a square.
    table = ((4, 100, (4, 80)), (100, 4, (80, 4)), (1, 64, (1, 51)), (6, 2, (5, 2)))
    for height, width, expected in table:
        found = window_sides(0.8, 3, height, width, "linf", False)
        assert found == expected
        assert window_sides(0.8, 3, height, width, "linf", True) == (min(height, width),) * 2
    assert window_sides(0.01, 1, 20, 30, "linf", False) == (2, 2)


def test_any_shape_is_channels_rows_and_columns():
    shapes = {(7,): (1, 1, 7), (3, 7): (3, 1, 7), (3, 5, 7): (3, 5, 7), (2, 3, 5, 7): (6, 5, 7)}
    for shape, expected in shapes.items():
        assert image_sides(torch.Size(shape)) == expected


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("sides", [(3, 3), (7, 7), (1, 9), (9, 1), (1, 1), (4, 7)])
def test_patterns_have_norm_one_and_two_signs(norm, sides):
    order = 2 if norm == "l2" else 1
    for turned in (False, True):
        laid = pattern(*sides, norm, turned)
        assert laid.shape == sides
        assert abs(laid.flatten().norm(order) - 1) < 1e-6
    upright = pattern(*sides, norm, False)
    half = sides[0] // 2
    assert (upright[:half] > 0).all() and (upright[half:] < 0).all()
    if sides[0] == sides[1]:
        assert torch.equal(pattern(*sides, norm, True), upright.t())


def drawn(ids, norm="l2", restart=0, seed=3, queries=(0, 1, 63, 64, 200)):
    draws = KeyedDraws(torch.tensor(ids), seed, restart, 3, norm, torch.float32)
    return [draws.start(40)] + [
        torch.cat((d.places, d.others, d.turned[:, None], d.signs), 1).float()
        for d in (draws.query(q, (9, 4)) for q in queries)
    ]


def test_draws_belong_to_the_sample():
    together = drawn([5, 0, 2**40 + 5])
    alone = drawn([2**40 + 5])
    for all_, one in zip(together, alone, strict=True):
        assert torch.equal(all_[2:], one) and not torch.equal(all_[0], all_[2])
    for other in (drawn([5, 0, 2**40 + 5], restart=1), drawn([5, 0, 2**40 + 5], seed=4)):
        for a, b in zip(together, other, strict=True):
            assert not torch.equal(a, b)
    # Asked in stretches that begin elsewhere, and after others have left.
    draws = KeyedDraws(torch.tensor([5, 0, 9]), 3, 0, 3, "l2", torch.float32)
    draws.query(10, (9, 4))
    draws.keep(torch.tensor([1]))
    found = [draws.query(q, (9, 4)).places for q in (63, 64, 200)]
    assert torch.equal(torch.cat(found), torch.cat([t[1:2, :2] for t in together[3:]]).long())


def test_draws_are_uniform():
    draws = KeyedDraws(torch.arange(500), 0, 0, 2, "l2", torch.float32)
    tops, lefts, signs, turned = [], [], [], []
    for query in range(40):
        d = draws.query(query, (4, 1))
        tops.append(torch.cat((d.places[:, 0], d.others[:, 0])))
        lefts.append(d.places[:, 1])
        signs.append(d.signs)
        turned.append(d.turned)
    counts = torch.cat(tops).bincount()
    assert len(counts) == 5 and (counts / 40_000 - 0.2).abs().max() < 0.01
    assert (torch.cat(lefts).bincount() / 20_000 - 0.5).abs().max() < 0.02
    assert torch.cat(signs).abs().unique().tolist() == [1.0]
    assert abs(torch.cat(signs).mean()) < 0.03 and abs(torch.cat(turned).float().mean() - 0.5) < 0.02  # fmt: skip
    assert abs((torch.cat(signs)[:, 0] * torch.cat(signs)[:, 1]).mean()) < 0.03


def test_published_draws_are_those_of_a_seeded_torch():
    torch.manual_seed(7)
    expected_start = torch.sign(2 * torch.rand(4, 6) - 1)
    places = [(int(8 * torch.rand(1)), int(5 * torch.rand(1))) for _ in range(2)]
    turned = bool(torch.rand(1) > 0.5)
    signs = torch.sign(2 * torch.rand(4, 3, 1, 1) - 1)
    draws = PublishedDraws(4, torch.Generator().manual_seed(7), 3, "l2", torch.zeros(1))
    assert torch.equal(draws.start(6), expected_start)
    found = draws.query(0, (8, 5))
    assert found.places.tolist() == [list(places[0])] * 4
    assert found.others.tolist() == [list(places[1])] * 4
    assert found.turned.tolist() == [turned] * 4
    assert torch.equal(found.signs, signs[:, :, 0, 0])


def test_starts_fill_the_ball():
    draws = KeyedDraws(torch.arange(3), 0, 0, 2, "linf", torch.float32)
    x0 = torch.full((3, 2, 4, 5), 0.5)
    delta = stripes(x0, 0.1, draws) - x0
    assert torch.allclose(delta.abs(), torch.tensor(0.1))
    assert (delta[:, :, :1] == delta).all() and (delta[..., :1] != delta).any()
    for shape in ((3, 2, 13, 11), (3, 2, 1, 9), (3, 2, 4, 4)):
        for norm in ("l2", "l1"):
            laid = tiles(torch.zeros(shape), norm, draws)
            assert laid.shape == shape and (laid.flatten(1) != 0).float().mean() > 0.5
