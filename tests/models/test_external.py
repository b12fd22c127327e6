"""timm and torchvision are replaced by modules that record how they were called."""

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from advfast import models

MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]


class Net(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(channels, 4, 3, stride=2, padding=1, bias=False))
        self.head = nn.Linear(4, classes)
        self.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1)}

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


@pytest.fixture
def libraries(monkeypatch):
    calls = []

    def create_model(name, pretrained=False, num_classes=1000, in_chans=3, **kwargs):
        calls.append({"name": name, "pretrained": pretrained, **kwargs})
        if name != "net":
            raise RuntimeError(f"Unknown model ({name})")
        return Net(in_chans, num_classes)

    def get_model(name, weights=None, num_classes=1000, **kwargs):
        calls.append({"name": name, "weights": weights, **kwargs})
        if name == "flat":
            return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))
        if name != "net":
            raise ValueError(f"Unknown model {name}")
        return Net(3, num_classes)

    def module(name, **content):
        made = ModuleType(name)
        vars(made).update(content)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    module("timm", create_model=create_model)
    module("torchvision", models=module("torchvision.models", get_model=get_model))
    return SimpleNamespace(calls=calls)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize("channels", [1, 3])
def test_made_by_the_library(library, channels, libraries):
    shape = (channels, 8, 8)
    model = models.make(
        f"{library}:net", in_shape=shape, classes=7, mean=MEAN[:channels], std=STD[:channels]
    )
    x = torch.rand(2, *shape)
    mean, std = (torch.tensor(v[:channels]).reshape(1, -1, 1, 1) for v in (MEAN, STD))
    assert model(x).shape == (2, 7)
    torch.testing.assert_close(model(x), model.net((x - mean) / std))
    first = model.net.features[0]
    assert (first.stride, first.padding, first.bias) == ((2, 2), (1, 1), None)


@pytest.mark.parametrize(
    ("name", "kwargs", "fills"),
    [
        ("timm:net", {"drop_rate": 0.1}, {"pretrained": True, "checkpoint_path": "x"}),
        ("torchvision:net", {"norm": "x"}, {"weights": "DEFAULT"}),
    ],
)
def test_rebuilt_without_a_download(name, kwargs, fills, libraries):
    model = models.make(name, in_shape=(3, 8, 8), mean=MEAN, std=STD, **kwargs, **fills)
    spec = models.spec(model)
    assert spec["name"] == name and not set(fills) & set(spec["kwargs"])
    models.make(spec["name"], **spec["kwargs"]).load_state_dict(model.state_dict())
    first, second = libraries.calls
    assert fills.items() <= first.items() and kwargs.items() <= second.items()
    assert not second.get("pretrained") and second.get("weights") is None


def test_pretrained_timm_brings_its_normalisation(libraries):
    model = models.make("timm:net", pretrained=True)
    assert model.normalise.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert models.spec(model)["kwargs"]["std"] == [0.2, 0.2, 0.1]
    plain = models.make("timm:net")
    assert plain.normalise.mean.abs().max() == 0


@pytest.mark.parametrize(
    ("name", "kwargs", "match"),
    [
        ("timm:nt", {}, "timm cannot make 'nt': Unknown model"),
        ("torchvision:nt", {}, "Unknown model"),
        ("torchvision:net", {"weights": "DEFAULT"}, "need the mean and std"),
        ("torchvision:net", {"weights": "DEFAULT", "mean": MEAN}, "need the mean and std"),
        ("torchvision:flat", {"in_shape": (1, 4, 4)}, "no convolution"),
        (
            "torchvision:net",
            {"weights": "DEFAULT", "in_shape": (1, 8, 8), "mean": [0], "std": [1]},
            "3 channels, got 1",
        ),
        ("timm:net", {"in_shape": (8, 8)}, "in_shape"),
    ],
)
def test_rejects(name, kwargs, match, libraries):
    with pytest.raises(ValueError, match=match):
        models.make(name, **kwargs)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_absent_library(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, f"{library}.models", None)
    with pytest.raises(ImportError, match=f"pip install {library}"):
        models.make(f"{library}:resnet18")


def test_libraries_are_imported_only_when_asked_for():
    code = "import sys, advfast.models; assert not {'timm', 'torchvision'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name_lists_the_libraries():
    with pytest.raises(ValueError, match="timm:NAME"):
        models.make("resnt:18")
