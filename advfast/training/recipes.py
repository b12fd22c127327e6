"""Published recipes by name: arguments of `train` as the released code has them, for CIFAR-10."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from advfast.kernels.pgd.api import nearest

from . import optim, parallel

_POSITIONAL = ("model", "data")
_RESULT = TypeVar("_RESULT")


@dataclass(frozen=True)
class Recipe:
    """
    Attributes:
        source: paper, and what the values were read from.
        arguments: of `train`.
        differs: what the released code does besides, which these arguments do not.
        needs: arguments that the user has to give.
    """

    source: str
    arguments: dict[str, Any]
    differs: str = ""
    needs: tuple[str, ...] = ()


_SGD = {"batch_size": 128, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
_STEPS_AT_THREE = {"schedule": "piecewise", "schedule_options": {"milestones": [75, 90, 100]}}
_FAST = _SGD | {"model": "preact-resnet18", "eps": 8 / 255, "augment": ["crop", "flip"]}
_PGD_AT = _SGD | {
    "method": "pgd-at",
    "eps": 8 / 255,
    "alpha": 2 / 255,
    "steps": 10,
    "lr": 0.1,
    "schedule": "piecewise",
}
_PGD_200 = _PGD_AT | {
    "model": "preact-resnet18",
    "epochs": 200,
    "schedule_options": {"milestones": [100, 150]},
    "augment": ["crop", "flip"],
}

RECIPES: dict[str, Recipe] = {
    "madry2018": Recipe(
        "PGD-AT, Madry et al., ICLR 2018; MadryLab/cifar10_challenge",
        _PGD_AT
        | {
            "model": "wrn-34-10",
            "bn": "train-update",
            "epochs": 205,
            "schedule_options": {"milestones": [102, 154]},
            "weight_decay": 2e-4,
            "augment": ["crop", "flip"],
        },
        "a 32-layer network with leaky ReLU and images standardised one by one; weight decay on the weights of "
        "convolutions and of the last layer alone",
    ),
    "rice2020": Recipe(
        "PGD-AT, Rice et al., ICML 2020; locuslab/robust_overfitting",
        _PGD_AT
        | {
            "model": "preact-resnet18",
            "bn": "train-update",
            "epochs": 200,
            "schedule_options": {"milestones": [0.5, 0.75]},
            "augment": ["crop-reflect:4", "flip"],
        },
        "two more forward passes a step in train mode, which move the running statistics",
    ),
    "pang2021": Recipe(
        "PGD-AT, Pang et al., ICLR 2021, Bag of Tricks; P2333/Bag-of-Tricks-for-AT",
        _PGD_AT
        | {
            "model": "wrn-34-10",
            "bn": "eval",
            "epochs": 110,
            "schedule_options": {"milestones": [100, 105]},
            "augment": ["crop-reflect:4", "flip"],
        },
    ),
    "deat2023": Recipe(
        "DEAT, PGD-AT by positive-negative momentum, Sun et al., KDD 2023; jsycsjh/DEAT",
        _PGD_AT
        | {
            "model": "preact-resnet18",
            "bn": "train-update",
            "epochs": 110,
            "optimizer": "pnm",
            "lr": 1.0,
            "schedule_options": {"milestones": [100, 105]},
            "augment": ["crop-reflect:4", "flip"],
        },
        "a rate of 0.1 by default, with which its steps are 22 times shorter than those of its SGD baseline (1.0 is "
        "that of the optimiser's authors); two more forward passes a step, for statistics",
    ),
    "wong2020": Recipe(
        "FGSM-RS, Wong et al., ICLR 2020; locuslab/fast_adversarial",
        _FAST
        | {
            "method": "fgsm-rs",
            "alpha": 10 / 255,
            "bn": "train-update",
            "epochs": 15,
            "lr": 0.2,
            "schedule": "triangular",
        },
        "apex O2 with a loss scale of 1; the random start's upper end is that of the first channel",
    ),
    "shafahi2019": Recipe(
        "Free-AT with m = 8, Shafahi et al., NeurIPS 2019; ashafahi/free_adv_train",
        _SGD
        | {
            "model": "wrn-34-10",
            "method": "free",
            "method_options": {"m": 8},
            "eps": 8 / 255,
            "epochs": 26,
            "lr": 0.1,
            "schedule": "piecewise",
            "schedule_options": {"milestones": [0.5, 0.75]},
            "weight_decay": 2e-4,
            "augment": ["crop", "flip"],
        },
        "a 32-layer network, images standardised one by one; 80,000 steps in all (26 passes over the images)",
    ),
    "zhang2019-yopo": Recipe(
        "YOPO-5-3, Zhang et al., NeurIPS 2019; a1600012888/YOPO-You-Only-Propagate-Once",
        _SGD
        | {
            "model": "preact-resnet18",
            "method": "yopo",
            "method_options": {"m": 5, "n": 3},
            "eps": 8 / 255,
            "alpha": 2 / 255,
            "bn": "train-update",
            "epochs": 36,
            "batch_size": 256,
            "lr": 0.04,
            "schedule": "piecewise",
            "schedule_options": {"milestones": [30, 34]},
            "augment": ["crop", "flip"],
        },
        "its loop makes one epoch more; its network lacks the last BN and ReLU",
    ),
    "zhang2019": Recipe(
        "TRADES, Zhang et al., ICML 2019; yaodongyu/TRADES. eps is 0.031, not 8/255 (0.0314)",
        _SGD
        | {
            "model": "wrn-34-10",
            "method": "trades",
            "method_options": {"beta": 6.0},
            "eps": 0.031,
            "alpha": 0.007,
            "steps": 10,
            "bn": "eval",
            "epochs": 76,
            "lr": 0.1,
            "weight_decay": 2e-4,
            "augment": ["crop", "flip"],
        }
        | {"schedule": "piecewise", "schedule_options": {"milestones": [75]}},
    ),
    "wang2020": Recipe(
        "MART, Wang et al., ICLR 2020, for ResNet-18; YisenWang/MART. eps is 0.031, not 8/255",
        _SGD
        | _STEPS_AT_THREE
        | {
            "model": "resnet18",
            "method": "mart",
            "method_options": {"beta": 5.0},
            "eps": 0.031,
            "alpha": 0.007,
            "steps": 10,
            "bn": "eval",
            "epochs": 120,
            "lr": 0.01,
            "weight_decay": 3.5e-3,
            "augment": ["crop", "flip"],
        },
    ),
    "wu2020": Recipe(
        "PGD-AT with AWP, Wu et al., NeurIPS 2020; csdongxian/AWP",
        _PGD_200 | {"bn": "train-update", "modifiers": ["awp:gamma=0.01"]},
        "a clean forward pass more a step; the first batch of an epoch is attacked in eval mode",
    ),
    "wu2020-trades": Recipe(
        "TRADES with AWP, Wu et al., NeurIPS 2020; csdongxian/AWP. eps is 0.031, not 8/255",
        _PGD_200
        | {
            "model": "wrn-34-10",
            "method": "trades",
            "method_options": {"beta": 6.0},
            "eps": 0.031,
            "alpha": 0.007,
            "bn": "eval",
            "modifiers": ["awp:gamma=0.005,warmup=10"],
        },
    ),
    "ntkat2023": Recipe(
        "PGD-AT after 40 epochs on clean images, Rethinking Adversarial Training with Neural Tangent Kernel, arXiv "
        "2312.02236, second finding: from its abstract and its public reviews. Its tables, networks and switching "
        "epochs were not available: 40 is ours (18 % of the passes saved); clean_prefix='auto' finds another",
        _PGD_200 | {"bn": "eval", "clean_prefix": 40},
    ),
    "andriushchenko2020": Recipe(
        "FGSM with GradAlign, Andriushchenko & Flammarion, NeurIPS 2020; tml-epfl/understanding-fast-adv-training",
        _FAST
        | {
            "method": "gradalign",
            "bn": "train-update",
            "epochs": 30,
            "lr": 0.3,
            "schedule": "triangular",
            "schedule_options": {"peak_at": 0.4},
        },
    ),
    "dejorge2022": Recipe(
        "N-FGSM, de Jorge et al., NeurIPS 2022; pdejorge/N-FGSM",
        _FAST
        | {
            "method": "n-fgsm",
            "method_options": {"k": 2.0},
            "alpha": 8 / 255,
            "bn": "train-update",
            "epochs": 30,
            "lr": 0.2,
            "schedule": "triangular",
        },
    ),
    "te2022": Recipe(
        "PGD-AT with temporal ensembling, Dong et al., ICLR 2022; dongyp13/memorization-AT",
        _PGD_200
        | {
            "model": "resnet18",
            "bn": "eval",
            # Epochs 90 and 150 of 200; a run of another length has them in proportion.
            "modifiers": ["te:start=0.45,end=0.75,weight=300,momentum=0.9"],
        },
        "selection of the best epoch by PGD-10 on the test set; soft labels that are lost when a run is interrupted",
    ),
    "reat2023": Recipe(
        "REAT, Li et al., arXiv 2307.10205; GuanlinLee/REAT, for cifar10-lt:0.02 and cifar100-lt:0.02",
        _PGD_AT
        | {
            "model": "resnet18",
            "method": "reat",
            "bn": "eval",
            "epochs": 80,
            "schedule_options": {"milestones": [60, 75]},
            "augment": ["crop", "flip"],
        },
        "all long-tailed images are trained on, and the best epoch is chosen on the test set",
        needs=("data",),
    ),
    "atbsl2024": Recipe(
        "AT-BSL, Yue et al., CVPR 2024, for ResNet-18; NISPLab/AT-BSL, for cifar10-lt:0.02",
        _PGD_AT
        | {
            "model": "resnet18",
            "method": "at-bsl",
            "bn": "eval",
            "epochs": 100,
            "schedule_options": {"milestones": [75, 90]},
            "augment": ["crop", "flip"],
        },
        "all long-tailed images are trained on, and the best epoch is chosen on the test set",
        needs=("data",),
    ),
    "wang2023": Recipe(
        "TRADES with generated images, Wang et al., ICML 2023; the base of DM-Improves-AT",
        {
            "model": "wrn-28-10",
            "method": "trades",
            "method_options": {"beta": 5.0, "start": "uniform"},
            "eps": 8 / 255,
            "alpha": 2 / 255,
            "steps": 10,
            "bn": "train",
            "label_smoothing": 0.1,
            "modifiers": ["ema:decay=0.995,warmup=0.025,buffers=copy"],
            "extra_share": 0.7,
            "epochs": 400,
            "batch_size": 512,
            "lr": 0.2,
            "schedule": "one-cycle",
            "schedule_options": {"peak_at": 0.025},
            "optimizer": "sgd",
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "norm_decay": False,
            "optimizer_options": {"nesterov": True},
            "augment": ["crop", "flip"],
        },
        "SiLU, momentum cycled from 0.95 to 0.85, BN momentum 1 then 0.01, padding of TensorFlow, the rate stepped "
        "once an epoch, selection by CW-PGD-40 on 1,024 images",
        needs=("extra",),
    ),
}


def find(name: str) -> Recipe:
    """
    Raises:
        ValueError: there is none of this name; says which there are.
    """
    if name not in RECIPES:
        raise ValueError(
            f"unknown recipe {name!r}; expected one of {', '.join(RECIPES)}"
            f"{nearest(str(name), list(RECIPES))}"
        )
    return RECIPES[name]


def with_recipe(train: Callable[..., _RESULT]) -> Callable[..., _RESULT]:
    """`train` with `recipe`: its arguments take the place of those that are not given, and it prints all of them."""

    @functools.wraps(train)
    def wrapper(*args: Any, **given: Any) -> _RESULT:
        name = given.get("recipe")
        if name is None:
            return train(*args, **given)
        recipe = find(name)
        named = dict(zip(_POSITIONAL, args, strict=False)) | given
        for missing in recipe.needs:
            if named.get(missing) is None:
                raise ValueError(
                    f"recipe {name!r} needs `{missing}`: {recipe.source} trains with it, got none"
                )
        arguments = optim.fitted(recipe.arguments, named)
        if given.get("progress", True) and parallel.shows():
            print(told(name, recipe, arguments, named), file=sys.stderr)
        return train(**arguments | named)

    return wrapper


def told(name: str, recipe: Recipe, arguments: dict[str, Any], given: dict[str, Any]) -> str:
    """Every value that a recipe sets, those that the user's own take the place of, and what it leaves out."""
    lines = [f"recipe {name}: {recipe.source}"]
    for key, value in recipe.arguments.items():
        instead = f" (yours in its place: {given[key]})" if key in given else ""
        if arguments[key] != value:
            instead = f" ({arguments[key]:g} in its place, for optimizer {given['optimizer']})"
        lines.append(f"  {key} = {_shown(value)}{instead}")
    if recipe.differs:
        lines.append(f"  not in it, but in the released code: {recipe.differs}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, float) and value < 0.1 and abs(value * 255 - round(value * 255)) < 1e-9:
        return f"{round(value * 255)}/255"
    return str(value)
