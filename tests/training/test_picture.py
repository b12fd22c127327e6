import sys

import pytest
import torch

from advfast import models
from advfast.data import as_source
from advfast.evaluation.picture import PictureSkipped, draw
from advfast.training import train

from .conftest import EPS, RECIPE


def test_picture_of_a_run_is_not_blank(robust):
    from matplotlib.image import imread

    pixels = imread(robust.picture)[..., :3]
    height, width, _ = pixels.shape
    assert width > 1000
    assert height > 400
    # Three rows of panels: black and white pictures, the same disturbed, and the difference in colour.
    colour = pixels.max(2) - pixels.min(2)
    thirds = [slice(i * height // 3 + 30, (i + 1) * height // 3 - 20) for i in range(3)]
    clean, adversarial, difference = (pixels[rows] for rows in thirds)
    assert clean.std() > 0.2
    assert adversarial.std() > 0.15
    assert (colour[thirds[2]] > 0.3).mean() > 0.2  # red and blue
    assert (colour[thirds[0]] > 0.3).mean() < 0.05
    assert difference.std() > 0.2


@pytest.mark.parametrize(
    ("channels", "classes", "norm"), [(3, 4, "linf"), (2, 12, "l2"), (1, 1, "l1")]
)
def test_other_shapes(tmp_path, channels, classes, norm):
    model = models.make("small-cnn", in_shape=(channels, 8, 8), classes=max(classes, 2))
    labels = torch.arange(24) % classes
    source = as_source((torch.rand(24, channels, 8, 8), labels))
    model.train()
    draw(tmp_path / "a.png", model, source, eps=EPS, norm=norm)
    assert (tmp_path / "a.png").stat().st_size > 2000
    assert model.training


def test_samples_that_are_no_images(tmp_path):
    source = as_source((torch.rand(4, 5), torch.arange(4) % 2))
    with pytest.raises(PictureSkipped, match=r"shape \(5,\)"):
        draw(tmp_path / "a.png", torch.nn.Linear(5, 2), source, eps=EPS, norm="linf")


def test_without_matplotlib_the_run_ends_well(tmp_path, tiny, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    settings = dict(RECIPE, epochs=1, steps=1, progress=True)
    result = train("small-cnn", tiny, out=tmp_path, **settings)
    assert result.picture is None
    assert not (tmp_path / "adversarial.png").exists()
    assert not (tmp_path / "curves.png").exists()
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("skipped: matplotlib is not installed (pip install matplotlib)")
    )
