"""Modifiers: what goes with any method. One file each."""

from __future__ import annotations

import inspect

import yaml

from advfast.kernels.pgd.api import nearest

from .awp import AWP as AWP
from .base import Modifier as Modifier
from .base import RunInfo as RunInfo
from .base import StepInfo as StepInfo
from .base import Update as Update
from .cutmix import CutMix as CutMix
from .ema import EMA as EMA
from .gradient_norm import GradientNorm as GradientNorm
from .mixup import Mixup as Mixup
from .ramps import EpsWarmup as EpsWarmup
from .ramps import StepsRamp as StepsRamp
from .swa import SWA as SWA
from .te import TE as TE

MODIFIERS: dict[str, type[Modifier]] = {
    "awp": AWP,
    "cutmix": CutMix,
    "ema": EMA,
    "eps-warmup": EpsWarmup,
    "gradient-norm": GradientNorm,
    "mixup": Mixup,
    "steps-ramp": StepsRamp,
    "swa": SWA,
    "te": TE,
}


def make(modifier: str | Modifier) -> Modifier:
    """A modifier from its name and options, such as "ema:decay=0.999"; objects as they are.

    Raises:
        ValueError: unknown name or option, with the nearest one; a value out of range.
        TypeError: neither a name nor a Modifier.
    """
    if isinstance(modifier, Modifier):
        return modifier
    if not isinstance(modifier, str):
        raise TypeError(
            "modifiers must be names or instances of advfast.training.modifiers.Modifier, got "
            f"{modifier!r}"
        )
    name, _, text = modifier.partition(":")
    if name not in MODIFIERS:
        raise ValueError(
            f"unknown modifier {name!r}; expected one of {', '.join(MODIFIERS)}"
            f"{nearest(name, list(MODIFIERS))}"
        )
    kind = MODIFIERS[name]
    known = [key for key in inspect.signature(kind).parameters]
    options = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            raise ValueError(
                f"modifier {modifier!r}: options are written {name}:KEY=VALUE with a KEY of "
                f"{', '.join(known) or 'none'}, got {word!r}{nearest(key, known)}"
            )
        options[key] = yaml.safe_load(value)
    try:
        return kind(**options)
    except TypeError as error:
        raise ValueError(f"modifier {modifier!r}: {error}") from None
