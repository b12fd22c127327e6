"""How many epochs at the beginning of a run are on clean images, and what that saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import yaml

from advfast.attacks import checks
from advfast.kernels.pgd.api import nearest

from . import schedules

READOUTS = ("sum", "full")


@dataclass(frozen=True)
class CleanPrefix:
    """When a run goes over from clean to adversarial images: by the kernel of its network.

    ``train(..., clean_prefix="auto")``, or "auto:distance=0.03,samples=64", or an object of this class. After an epoch
    on clean images the kernels K(x) of some training images and K(x') of the same after an attack are taken, in eval
    mode. The prefix ends after the first epoch where

    * the kernel distance of K(x) and K(x') is `distance` or more. K(x) is what clean training learns with at this
      moment, K(x') what adversarial training would; while they are the same up to a factor, a clean epoch stands in for
      an adversarial one. It is in the place of the distance to the kernel of an adversarial run at the same epoch,
      which nobody has while the clean one is trained;
    * or the kernel moves by less than `velocity` an epoch (kernel distance of K(x) to that of the epoch before): what
      is learnt now is learnt with a kernel that stays, and should be learnt on adversarial images;
    * or that is the latest: half of the epochs before the first decay of the rate, or of a schedule without milestones
      a quarter of all epochs, which is the same for the default ones (0.5, 0.75); or `most`, if that is less.

    So it ends at most one epoch after the last one that the rule of a threshold would allow. Time-saving adversarial
    training is the second finding of "Rethinking Adversarial Training with Neural Tangent Kernel" (arXiv 2312.02236),
    whose own choice was by hand; Fort et al. (NeurIPS 2020) have distance and velocity.

    Args:
        distance: above 0, at most 1. Its default is the threshold for kernels of separate runs.
        velocity: per epoch, 0 or more; 0 leaves it out.
        samples: training images, balanced over the classes, chosen by the seed of the run; 2 or more.
        readout: of `advfast.ntk.ntk`. "sum" costs a tenth of "full" with ten classes.
        attack: a name as in `advfast.evaluate`, with the eps and norm of the run.
        most: epochs, 0 or more; None for no bound of its own.

    Raises:
        ValueError: one of them out of range.
    """

    distance: float = 0.05
    velocity: float = 0.01
    samples: int = 100
    readout: str = "sum"
    attack: str = "pgd-10"
    most: int | None = None

    def __post_init__(self) -> None:
        from advfast.ntk.probe import Probe

        _check_share("distance", self.distance)
        if self.distance == 0:
            raise ValueError("clean_prefix: distance must be above 0, got 0: no kernel is so near")
        _check_share("velocity", self.velocity)
        checks.check_count("clean_prefix: samples", self.samples, 2)
        checks.check_count("clean_prefix: most", 0 if self.most is None else self.most, 0)
        if self.readout not in READOUTS:
            raise ValueError(
                f"clean_prefix: readout must be one of {', '.join(READOUTS)}, got {self.readout!r}"
            )
        if not isinstance(self.attack, str):
            raise ValueError(f"clean_prefix: attack must be a name, got {self.attack!r}")
        Probe(torch.zeros(2, 1), torch.tensor([0, 1]), attack=self.attack)

    def __str__(self) -> str:
        """As it is written on a command line."""
        other = [
            f"{field.name}={value}"
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default
        ]
        return ":".join(["auto", *filter(None, [",".join(other)])])

    def choose(
        self, distances: Sequence[float], velocities: Sequence[float], latest: int, bound: str = ""
    ) -> tuple[int, str] | None:
        """The number of clean epochs and why it is that; None while it is not known yet.

        Args:
            distances: kernel distance of K(x) and K(x') after the epochs 1, 2, ... so far.
            velocities: kernel distance of K(x) to that of the epoch before, of the same epochs; nan for the first.
            latest: the most clean epochs, 0 or more.
            bound: what that comes from, in words.
        """
        for epoch, (distance, velocity) in enumerate(zip(distances, velocities, strict=True), 1):
            if distance >= self.distance:
                return epoch, f"kernel distance {distance:.3g} >= {self.distance:g}"
            if velocity < self.velocity:
                return epoch, f"kernel velocity {velocity:.3g} < {self.velocity:g} an epoch"
        # No check where the answer is known without.
        return (latest, bound) if len(distances) + 1 >= latest else None


def _check_share(name: str, value: object) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:  # type: ignore[operator]
        raise ValueError(f"clean_prefix: {name} must be a number from 0 to 1, got {value!r}")


def parsed(given: object) -> int | CleanPrefix:
    """What `clean_prefix` of `train` stands for: a number of epochs, or the rule.

    Raises:
        ValueError: neither, an unknown option, or a value out of range.
    """
    if isinstance(given, CleanPrefix):
        return given
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given
    name, colon, text = given.partition(":") if isinstance(given, str) else ("", "", "")
    if name.isdecimal() and not colon:
        return int(name)
    if name != "auto":
        raise ValueError(
            "clean_prefix must be an integer >= 0, 'auto' or a CleanPrefix, got "
            f"{given!r}{nearest(name, ['auto']) if name else ''}"
        )
    known = [field.name for field in fields(CleanPrefix)]
    options: dict[str, Any] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            raise ValueError(
                f"clean_prefix: options are written auto:KEY=VALUE with a KEY of {', '.join(known)}, got "
                f"{word!r}{nearest(key, known)}"
            )
        try:
            options[key] = (
                float(value) if key in ("distance", "velocity") else yaml.safe_load(value)
            )
        except ValueError:
            options[key] = value  # and is refused
    return CleanPrefix(**options)


def latest(
    rule: CleanPrefix, epochs: int, schedule: object, options: Mapping[str, Any] | None
) -> tuple[int, str]:
    """(the most clean epochs that the rule may choose, why).

    Args:
        epochs: of the run.
        schedule, options: of `train`.
    """
    first = schedules.first_milestone(schedule, epochs, options)
    if first is None:
        most, why = epochs // 4, f"a quarter of the {epochs} epochs"
    else:
        # The small number: a milestone of 0.3 of 10 epochs is one of 3.
        most = int(first / 2 + 1e-9)
        why = f"half of the {first:g} epochs before the learning rate falls"
    if rule.most is not None and rule.most < most:
        most, why = rule.most, f"most={rule.most}"
    return most, why


def saved_share(units: Sequence[float], full: float) -> float:
    """The share of a run's cost that is saved, from what its epochs cost: 1 - sum(units) / (E full).

    Of E epochs of which E_s are on clean images, T(E_s) / T(0) = (E_s c + (E - E_s) a) / (E a). With c = 1 and
    a = K + 1, in units of a forward and backward pass, that saves E_s / E * K / (K + 1); `Method.passes` counts finer,
    in forward passes and backward passes to images and to weights: 3 and 2 K + 3 for pgd-at.

    Args:
        units: one value an epoch.
        full: of an epoch of the whole method.
    """
    return 1 - sum(units) / (len(units) * full)
