"""The attacks that an evaluation consists of, made from its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from advfast.attacks.checks import check_choice
from advfast.attacks.search.apgd import APGD
from advfast.attacks.search.base import SearchAttack
from advfast.attacks.search.fab import FAB
from advfast.attacks.search.square import Square

from .loop import Part
from .versions import PARTS, cost, part_settings

if TYPE_CHECKING:
    from .autoattack import AutoAttack

Attack = str | SearchAttack
_UNKNOWN = 200
"""Passes that an attack of the user's is taken to need, where time is estimated."""


def names_of(attacks: Sequence[Attack]) -> list[str]:
    """Those of the parts, an attack of the user's by its class.

    Raises:
        TypeError, ValueError: something else, or one of them twice.
    """
    if isinstance(attacks, str):
        raise TypeError(f"attacks_to_run must be a list of names, got the text {attacks!r}")
    names = []
    for attack in attacks:
        if isinstance(attack, SearchAttack):
            names.append(type(attack).__name__.lower())
        elif isinstance(attack, str):
            check_choice("attacks_to_run", attack, PARTS)
            names.append(attack)
        else:
            raise TypeError(
                f"attacks_to_run may name {', '.join(PARTS)} and hold instances of SearchAttack, got {attack!r}"
            )
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(
            f"attacks_to_run has {sorted(twice)[0]!r} twice, which would do the same again; raise its n_restarts"
        )
    return names


def settings_of(of: AutoAttack, attack: Attack) -> dict[str, Any]:
    """What the attack is made with, beside what all share; of an instance, all its settings."""
    if isinstance(attack, SearchAttack):
        return {"instance": repr(attack)}
    return part_settings(attack, of.knobs)


class Maker:
    """Makes parts for a number of classes, and notes what it had to change.

    Attributes:
        notes: for people.
        costs: part -> (forward, backward) passes of a sample that it does not break; None where that is not known.
    """

    def __init__(self, of: AutoAttack, classes: int) -> None:
        self._of, self._classes = of, classes
        self.notes: list[str] = []
        self.costs: dict[str, tuple[int, int] | None] = {}

    def __call__(self, name: str, attack: Attack) -> Part:
        """
        Raises:
            TypeError, ValueError: a bad setting of the attack.
        """
        if isinstance(attack, SearchAttack):
            self._check_instance(name, attack)
            attack.check()
            self.costs[name] = None
            return Part(name, attack, _UNKNOWN)
        settings = settings_of(self._of, attack)
        most = self._classes - 1
        if settings.get("targets", 0) > most:
            asked, settings["targets"] = settings["targets"], most
            self.notes.append(
                f"{name}: {asked} target classes asked for, the model has {most} beside the right one, which are all "
                "taken"
            )
        made = _make(name)(self._of.model, self._of.eps, **settings, **self._of.shared())
        made.check()
        passes = cost(name, settings, self._classes)
        self.costs[name] = None if name.startswith("fab") else passes
        return Part(name, made, sum(passes))

    def _check_instance(self, name: str, attack: SearchAttack) -> None:
        own = attack.model, attack.norm.lower(), attack.eps
        if own != (self._of.model, self._of.norm.lower(), self._of.eps):
            raise ValueError(
                f"{name} must be of the same model, norm and eps as the evaluation, norm {self._of.norm} and "
                f"eps {self._of.eps}, got norm {attack.norm} and eps {attack.eps}"
                + ("" if own[0] is self._of.model else " of another model")
            )


def _make(name: str) -> Callable[..., SearchAttack]:
    return APGD if name.startswith("apgd") else FAB if name.startswith("fab") else Square
