"""Methods of training with their options in a word, such as "gradalign:lam=0.2"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from torch import nn

from advfast.training import methods
from advfast.training.methods.gradalign import published

_NUMBERS = ("alpha", "steps")
"""Arguments of `train` that are of the method."""


@dataclass(frozen=True)
class Trained:
    """
    Attributes:
        method: its name.
        options: its `method_options`.
        numbers: `alpha` and `steps`, where they are given; alpha in pixel units of the images as they are.
        reach: how far from an image its attack may get, in units of eps.
        passes: pass-units of a step, see `advfast.training.methods.Method`.
    """

    method: str
    options: dict[str, Any]
    numbers: dict[str, Any]
    reach: float
    passes: float

    def arguments(self, scale: float) -> dict[str, Any]:
        """Of `train`, for images whose differences are multiplied by `scale`."""
        numbers = dict(self.numbers)
        if "alpha" in numbers:
            numbers["alpha"] *= scale
        return {"method": self.method, "method_options": self.options, **numbers}


def method_of(text: str, eps: float, training: Mapping[str, Any]) -> Trained:
    """
    Args:
        text: name of a method, and after a colon its options and perhaps alpha and steps, KEY=VALUE with commas.
        eps: radius, in pixel units of the images as they are.
        training: arguments of `train` for all methods.

    Raises:
        ValueError: unknown method or option; a value out of range.
    """
    name, _, words = text.partition(":")
    options: dict[str, Any] = {}
    for word in filter(None, (part.strip() for part in words.split(","))):
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"method {text!r}: options are written {name}:KEY=VALUE, got {word!r}")
        options[key] = yaml.safe_load(value)
    numbers = {key: options.pop(key) for key in _NUMBERS if key in options}
    if name == "gradalign" and options.get("lam") is None:
        # By the radius of the images as they are; `train` is told that of the images in their room.
        options["lam"] = published(eps)
    settings = methods.Settings(
        eps, numbers.get("alpha"), numbers.get("steps"), "linf", training.get("bn", "eval"), options=options
    )  # fmt: skip
    made = methods.make(name, nn.Identity(), settings)
    # The noise of n-fgsm is not in the ball.
    noise = float(options.get("k", 2.0)) if name == "n-fgsm" else 0.0
    return Trained(name, options, numbers, 1 + noise, made.passes())


def listed(text: str) -> list[str]:
    """The methods in "fgsm,gradalign:lam=0.2,at=adversarial,pgd-at": a word KEY=VALUE goes to the method before it."""
    found: list[str] = []
    for word in text.split(","):
        if found and ":" in found[-1] and "=" in word and ":" not in word:
            found[-1] += f",{word}"
        else:
            found.append(word)
    return found
