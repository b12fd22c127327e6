"""Settings that suit the built-in data sets: the defaults of the command line."""

from __future__ import annotations

from typing import Any

from advfast.data import base_name

_CIFAR: dict[str, Any] = {
    # Rice et al. (ICML 2020): PreActResNet-18, a tenth of the rate at half and at three quarters, pad-crop and flip.
    "model": "preact-resnet18",
    "eps": 8 / 255,
    "alpha": 2 / 255,
    "steps": 10,
    "epochs": 200,
    "batch_size": 128,
    "lr": 0.1,
    "schedule": "piecewise",
    "augment": ["crop", "flip"],
}

_MNIST_LIKE: dict[str, Any] = {"model": "small-cnn", "steps": 7, "epochs": 5, "lr": 0.1}

PRESETS: dict[str, dict[str, Any]] = {
    # One thread: 8x8 images leave nothing for a second core, and waiting for one on a busy machine costs far more.
    "digits": {
        "model": "small-cnn",
        "eps": 0.15,
        "steps": 10,
        "epochs": 30,
        "lr": 0.2,
        "threads": 1,
    },
    "fashion-mnist": _MNIST_LIKE | {"eps": 0.1},
    "mnist": _MNIST_LIKE | {"eps": 0.3},
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
}


def preset(data: str) -> dict[str, Any]:
    """Of a data set by name, a long-tailed one by that of its base; {} where there is none."""
    return PRESETS.get(base_name(data), {})
