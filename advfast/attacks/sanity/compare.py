"""`compare`: what the accuracies of several attacks on the same samples say about one another."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from .finding import Finding

_POINTS = 0.002
"""What the published AutoAttack warns about: Square lowers the accuracy by more than 0.2 points."""
_NOISE = 0.005
"""By which an attack may be weaker with more steps: other random starts, last iterates that oscillate."""

_BLACK_BOX = re.compile(r"square\b|square-")
_COUNTED = re.compile(r"(.*\D)-(\d+)")
_PGD = re.compile(r"(pgd|bim|mi-fgsm|tpgd)-\d+|fgsm(-rs)?|pgd")
_APGD = re.compile(r"apgd")
_STARTS_CLEAN = ("clean", "worst", "autoattack")


def compare(
    stages: Mapping[str, float],
    independent: Mapping[str, float] | None = None,
    *,
    samples: int | None = None,
) -> tuple[Finding, ...]:
    """Looks for attacks that should not have been stronger than others.

    Codes: "square-wins" (of the stages), "black-box-stronger", "pgd-stronger-than-apgd", "order" (of the independent
    ones).

    Args:
        stages: part of an AutoAttack -> robust accuracy, 0 to 1, after it and all parts before it, in the order in
            which they ran; "clean" first or not at all.
        independent: attack -> robust accuracy under it alone, all on the same samples; names as `evaluate` takes them.
        samples: how many the accuracies are of: differences of up to two samples are not told.

    Raises:
        ValueError: an accuracy outside 0 .. 1.
    """
    alone = independent or {}
    for name, accuracy in (*stages.items(), *alone.items()):
        if not 0 <= accuracy <= 1:
            raise ValueError(f"the accuracy of {name!r} must be within 0 and 1, got {accuracy!r}")
    least = 2 / samples + 1e-9 if samples else 0.0
    found = list(_square(stages, max(_POINTS, least)))
    found += _black_box(alone, max(_POINTS, least))
    found += _apgd(alone, max(_POINTS, least))
    found += _order(alone, max(_NOISE, least))
    return tuple(found)


def _square(stages: Mapping[str, float], margin: float) -> Iterator[Finding]:
    names = [name.lower() for name in stages]
    values = list(stages.values())
    for index, name in enumerate(names):
        if not index or not _BLACK_BOX.match(name) or names[index - 1] in _STARTS_CLEAN:
            continue  # it was the first: nothing to be compared with
        fell = values[index - 1] - values[index]
        if fell > margin:
            yield Finding(
                "square-wins",
                f"Square, which sees no gradient, lowered the robust accuracy from {100 * values[index - 1]:.2f} % to "
                f"{100 * values[index]:.2f} % after the attacks that do: the gradient may be masked, and the accuracy "
                "too high",
                "look for what has no slope in the model (advfast.bpda), attack with more steps, restarts and queries, "
                "and with an attack made for this defence",
                {"before": values[index - 1], "after": values[index], "fell": fell},
            )


def _black_box(alone: Mapping[str, float], margin: float) -> Iterator[Finding]:
    black = {name: value for name, value in alone.items() if _BLACK_BOX.match(name.lower())}
    white = {
        name: value
        for name, value in alone.items()
        if name not in black and name.lower() not in _STARTS_CLEAN
    }
    if not black or not white:
        return
    name, accuracy = min(black.items(), key=lambda item: item[1])
    other, best = min(white.items(), key=lambda item: item[1])
    if best - accuracy > margin:
        yield Finding(
            "black-box-stronger",
            f"{name}, which sees no gradient, leaves {100 * accuracy:.2f} %, the strongest attack that does "
            f"({other}) {100 * best:.2f} %: the gradient is masked",
            "look for what has no slope in the model (advfast.bpda), average over its draws (EoT), attack with "
            "loss='dlr', and trust none of the attacks by gradients until one is at least as strong",
            {"black_box": accuracy, "white_box": best},
        )


def _apgd(alone: Mapping[str, float], margin: float) -> Iterator[Finding]:
    adaptive = {name: value for name, value in alone.items() if _APGD.match(name.lower())}
    plain = {name: value for name, value in alone.items() if _PGD.fullmatch(name.lower())}
    if not adaptive or not plain:
        return
    name, best = min(adaptive.items(), key=lambda item: item[1])
    other, accuracy = min(plain.items(), key=lambda item: item[1])
    if best - accuracy > margin:
        yield Finding(
            "pgd-stronger-than-apgd",
            f"{other} leaves {100 * accuracy:.2f} %, {name} {100 * best:.2f} %: the step size that adapts to the loss "
            "was misled by it",
            "try loss='dlr', restarts and EoT; the loss may be noisy, saturated or masked",
            {"pgd": accuracy, "apgd": best},
        )


def _order(alone: Mapping[str, float], noise: float) -> Iterator[Finding]:
    families: dict[str, list[tuple[int, str, float]]] = {}
    for name, accuracy in alone.items():
        counted = _COUNTED.fullmatch(name)
        if counted:
            families.setdefault(counted[1], []).append((int(counted[2]), name, accuracy))
    for members in families.values():
        members.sort()
        best = members[0]
        for steps, name, accuracy in members[1:]:
            if accuracy - best[2] > noise and steps > best[0]:
                yield Finding(
                    "order",
                    f"{name} leaves {100 * accuracy:.2f} %, {best[1]} with fewer steps {100 * best[2]:.2f} %: more "
                    "steps are weaker, as they are where the gradient is noisy or misleads",
                    "try another loss and step size, restarts and EoT, and take the lower of the two",
                    {
                        "fewer": best[2],
                        "more": accuracy,
                        "fewer_steps": best[0],
                        "more_steps": steps,
                    },
                )
            if accuracy <= best[2]:
                best = (steps, name, accuracy)
