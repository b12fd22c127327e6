"""Images that leave [0, 1] are trained on as they are."""

import pytest
import torch
from torch import nn

import advfast
from advfast.attacks import PGDAttack
from advfast.studies.networks import conv_net
from advfast.studies.room import Room


def test_images_and_networks_are_the_same_up_to_rounding():
    room = Room(0.3)
    net = conv_net((3, 8, 8), 5, (4,), (2,)).eval()
    x = 1.6 * torch.rand(6, 3, 8, 8) - 0.3
    inside = room.put(x)
    assert inside.min() >= 0 and inside.max() <= 1
    torch.testing.assert_close(room.take(inside), x)
    torch.testing.assert_close(room.network(net, 3)(inside), net(x))
    assert room.scale == pytest.approx(1 / 1.6)
    assert Room(0).network(net, 3) is net and torch.equal(Room(0).put(x.clamp(0, 1)), x.clamp(0, 1))


def test_what_leaves_the_margin_is_refused():
    x = torch.full((1, 1, 4, 4), 1.2)
    Room(0.2).put(x)
    for bad in (x + 0.01, -x, torch.full_like(x, float("nan"))):
        with pytest.raises(ValueError, match=r"must have pixels in \[-0.2, 1.2\]"):
            Room(0.2).put(bad)
    with pytest.raises(ValueError, match="margin must be"):
        Room(-0.1)


def test_an_attack_of_the_library_is_that_without_a_box():
    torch.manual_seed(0)
    eps, room = 0.2, Room(0.4)
    net = conv_net((1, 8, 8), 10, (8,), (1,), batch_norm=False)
    x, y = 1.4 * torch.rand(32, 1, 8, 8) - 0.2, torch.arange(32) % 10
    free = PGDAttack(net, eps, 0.05, 5, False, bounds=None)(x, y)
    inside = room.network(net, 1)
    scaled = PGDAttack(inside, eps * room.scale, 0.05 * room.scale, 5, False)(room.put(x), y)
    assert free.min() < -0.2 and free.max() > 1.2
    # A gradient near zero may round to the other sign.
    assert ((room.take(scaled) - free).abs() < 1e-5).float().mean() > 0.99


def test_train_and_evaluate_take_them():
    room = Room(1.0)
    y = torch.arange(64) % 2
    x = torch.where(y == 1, 1.9, -0.9)[:, None, None, None].expand(-1, 1, 4, 4).contiguous()
    net = room.network(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), 1)
    parts = room.put(x), y
    result = advfast.train(
        net, parts, val=parts, method="standard", epochs=2, batch_size=16, lr=0.1, progress=False
    )
    assert advfast.evaluate(result.model, parts, attacks=("clean",))["clean"].value == 1
