"""RoBal: its loss sample by sample, its attack, and the model that it leaves."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import advfast
from advfast.models import CosineLinear, cosine_head
from advfast.training import methods, names, train

from .by_hand import batch_of, network, settings

COUNTS = [9, 4, 2]


def made(model, batch, **options):
    steps = options.pop("steps", None)
    method = methods.make(
        "robal", model, settings(options={"counts": COUNTS} | options, steps=steps)
    )
    method.begin(None, batch.images[:2])
    return method


def softmax(row):
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize(
    "options", [{}, {"tau_b": 1.5, "tau_m": 0.3}, {"scale": 4, "margin": 0, "beta": 2}], ids=str
)
def test_loss_is_its_formula(options):
    model, batch = network(), batch_of()
    model[1] = nn.Identity()  # else a batch is not the sum of its samples
    method = made(model, batch, **options)
    scale, margin = options.get("scale", 10), options.get("margin", 0.1)
    tau_b, tau_m = options.get("tau_b", 1.2), options.get("tau_m", 0)
    images = method.craft(batch)
    loss, logits = method.loss(images, batch)
    features, weight = model[:4], model[4].weight
    assert isinstance(model[4], CosineLinear)
    total = 0.0
    for x, attacked, y in zip(batch.images, images, batch.labels.tolist(), strict=True):
        cosines = []
        for image in (x, attacked):
            h = features(image[None])[0]
            cosines.append([(h @ w / (h.norm() * w.norm())).item() for w in weight])
        shifted = [scale * c + tau_b * math.log(n) for c, n in zip(cosines[1], COUNTS, strict=True)]
        shifted[y] -= scale * margin + tau_m * math.log(COUNTS[y] / min(COUNTS))
        p, q = map(softmax, cosines)
        total -= math.log(softmax(shifted)[y])
        total += options.get("beta", 6) * sum(
            a * math.log(a / b) for a, b in zip(p, q, strict=True)
        )
    assert loss.item() == pytest.approx(total / len(batch.labels), rel=1e-9)
    assert torch.equal(logits, model(images))


def test_its_attack_raises_the_cross_entropy_of_the_cosines():
    model, batch = network(), batch_of()
    method = made(model, batch)
    assert (method.steps, method.pgd.steps) == (5, 5)
    assert method.alpha == pytest.approx(0.1 * 0.0078 / 0.031)
    cosines = nn.Sequential(model, Divided(10))
    torch.manual_seed(2)
    found = method.craft(batch)
    torch.manual_seed(2)
    attack = advfast.PGDAttack(cosines, eps=0.1, alpha=method.alpha, steps=5)
    expected = attack(batch.images, batch.labels, sample_ids=batch.indices)
    torch.testing.assert_close(found, expected)
    before = F.cross_entropy(cosines.eval()(batch.images), batch.labels)
    assert F.cross_entropy(cosines(found), batch.labels) > before


class Divided(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, logits):
        return logits / self.by


def test_the_head_is_trained_saved_and_evaluated(tmp_path):
    torch.manual_seed(0)
    labels = torch.arange(90) % 3
    images = torch.rand(90, 1, 8, 8) / 2
    images[torch.arange(90), 0, labels] += 0.5
    for folder, model in (("named", "small-cnn"), ("own", network(torch.float32))):
        result = train(
            model, (images, labels), method="robal", steps=2, epochs=2, batch_size=24, eps=0.1,
            out=tmp_path / folder, progress=False, test=(images, labels),
        )  # fmt: skip
        assert cosine_head(result.model) == 10
        fresh = None if folder == "named" else network(torch.float32)
        loaded = advfast.load(tmp_path / folder / names.BEST, fresh)
        assert torch.equal(loaded(images), result.model(images))
        assert loaded(images).abs().max() <= 10.0001


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0}, "scale must be above 0, got 0"),
        ({"margin": -0.1}, "margin must be a finite number, 0 or more, got -0.1"),
        ({"start": "normal"}, "the method has no option 'start'; it has scale, margin"),
        ({"counts": [1, 2]}, "one for each of the 3 classes of the model, got 2"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        made(network(), batch_of(), **options)


def test_a_model_without_a_linear_layer():
    with pytest.raises(ValueError, match=r"place of the last nn\.Linear: Sequential"):
        made(nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()), batch_of())
