"""The networks themselves: sizes, shapes, layouts, and that the rest of the library takes them."""

import copy

import pytest
import torch

import advfast
from advfast import models
from advfast.models import VisionTransformer
from advfast.training import checkpoint

COUNTS = [
    ("resnet18", {}, 11_173_962),
    ("preact-resnet18", {}, 11_172_170),
    ("preact-resnet18", {"final_bn": False}, 11_171_146),
    ("wrn-28-10", {}, 36_479_194),
    ("wrn-34-10", {}, 46_160_474),
    ("wide-resnet", {"depth": 34, "width": 10}, 46_160_474),
    ("resnet50", {}, 25_557_032),
]


def trainable(model):
    return sum(value.numel() for value in model.parameters() if value.requires_grad)


@pytest.mark.parametrize(("name", "kwargs", "count"), COUNTS)
def test_published_parameter_counts(name, kwargs, count):
    with torch.device("meta"):
        assert trainable(models.make(name, **kwargs)) == count


@pytest.mark.parametrize(("name", "count"), [("vit-tiny", 5_717_416), ("vit-small", 22_050_664)])
def test_vit_is_deit_for_its_images(name, count):
    with torch.device("meta"):
        model = models.make(name, in_shape=(3, 224, 224), classes=1000, patch=16)
    assert trainable(model) == count


def test_vit_is_attention_written_out():
    torch.manual_seed(0)
    model = VisionTransformer((1, 8, 8), classes=3, dim=6, depth=2, heads=2).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    weights = dict(model.named_parameters())
    image = torch.rand(1, 8, 8, dtype=torch.float64)

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    corners = [(0, 0), (0, 4), (4, 0), (4, 4)]
    patches = torch.stack([image[:, i : i + 4, j : j + 4].flatten() for i, j in corners])
    tokens = patches @ weights["patches.weight"].flatten(1).T + weights["patches.bias"]
    tokens = torch.cat([weights["token"][0], tokens]) + weights["positions"][0]  # [5, 6]
    for block in ("blocks.0", "blocks.1"):
        query, key, value = linear(f"{block}.qkv", norm(f"{block}.norm1", tokens)).chunk(3, 1)
        heads = []
        for part in (slice(0, 3), slice(3, 6)):
            scores = query[:, part] @ key[:, part].T / 3**0.5
            heads.append(scores.softmax(1) @ value[:, part])
        tokens = tokens + linear(f"{block}.projection", torch.cat(heads, 1))
        hidden = linear(f"{block}.mlp1", norm(f"{block}.norm2", tokens))
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        tokens = tokens + linear(f"{block}.mlp2", hidden)
    expected = linear("linear", norm("norm", tokens)[:1])
    torch.testing.assert_close(model(image[None]), expected)


SMALL = {
    "small-cnn": {},
    "resnet18": {"width": 4},
    "preact-resnet18": {"width": 4},
    "preact-raw-3x3": {
        "name": "preact-resnet18",
        "width": 4,
        "shortcut": "raw-3x3",
        "padding": "end",
        "activation": "silu",
    },
    "wide-resnet": {"depth": 10, "width": 1},
    "wide-silu-end": {
        "name": "wide-resnet",
        "depth": 10,
        "width": 2,
        "activation": "silu",
        "padding": "end",
    },
    "vit": {},
    "resnet50": {"width": 4},
}


def make(key, **kwargs):
    """A network small enough for a test; a ViT of depth 2 has no name of its own."""
    torch.manual_seed(0)
    if key == "vit":
        return VisionTransformer(dim=24, depth=2, **kwargs)
    options = {"name": key, **SMALL[key], **kwargs}
    return models.make(**options)


@pytest.mark.parametrize("key", SMALL)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 8, 8)], ids=str)
def test_shapes_and_normalisation(key, shape):
    if key == "preact-raw-3x3" and shape[1] == 28:
        with pytest.raises(ValueError, match="multiples of 8"):
            make(key, in_shape=shape)
        return
    mean, std = [0.3] * shape[0], [0.5] * shape[0]
    plain = make(key, in_shape=shape, classes=7).eval()
    scaled = make(key, in_shape=shape, classes=7, mean=mean, std=std).eval()
    x = torch.rand(2, *shape)
    assert plain(x).shape == (2, 7)
    torch.testing.assert_close(scaled(x), plain((x - 0.3) / 0.5))


@pytest.mark.parametrize("key", SMALL)
def test_attack_in_both_layouts(key):
    model = make(key, in_shape=(3, 16, 16)).eval()
    images, labels = torch.rand(4, 3, 16, 16), torch.arange(4)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        laid_out = model.to(memory_format=layout)
        x = images.to(memory_format=layout)
        attack = advfast.PGDAttack(laid_out, eps=8 / 255, alpha=2 / 255, steps=3, seed=1)
        adversarial = attack(x, labels)
        assert adversarial.is_contiguous(memory_format=layout)
        assert (adversarial - images).abs().max() <= 8 / 255 + 1e-6
        before, after = (
            torch.nn.functional.cross_entropy(laid_out(v), labels) for v in (x, adversarial)
        )
        assert after > before
        results.append(laid_out(x))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("key", SMALL)
def test_a_step_of_training_reaches_every_weight(key):
    model = make(key, in_shape=(3, 16, 16)).train()
    loss = torch.nn.functional.cross_entropy(model(torch.rand(8, 3, 16, 16)), torch.arange(8))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if "qkv.bias" not in name:  # the part of the keys cancels in the softmax
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("key", [key for key in SMALL if key != "vit"])
def test_copies_and_checkpoints(key, tmp_path):
    model = make(key, in_shape=[3, 16, 16], classes=5, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    model(torch.rand(4, 3, 16, 16))  # running statistics that are not the initial ones
    model.eval()
    twin = copy.deepcopy(model)
    assert models.spec(twin) == models.spec(model) is not None
    path = tmp_path / "model.pt"
    state = checkpoint.state_of(model)
    checkpoint.save(path, model, state, epoch=1, metrics={}, config={})
    x = torch.rand(2, 3, 16, 16)
    for other in (twin, advfast.load(path)):
        assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("key", SMALL)
def test_compiles_in_one_graph(key):
    torch._dynamo.reset()
    model = make(key, in_shape=(3, 16, 16)).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.rand(2, 3, 16, 16, requires_grad=True)
    expected, got = model(x), compiled(x)
    torch.testing.assert_close(got, expected)
    (gradient,) = torch.autograd.grad(got.sum(), x)
    (wanted,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5)


def test_dropout_only_in_training():
    model = models.make("wide-resnet", depth=10, width=1, dropout=0.5, in_shape=(3, 8, 8))
    x = torch.rand(4, 3, 8, 8)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_he_initialisation():
    model = models.make("wide-resnet", depth=10, width=4)
    weight = model.layer2[0].conv1.weight  # [128, 64, 3, 3]
    assert weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert model.linear.bias.abs().max() == 0
    stem = models.make("resnet50").conv1.weight  # [64, 3, 7, 7]
    assert stem.std().item() == pytest.approx((2 / (49 * 64)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("name", "kwargs", "match"),
    [
        ("resnet18", {"in_shape": (3, 2, 2)}, "in_shape"),
        ("resnet18", {"classes": 1}, "classes"),
        ("resnet18", {"mean": [0.5], "std": [0.5]}, "3 values"),
        ("preact-resnet18", {"shortcut": "none"}, "shortcut must be one of activated, raw"),
        ("preact-resnet18", {"activation": "gelu"}, "activation must be one of relu, silu"),
        ("preact-resnet18", {"padding": "same"}, "padding must be one of symmetric, end"),
        ("wide-resnet", {"depth": 27}, "depth must be 6 n"),
        ("wide-resnet", {"width": 0}, "width"),
        ("wide-resnet", {"dropout": 1.0}, "dropout"),
        ("wide-resnet", {"padding": "end", "in_shape": (3, 30, 30)}, "multiples of 4"),
        ("vit-tiny", {"in_shape": (3, 30, 32)}, "multiples of 4"),
        ("vit-tiny", {"patch": 0}, "patch"),
    ],
)
def test_rejects(name, kwargs, match):
    with pytest.raises(ValueError, match=match):
        models.make(name, **kwargs)


def test_vit_rejects_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="multiple of heads"):
        VisionTransformer(dim=20, heads=3)


def test_a_fixed_size_cannot_be_changed():
    with pytest.raises(TypeError, match="depth"):
        models.make("wrn-28-10", depth=34)
