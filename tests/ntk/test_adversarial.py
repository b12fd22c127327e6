import copy

import pytest
import torch
from torch import nn

from advfast.ntk import clean_adversarial, metrics, ntk, reduce

from .kernels import dense


@pytest.fixture
def model():
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)
    )
    net(torch.rand(20, 1, 4, 4))  # some running statistics
    return net.double().eval()


@pytest.fixture
def images():
    x = torch.rand(9, 1, 4, 4, dtype=torch.float64)
    return x, (x + 0.2 * torch.randn_like(x)).clamp(0, 1), torch.arange(9) % 4


def test_three_kernels_from_one(model, images):
    x, changed, _ = images
    found = clean_adversarial(model, x, changed)
    for theta, (first, second) in {
        "clean": (x, x),
        "adversarial": (changed, changed),
        "cross": (x, changed),
    }.items():
        expected = dense(model, first, second)
        scale = float(expected.abs().max())
        torch.testing.assert_close(getattr(found, theta), expected, rtol=0, atol=1e-11 * scale)
    distance = metrics.kernel_distance(dense(model, x), dense(model, changed), "full")
    assert found.distance("full") == pytest.approx(distance, rel=1e-8)
    assert found.distance() > 1e-4


@pytest.mark.parametrize("readout", ["loss", "per sample"])
def test_both_sides_have_the_labels_and_readouts_of_the_images(model, images, readout):
    x, changed, y = images
    if readout == "per sample":
        readout = torch.randn(9, 2, 4, dtype=torch.float64)
        expected = ntk(model, x, changed, readout=(readout, readout)).tensor
    else:
        expected = ntk(model, x, changed, y1=y, y2=y, readout=readout).tensor
    found = clean_adversarial(model, x, changed, y=y, readout=readout)
    torch.testing.assert_close(found.cross, expected, rtol=1e-9, atol=1e-12)


def test_reduce_is_what_the_whole_kernel_says(model, images):
    x, _, y = images
    theta = dense(model, x)
    found = reduce(
        model, x, y=y, metrics=["trace", "alignment", "specialization", "top_share"], tile=4, k=9
    )
    assert found["trace"] == pytest.approx(metrics.trace(theta), rel=1e-10)
    assert found["alignment"] == pytest.approx(metrics.alignment(theta, y), rel=1e-10)
    assert found["specialization"] == pytest.approx(
        metrics.specialization(theta, y).value, rel=1e-10
    )
    assert found["top_share"] == pytest.approx(metrics.top_share(theta), rel=1e-10)
    loss = ntk(model, x, y1=y, readout="loss").tensor
    found = reduce(model, x, y=y, metrics=["norm"], readout="loss")
    assert found["norm"] == pytest.approx(float(loss.norm()), rel=1e-10)


def test_reduce_compares_two_checkpoints(model, images):
    x, _, _ = images
    later = copy.deepcopy(model)
    with torch.no_grad():
        for p in later.parameters():
            p += 0.1 * torch.randn_like(p)
    found = reduce(model, x, other=later, metrics=["distance", "radius", "angle"], of="full")
    a, b = dense(model, x), dense(later, x)
    assert found["distance"] == pytest.approx(metrics.kernel_distance(a, b, "full"), rel=1e-8)
    assert (found["radius"], found["angle"]) == pytest.approx(metrics.polar(a, b, of="full"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x, y: clean_adversarial(m, x, x[:3]), "x_adv must have the shape of x"),
        (lambda m, x, y: clean_adversarial(m, x, None), "x_adv must be a tensor"),
        (lambda m, x, y: clean_adversarial(m, x, x, y1=y), "y1 is for"),
        (lambda m, x, y: clean_adversarial(m, x, x, readout="loss"), "needs the labels"),
        (lambda m, x, y: reduce(m, x[:0]), "N >= 1"),
        (lambda m, x, y: reduce(m, x, metrics=["alignment"]), "needs the labels"),
    ],
)
def test_bad_arguments(model, images, call, message):
    x, _, y = images
    with pytest.raises((ValueError, TypeError)) as raised:
        call(model, x, y)
    assert message in str(raised.value)
