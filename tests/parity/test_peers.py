"""The same results as libraries that we did not write. benchmarks/make_peers_env.sh makes an environment with them."""

import importlib.util

import pytest
import torch
from torch import nn

from advfast import PGDAttack
from benchmarks import peers

from ..attacks.networks import batch, cnn

EPS, ALPHA = 8 / 255, 2 / 255
MODULES = {
    "torchattacks": "torchattacks",
    "foolbox": "foolbox",
    "art": "art",
    "cleverhans": "cleverhans",
}


def peer(name: str):
    if importlib.util.find_spec(MODULES[name]) is None:
        pytest.skip(f"{name} is not installed here")
    return peers.PEERS[name]


def wide_cnn() -> nn.Module:
    """Larger and confident: gradients of every size."""
    torch.manual_seed(7)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(800, 10),
    )  # fmt: skip
    with torch.no_grad():
        net(torch.rand(64, 3, 12, 12))
        net[-1].weight.mul_(8)
    return net.eval()


@pytest.mark.parametrize("n", [1, 10, 32, 50])
@pytest.mark.parametrize("network", [cnn, wide_cnn])
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore")
def test_linf_is_bit_identical(name, network, n):
    make, model, (images, labels) = peer(name), network(), batch(n)
    expected = make(model, peers.Settings("linf", EPS, ALPHA, 10, tuple(images.shape)))(
        images, labels
    )
    model.eval()
    got = PGDAttack(model, EPS, ALPHA, 10, False, fold=False)(images, labels)
    # Only the scale of the loss (mean or sum) may differ, and only where n is not a power of two.
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["torchattacks", "foolbox"])
@pytest.mark.filterwarnings("ignore")
def test_l2_ball_then_box(name):
    make, model, (images, labels) = peer(name), wide_cnn(), batch(32)
    expected = make(model, peers.Settings("l2", 0.5, 0.1, 10, tuple(images.shape)))(images, labels)
    got = PGDAttack(model, 0.5, 0.1, 10, False, norm="l2")(images, labels)
    assert (got - expected).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["cleverhans", "art"])
@pytest.mark.filterwarnings("ignore")
def test_l2_box_inside_the_step(name):
    peer(name)
    model, (images, labels) = wide_cnn(), batch(32)
    if name == "cleverhans":
        from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent

        expected = projected_gradient_descent(
            model, images, 0.5, 0.1, 10, 2, clip_min=0, clip_max=1, y=labels, rand_init=False
        ).detach()
    else:
        from art.attacks.evasion import ProjectedGradientDescentPyTorch
        from art.estimators.classification import PyTorchClassifier

        classifier = PyTorchClassifier(
            model,
            nn.CrossEntropyLoss(),
            images.shape[1:],
            10,
            clip_values=(0.0, 1.0),
            device_type="cpu",
        )
        attack = ProjectedGradientDescentPyTorch(
            classifier, 2, 0.5, 0.1, max_iter=10, verbose=False
        )
        expected = torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))
    got = PGDAttack(model, 0.5, 0.1, 10, False, norm="l2", l2_order="box-ball-box")(images, labels)
    assert (got - expected).abs().max() < 1e-6


@pytest.mark.filterwarnings("ignore")
def test_random_start_of_torchattacks():
    peer("torchattacks")
    import torchattacks

    model, (images, labels) = wide_cnn(), batch(32)
    for norm, kind, eps, alpha, gap in (
        ("linf", torchattacks.PGD, EPS, ALPHA, 0.0),
        ("l2", torchattacks.PGDL2, 0.5, 0.1, 1e-6),
    ):
        torch.manual_seed(21)
        expected = kind(model, eps, alpha, 10, True)(images, labels)
        torch.manual_seed(21)
        got = PGDAttack(model, eps, alpha, 10, True, norm=norm, start="torch")(images, labels)
        assert (got - expected).abs().max() <= gap


@pytest.mark.filterwarnings("ignore")
def test_changing_the_import_is_the_whole_migration():
    peer("torchattacks")
    import torchattacks

    model, (images, labels) = cnn(), batch(16)
    results = []
    for PGD in (torchattacks.PGD, PGDAttack):
        attack = PGD(model, 8 / 255, 2 / 255, 10, False)
        results.append(attack(images, labels))
        attack.eps, attack.steps = 4 / 255, 5
        results.append(attack(images, labels))
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])
