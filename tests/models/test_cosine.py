"""The cosine classifier: its values, where it goes, and that a checkpoint brings it back."""

import math

import pytest
import torch
from torch import nn

from advfast import models
from advfast.models import CosineLinear, cosine_head, use_cosine_head
from advfast.training import checkpoint


def test_logits_are_scaled_cosines():
    torch.manual_seed(0)
    layer, features = nn.Linear(5, 3).double(), torch.randn(4, 5, dtype=torch.float64)
    logits = CosineLinear(layer, 7.0)(features)
    for row, x in zip(logits.tolist(), features.tolist(), strict=True):
        for value, w in zip(row, layer.weight.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(x, w, strict=True))
            assert value == pytest.approx(7 * dot / math.hypot(*x) / math.hypot(*w))
    torch.testing.assert_close(CosineLinear(layer, 7.0)(3 * features), logits)


def test_features_of_length_zero_have_a_finite_gradient():
    features = torch.zeros(2, 5, requires_grad=True)
    CosineLinear(nn.Linear(5, 3), 10.0)(features).sum().backward()
    assert features.grad.abs().max() < 1e5


@pytest.mark.parametrize("name", ["small-cnn", "preact-resnet18", "resnet18", "vit-tiny"])
def test_it_takes_the_place_of_the_classifier(name):
    shape = (1, 28, 28) if name == "small-cnn" else (3, 32, 32)
    model = models.make(name, in_shape=shape, classes=10).eval()
    last = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    weight = model.get_submodule(last).weight
    use_cosine_head(model, 10.0)
    head = model.get_submodule(last)
    assert isinstance(head, CosineLinear) and head.weight is weight and not head.training
    logits = model(torch.rand(3, *shape))
    assert logits.shape == (3, 10) and logits.abs().max() <= 10.0001
    assert cosine_head(model) == 10
    use_cosine_head(model, 10)  # as it is
    assert model.get_submodule(last) is head


def test_a_checkpoint_brings_it_back(tmp_path):
    named = models.make("small-cnn", in_shape=(1, 8, 8), classes=3, cosine_head=8)
    own = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    use_cosine_head(own, 8)
    for model, fresh in ((named, None), (own, nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))):
        path = tmp_path / "model.pt"
        checkpoint.save(path, model, checkpoint.state_of(model), epoch=1, metrics={}, config={})
        images = torch.rand(4, 1, 8, 8)
        loaded = checkpoint.load(path, fresh)
        assert torch.equal(loaded(images), model.eval()(images)) and cosine_head(loaded) == 8
    again = checkpoint.load(path, own)
    assert again is own
    normed = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3))
    models.use_norm_layers(normed, "batch-no-stats")
    use_cosine_head(normed, 2)
    assert checkpoint.describe(normed) | {"class": ""} == {
        "class": "", "norm_layers": "batch-no-stats", "cosine_head": 2.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "scale", "message"),
    [
        (nn.Flatten(), 10, "Flatten has none"),
        (nn.Linear(3, 2), 10, "Linear has none"),
        (nn.Sequential(nn.Linear(3, 2)), 0, "scale must be a finite number > 0, got 0"),
        (nn.Sequential(nn.Linear(3, 2)), math.inf, "scale must be a finite number > 0, got inf"),
        (nn.Sequential(nn.Linear(3, 2)), True, "scale must be a finite number > 0, got True"),
    ],
)
def test_errors(model, scale, message):
    with pytest.raises(ValueError, match=message):
        use_cosine_head(model, scale)


def test_another_scale_is_an_error():
    model = nn.Sequential(nn.Linear(3, 2))
    use_cosine_head(model, 10)
    with pytest.raises(ValueError, match=r"scale=5: the model has a cosine head of 10.0 already"):
        use_cosine_head(model, 5)
