"""A pytest plugin for both runs: what the peers' tests import and this machine need not have."""

from __future__ import annotations

import importlib.util
import sys
import types
import unittest

import torch
from torch import Tensor, nn


def _module(name: str, **contents: object) -> None:
    module = types.ModuleType(name)
    module.__path__ = []  # type: ignore[attr-defined]
    vars(module).update(contents)
    sys.modules[name] = module


def _nose() -> None:
    """cleverhans' tests take SkipTest from nose, which does not run on Python 3.12."""
    _module("nose")
    _module("nose.plugins")
    _module("nose.plugins.skip", SkipTest=unittest.SkipTest)


class _Cifar(nn.Module):
    """Stands for a CIFAR-10 network: convolutions, BN, ReLU, ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1),
            nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _load_model(model_name: str = "", model_dir: str = "", norm: str = "") -> nn.Module:
    torch.manual_seed(0)
    model = _Cifar()
    with torch.no_grad():
        model(torch.rand(64, 3, 32, 32))
    return model.eval()


def _load_cifar10(n_examples: int = 5, data_dir: str = "") -> tuple[Tensor, Tensor]:
    """Random images with the classes that the network gives them, so that it starts at 100 %."""
    images = torch.rand(n_examples, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return images, _load_model()(images).argmax(1)


def _clean_accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


def _robustbench() -> None:
    """torchattacks' tests download a network and CIFAR-10 through RobustBench."""
    _module("robustbench")
    _module("robustbench.utils", load_model=_load_model, clean_accuracy=_clean_accuracy)
    _module("robustbench.data", load_cifar10=_load_cifar10)


def _for_adv_lib() -> None:
    """adv-lib imports visdom for live plots and torchvision for LPIPS."""
    if importlib.util.find_spec("visdom") is None:
        _module("visdom", Visdom=object)
    if importlib.util.find_spec("torchvision") is None:
        _module("torchvision", models=types.ModuleType("torchvision.models"))


_nose()
_robustbench()
_for_adv_lib()
