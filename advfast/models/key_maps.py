"""How published state dicts name the weights of our networks.

Read in locuslab/robust_overfitting, locuslab/fast_adversarial, yaodongyu/TRADES, RobustBench/robustbench,
google-deepmind/deepmind-research, MadryLab/robustness, pytorch/vision and huggingface/pytorch-image-models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from .preact_resnet import PreActResNet
from .resnet import ResNet
from .small_cnn import SmallCNN
from .wide_resnet import WideResNet

# What DataParallel, torch.compile and wrapper classes put in front of every key.
_WRAPPERS = re.compile(r"(?:(?:module|_orig_mod|model|net)\.)*")
_NORMALISATION = re.compile(r"(?:normali[sz](?:e|er|ation)\.)?(?:new_)?(mean|mu|std|sigma)")
# MadryLab's library saves the network a second time inside its attacker.
_DUPLICATES = r"attacker\..+"

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Form:
    """One way to name the weights of one of our networks.

    Attributes:
        name: for people.
        model: the class whose weights these are.
        marker: a key that tells this form from the others of the class.
        rules: (pattern, replacement); the first pattern that matches a whole key gives our name of it.
        ignored: pattern of keys that are in the files and no part of the function.
        needs: options that our network must have to be the same function.
        silent: options of which neither the keys nor the shapes say anything.
    """

    name: str
    model: type[nn.Module]
    marker: str
    rules: Rules
    ignored: str = _DUPLICATES
    needs: Mapping[str, object] = field(default_factory=dict)
    silent: tuple[str, ...] = ()

    def rename(self, key: str) -> str | None:
        """Our name of a key; None when the form does not know it."""
        normalisation = _NORMALISATION.fullmatch(key)
        if normalisation:
            return "normalise.mean" if normalisation[1] in ("mean", "mu") else "normalise.std"
        for pattern, replacement in self.rules:
            match = re.fullmatch(pattern, key)
            if match:
                return match.expand(replacement)
        return None


def _from_zero(pattern: str, ours: str, groups: int) -> Rules:
    """One rule for each group of blocks: theirs count from 0 (written G in the pattern), ours from 1."""
    return tuple(
        (pattern.replace("G", str(group)), ours.replace("G", str(group + 1)))
        for group in range(groups)
    )


_STEM = (r"conv1\.weight", r"conv1.weight")
_FORMS = (
    Form(
        "TRADES",  # and Rice et al., Carmon et al., and most wide networks in RobustBench
        WideResNet,
        "block1.layer.0.conv1.weight",
        (
            _STEM,
            (r"block(\d)\.layer\.(\d+)\.((?:bn|conv)[12]\..+)", r"layer\1.\2.\3"),
            (r"block(\d)\.layer\.(\d+)\.convShortcut\.weight", r"layer\1.\2.shortcut.weight"),
            (r"bn1\.(.+)", r"bn.\1"),
            (r"fc\.(.+)", r"linear.\1"),
        ),
        # TRADES builds a fourth group that its forward never calls.
        ignored=rf"sub_block1\..+|{_DUPLICATES}",
        needs={"padding": "symmetric"},
        silent=("activation",),
    ),
    Form(
        "DeepMind",  # Gowal et al., Rebuffi et al., Rade & Moosavi-Dezfooli, Wang et al.
        WideResNet,
        "layer.0.block.0.conv_0.weight",
        (
            (r"init_conv\.weight", r"conv1.weight"),
            *_from_zero(r"layer\.G\.block\.(\d+)\.batchnorm_0\.(.+)", r"layerG.\1.bn1.\2", 3),
            *_from_zero(r"layer\.G\.block\.(\d+)\.batchnorm_1\.(.+)", r"layerG.\1.bn2.\2", 3),
            *_from_zero(r"layer\.G\.block\.(\d+)\.conv_0\.weight", r"layerG.\1.conv1.weight", 3),
            *_from_zero(r"layer\.G\.block\.(\d+)\.conv_1\.weight", r"layerG.\1.conv2.weight", 3),
            *_from_zero(r"layer\.G\.block\.(\d+)\.(shortcut\.weight)", r"layerG.\1.\2", 3),
            (r"batchnorm\.(.+)", r"bn.\1"),
            (r"logits\.(.+)", r"linear.\1"),
        ),
        needs={"padding": "end"},
        silent=("activation",),
    ),
    Form(
        "pytorch-cifar",  # Rice et al., Wong et al.
        PreActResNet,
        "layer1.0.conv1.weight",
        (
            _STEM,
            (r"(layer\d\.\d+\.(?:bn|conv)[12]\..+)", r"\1"),
            (r"(layer\d\.\d+\.shortcut)\.0\.weight", r"\1.weight"),
            (r"(bn\..+|linear\..+)", r"\1"),
        ),
        needs={"padding": "symmetric"},
        silent=("shortcut", "activation"),
    ),
    Form(
        "DeepMind",
        PreActResNet,
        "layer_0.0.conv_2d_1.weight",
        (
            (r"conv_2d\.weight", r"conv1.weight"),
            *_from_zero(r"layer_G\.(\d+)\.batchnorm_0\.(.+)", r"layerG.\1.bn1.\2", 4),
            *_from_zero(r"layer_G\.(\d+)\.batchnorm_1\.(.+)", r"layerG.\1.bn2.\2", 4),
            *_from_zero(r"layer_G\.(\d+)\.conv_2d_([12])\.weight", r"layerG.\1.conv\2.weight", 4),
            *_from_zero(r"layer_G\.(\d+)\.(shortcut\.weight)", r"layerG.\1.\2", 4),
            (r"batchnorm\.(.+)", r"bn.\1"),
            (r"logits\.(.+)", r"linear.\1"),
        ),
        needs={"padding": "end", "shortcut": "raw-3x3"},
        silent=("activation",),
    ),
    Form(
        "pytorch-cifar",
        ResNet,
        "linear.weight",
        (
            (r"((?:conv1|bn1|linear)\..+)", r"\1"),
            (r"(layer\d\.\d+\.(?:(?:bn|conv)[123]|shortcut\.[01])\..+)", r"\1"),
        ),
        needs={"stem": "cifar"},
    ),
    Form(
        "torchvision, timm",
        ResNet,
        "fc.weight",
        (
            (r"((?:conv1|bn1)\..+)", r"\1"),
            (r"(layer\d\.\d+\.(?:bn|conv)[123]\..+)", r"\1"),
            (r"(layer\d\.\d+)\.downsample\.([01]\..+)", r"\1.shortcut.\2"),
            (r"fc\.(.+)", r"linear.\1"),
        ),
        needs={"stem": "imagenet"},
    ),
    Form(
        "Wong et al., MNIST",
        SmallCNN,
        "7.weight",
        (
            (r"0\.(.+)", r"conv1.\1"),
            (r"2\.(.+)", r"conv2.\1"),
            (r"5\.(.+)", r"linear1.\1"),
            (r"7\.(.+)", r"linear2.\1"),
        ),
    ),
)


def forms_of(model: nn.Module) -> tuple[Form, ...]:
    """The forms that exist for a network of ours; none for any other."""
    return tuple(form for form in _FORMS if type(model) is form.model)


def supported() -> tuple[str, ...]:
    """Names of the classes that have a form."""
    return tuple(dict.fromkeys(form.model.__name__ for form in _FORMS))


def unwrap(keys: Iterable[str]) -> dict[str, str]:
    """{key: the key without what wrappers put in front of it}.

    Undoes DataParallel and the like, nn.Sequential(network) and nn.Sequential(normalisation, network).
    """
    inner = {}
    for key in keys:
        wrapped = _WRAPPERS.match(key)
        assert wrapped is not None  # it also matches nothing
        inner[key] = key[wrapped.end() :]
    heads = {key.partition(".")[0] for key in inner.values()}
    below_zero = [key.partition(".")[2] for key in inner.values() if key.startswith("0.")]
    sequential = heads == {"0"} or (
        "1" in heads
        and heads <= {"0", "1"}
        and all(_NORMALISATION.fullmatch(key) for key in below_zero)
    )
    if sequential:
        inner = {key: rest.partition(".")[2] for key, rest in inner.items()}
    return inner
