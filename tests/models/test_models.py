from pathlib import Path

import pytest
import torch

from advfast import models


def test_normalise():
    layer = models.Normalise([0.5, 0.25], [0.5, 0.1])
    x = torch.rand(3, 2, 4, 4)
    expected = torch.stack([(x[:, 0] - 0.5) / 0.5, (x[:, 1] - 0.25) / 0.1], 1)
    torch.testing.assert_close(layer(x), expected)
    assert list(layer.parameters()) == []
    assert set(layer.state_dict()) == {"mean", "std"}


@pytest.mark.parametrize(("mean", "std"), [([0.5], [0.0]), ([0.5], [1, 1]), ([], []), ([0], [-1])])
def test_normalise_rejects(mean, std):
    with pytest.raises(ValueError, match="std"):
        models.Normalise(mean, std)


@pytest.mark.parametrize(
    ("shape", "features"),
    [((1, 28, 28), 1568), ((1, 8, 8), 1024), ((3, 32, 32), 2048), ((1, 9, 7), 1280)],
)
def test_small_cnn_shapes(shape, features):
    model = models.make("small-cnn", in_shape=shape, classes=7)
    assert model.linear1.in_features == features
    assert model(torch.rand(2, *shape)).shape == (2, 7)


def test_small_cnn_for_28x28_is_the_published_network():
    model = models.make("small-cnn")
    shapes = [tuple(parameter.shape) for parameter in model.parameters() if parameter.dim() > 1]
    assert shapes == [(16, 1, 4, 4), (32, 16, 4, 4), (100, 1568), (10, 100)]


def test_normalisation_is_inside():
    torch.manual_seed(0)
    plain = models.make("small-cnn", in_shape=(1, 8, 8))
    torch.manual_seed(0)
    scaled = models.make("small-cnn", in_shape=(1, 8, 8), mean=[0.3], std=[0.5])
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(scaled(x), plain((x - 0.3) / 0.5))


def test_make_remembers():
    kwargs = {"in_shape": [1, 8, 8], "classes": 3}
    model = models.make("small-cnn", **kwargs)
    assert models.spec(model) == {"name": "small-cnn", "kwargs": kwargs}
    assert models.spec(torch.nn.Linear(1, 1)) is None


@pytest.mark.parametrize(
    "kwargs",
    [
        {"in_shape": (8, 8)},
        {"in_shape": (1, 2, 2)},
        {"classes": 1},
        {"mean": [0, 0], "std": [1, 1]},
    ],
)
def test_small_cnn_rejects(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        models.make("small-cnn", **kwargs)


def test_unknown_model():
    with pytest.raises(ValueError, match="did you mean 'small-cnn'"):
        models.make("smal-cnn")


@pytest.mark.parametrize("side", [28, 8])
def test_size_of_small_cnn_is_that_of_its_page(side):
    model = models.make("small-cnn", in_shape=(1, side, side), classes=10)
    count = sum(parameter.numel() for parameter in model.parameters())
    page = Path(__file__).parents[2] / "docs" / "data-and-models.md"
    assert f"{count:,} at {side}x{side}" in page.read_text()
