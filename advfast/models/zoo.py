"""Networks of published checkpoints, with the settings that the files do not hold.

The names are those of RobustBench: data set / threat model / name. Settings were read in RobustBench/robustbench,
robustbench/model_zoo/{cifar10,cifar100,imagenet}.py, and, for "locuslab/..." and "TRADES/...", in the repositories of
the papers.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from advfast.kernels.pgd.api import nearest

from .registry import make

_CIFAR10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)}
_CIFAR100 = {"classes": 100, "mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762)}
_CIFAR100_RICE = {
    "classes": 100,
    "mean": (0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
    "std": (0.2673342858792401, 0.2564384629170883, 0.27615047132568404),
}
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

_Recipe = tuple[str, dict[str, Any]]


def _wide(depth: int, width: int, **kwargs: Any) -> _Recipe:
    return "wide-resnet", {"depth": depth, "width": width, **kwargs}


def _deepmind(depth: int, width: int, **kwargs: Any) -> _Recipe:
    return _wide(depth, width, activation="silu", padding="end", **kwargs)


def _deepmind_r18(**kwargs: Any) -> _Recipe:
    options = {"activation": "silu", "padding": "end", "shortcut": "raw-3x3"}
    return "preact-resnet18", {**options, **kwargs}


PUBLISHED: dict[str, _Recipe] = {
    "cifar10/Linf/Rice2020Overfitting": _wide(34, 20, **_CIFAR10),
    "cifar10/Linf/Wong2020Fast": (
        "preact-resnet18",
        {"shortcut": "raw", "final_bn": False, **_CIFAR10},
    ),
    "cifar10/Linf/Zhang2019Theoretically": _wide(34, 10),
    "cifar10/Linf/Carmon2019Unlabeled": _wide(28, 10),
    "cifar10/Linf/Wang2020Improving": _wide(28, 10),
    "cifar10/Linf/Wu2020Adversarial": _wide(34, 10),
    "cifar10/Linf/Wu2020Adversarial_extra": _wide(28, 10),
    "cifar10/Linf/Huang2020Self": _wide(34, 10),
    "cifar10/Linf/Sehwag2021Proxy": _wide(34, 10),
    "cifar10/Linf/Sehwag2021Proxy_R18": ("resnet18", {}),
    "cifar10/Linf/Gowal2020Uncovering_28_10_extra": _deepmind(28, 10, **_CIFAR10),
    "cifar10/Linf/Gowal2020Uncovering_34_20": _deepmind(34, 20, **_CIFAR10),
    "cifar10/Linf/Gowal2020Uncovering_70_16": _deepmind(70, 16, **_CIFAR10),
    "cifar10/Linf/Gowal2020Uncovering_70_16_extra": _deepmind(70, 16, **_CIFAR10),
    "cifar10/Linf/Rebuffi2021Fixing_28_10_cutmix_ddpm": _deepmind(28, 10, **_CIFAR10),
    "cifar10/Linf/Rebuffi2021Fixing_70_16_cutmix_ddpm": _deepmind(70, 16, **_CIFAR10),
    "cifar10/Linf/Rebuffi2021Fixing_70_16_cutmix_extra": _deepmind(70, 16, **_CIFAR10),
    "cifar10/Linf/Rebuffi2021Fixing_106_16_cutmix_ddpm": _deepmind(106, 16, **_CIFAR10),
    "cifar10/Linf/Rebuffi2021Fixing_R18_ddpm": _deepmind_r18(**_CIFAR10),
    "cifar10/Linf/Rade2021Helper_R18_extra": _deepmind_r18(**_CIFAR10),
    "cifar10/Linf/Rade2021Helper_R18_ddpm": _deepmind_r18(**_CIFAR10),
    "cifar10/Linf/Wang2023Better_WRN-28-10": _deepmind(28, 10, **_CIFAR10),
    "cifar10/Linf/Wang2023Better_WRN-70-16": _deepmind(70, 16, **_CIFAR10),
    "cifar10/L2/Rice2020Overfitting": ("preact-resnet18", _CIFAR10),
    "cifar10/L2/Wu2020Adversarial": _wide(34, 10),
    "cifar10/L2/Gowal2020Uncovering": _deepmind(70, 16, **_CIFAR10),
    "cifar10/L2/Gowal2020Uncovering_extra": _deepmind(70, 16, **_CIFAR10),
    "cifar10/L2/Rebuffi2021Fixing_28_10_cutmix_ddpm": _deepmind(28, 10, **_CIFAR10),
    "cifar10/L2/Rebuffi2021Fixing_70_16_cutmix_ddpm": _deepmind(70, 16, **_CIFAR10),
    "cifar10/L2/Rebuffi2021Fixing_70_16_cutmix_extra": _deepmind(70, 16, **_CIFAR10),
    "cifar10/L2/Rebuffi2021Fixing_R18_cutmix_ddpm": _deepmind_r18(**_CIFAR10),
    "cifar10/L2/Wang2023Better_WRN-28-10": _deepmind(28, 10, **_CIFAR10),
    "cifar10/L2/Wang2023Better_WRN-70-16": _deepmind(70, 16, **_CIFAR10),
    "cifar100/Linf/Rice2020Overfitting": ("preact-resnet18", _CIFAR100_RICE),
    "cifar100/Linf/Wu2020Adversarial": _wide(34, 10, **_CIFAR100_RICE),
    "cifar100/Linf/Gowal2020Uncovering": _deepmind(70, 16, **_CIFAR100),
    "cifar100/Linf/Gowal2020Uncovering_extra": _deepmind(70, 16, **_CIFAR100),
    "cifar100/Linf/Rebuffi2021Fixing_28_10_cutmix_ddpm": _deepmind(28, 10, **_CIFAR100),
    "cifar100/Linf/Rebuffi2021Fixing_70_16_cutmix_ddpm": _deepmind(70, 16, **_CIFAR100),
    "cifar100/Linf/Rebuffi2021Fixing_R18_ddpm": _deepmind_r18(**_CIFAR100),
    "cifar100/Linf/Wang2023Better_WRN-28-10": _deepmind(28, 10, **_CIFAR100),
    "cifar100/Linf/Wang2023Better_WRN-70-16": _deepmind(70, 16, **_CIFAR100),
    "imagenet/Linf/Wong2020Fast": ("resnet50", _IMAGENET),
    "imagenet/Linf/Engstrom2019Robustness": ("resnet50", _IMAGENET),
    "imagenet/Linf/Salman2020Do_R50": ("resnet50", _IMAGENET),
    "locuslab/robust_overfitting/PreActResNet18": ("preact-resnet18", _CIFAR10),
    "locuslab/robust_overfitting/WideResNet-34-10": _wide(34, 10, **_CIFAR10),
    "locuslab/fast_adversarial/PreActResNet18": (
        "preact-resnet18",
        {"shortcut": "raw", **_CIFAR10},
    ),
    "locuslab/fast_adversarial/MNIST": ("small-cnn", {}),
    "TRADES/WideResNet-34-10": _wide(34, 10),
    "TRADES/ResNet18": ("resnet18", {}),
}


def make_published(name: str) -> nn.Module:
    """The network of a published checkpoint, not yet filled: `load_published(make_published(name), file)`.

    Raises:
        ValueError: a name that is not in PUBLISHED, with the nearest one.
    """
    if name not in PUBLISHED:
        raise ValueError(
            f"unknown published network {name!r}; see advfast.models.PUBLISHED"
            f"{nearest(name, list(PUBLISHED))}"
        )
    network, kwargs = PUBLISHED[name]
    return make(network, **kwargs)
