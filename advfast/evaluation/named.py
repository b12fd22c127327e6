"""The attacks of an evaluation that have a name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from advfast.attacks import BIM, FGSM, FGSMRS, MIFGSM, TPGD, AutoAttack, PGDAttack
from advfast.attacks.autoattack.versions import PARTS, VERSIONS, part_settings
from advfast.kernels.pgd.api import nearest

_Made = Callable[..., PGDAttack]

_ONE_STEP: dict[str, tuple[_Made, str]] = {
    "fgsm": (FGSM, "FGSM, one step of eps from the image, cross-entropy"),
    "fgsm-rs": (FGSMRS, "FGSM-RS, one step of 1.25 eps from one uniform start, cross-entropy"),
}
_STEPS: dict[str, tuple[_Made, str]] = {
    "pgd": (PGDAttack, "PGD, {} of eps/4, one uniform start, cross-entropy, last iterate"),
    "cw": (PGDAttack, "PGD, {} of eps/4, one uniform start, margin of the logits, last iterate"),
    "bim": (BIM, "BIM, {} of eps/4 from the image, cross-entropy, last iterate"),
    "mi-fgsm": (
        MIFGSM,
        "MI-FGSM, {} of eps/4 from the image, momentum 1, cross-entropy, last iterate",
    ),
    "tpgd": (
        TPGD,
        "TPGD, {} of eps/4 from a Gaussian start of 0.001, KL from the clean prediction, last iterate",
    ),
}
"""Each with a number of steps behind a hyphen."""

_AUTOATTACKS = {
    "autoattack" if version == "standard" else f"autoattack-{version}": version
    for version in VERSIONS
}
_PATTERN = re.compile(rf"({'|'.join(_STEPS)})-([1-9][0-9]*)")
NAMES = (
    "clean",
    "pgd-20",
    *_ONE_STEP,
    *(f"{stem}-20" for stem in _STEPS if stem != "pgd"),
    *PARTS,
    *_AUTOATTACKS,
)
"""An example of each, for a hint."""


def named(
    name: object,
    model: Callable[[Tensor], Tensor],
    *,
    eps: float,
    norm: str,
    seed: int,
    precision: str,
) -> tuple[PGDAttack | AutoAttack | None, str]:
    """(the attack, or None for "clean"; what it is, in words).

    Raises:
        ValueError: a name that there is not.
    """
    if name == "clean":
        return None, "the images as they are"
    # The images and labels are checked by the evaluation, and what is not finite is counted, not warned of.
    settings = {"norm": norm, "bn": "eval", "seed": seed, "precision": precision, "check": False}
    if isinstance(name, str) and name in _ONE_STEP:
        make, words = _ONE_STEP[name]
        return make(model, eps, **settings), words
    if isinstance(name, str) and (name in PARTS or name in _AUTOATTACKS):
        return _searching(name, model, eps, norm=norm, seed=seed, precision=precision)
    match = _PATTERN.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        stems = ", ".join(f"'{stem}-K'" for stem in _STEPS)
        raise ValueError(
            f"an attack must be 'clean', "
            f"{', '.join(map(repr, (*_ONE_STEP, *PARTS, *_AUTOATTACKS)))}, one of {stems} with a number "
            "of steps K, such as 'pgd-20', or a callable attack(model, images, labels), "
            f"got {name!r}{nearest(str(name), NAMES)}"
        )
    make, words = _STEPS[match[1]]
    steps = int(match[2])
    counted = f"{steps} step{'' if steps == 1 else 's'}"
    if match[1] == "cw":
        settings["loss"] = "margin"
    return make(model, eps, None, steps, **settings), words.format(counted)


def _searching(
    name: str, model: Callable[[Tensor], Tensor], eps: float, **settings: Any
) -> tuple[AutoAttack, str]:
    """AutoAttack, or one of its parts with the settings that it has in the standard version."""
    version = _AUTOATTACKS.get(name, "standard")
    attack = AutoAttack(model, eps=eps, version=version, verbose=False, progress=False, **settings)
    if name in PARTS:
        attack.attacks_to_run = [name]
        return attack, _words(name, part_settings(name, attack.knobs))
    parts = [_words(part, part_settings(part, attack.knobs)) for part in VERSIONS[version]]
    return attack, f"AutoAttack, version {version}: {'; '.join(parts)}"


def _words(name: str, of: dict[str, Any]) -> str:
    """One part of AutoAttack with its settings, such as "APGD-CE, 100 steps"."""
    counts = [
        (of.get("steps"), "step"),
        (of.get("queries"), "query"),
        (of.get("targets"), "target"),
    ]
    counts += [(of["restarts"], "start"), (of.get("eot"), "gradient")]
    said = [name.upper() if name != "square" else "Square"]
    for count, what in counts:
        if count and (count > 1 or what in ("step", "query")):
            plural = what if count == 1 else f"{what}s".replace("ys", "ies")
            said.append(f"{count} {plural}{' a step' if what == 'gradient' else ''}")
    if of.get("large_eps"):
        said.append("radii of 3, 2 and 1 eps")
    return ", ".join(said)
