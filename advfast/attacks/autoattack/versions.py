"""The versions of AutoAttack, and its parts as scripts for the original set them up."""

from __future__ import annotations

from typing import Any

from advfast.kernels.pgd.api import nearest

VERSIONS: dict[str, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
"""Version -> its parts in their order (Croce and Hein, ICML 2020; L1: Croce and Hein, ICML 2021)."""

PARTS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")

_NAMES = {
    "n_iter": "steps",
    "n_restarts": "restarts",
    "n_target_classes": "targets",
    "n_queries": "queries",
    "eot_iter": "eot",
    "thr_decr": "rho",
    "use_largereps": "large_eps",
    "resc_schedule": "rescale_schedule",
}
"""The original's name of a setting -> ours."""


class Knobs:
    """The settings of one attack as attributes, under our names and under the original's.

    Raises:
        AttributeError: a setting that the attack does not have, also on writing, where a slip would else do nothing.
    """

    def __init__(self, attack: str, **values: Any) -> None:
        object.__setattr__(self, "_attack", attack)
        object.__setattr__(self, "_values", values)

    def _known(self, name: str) -> str:
        own = _NAMES.get(name, name)
        if own not in self._values:
            theirs = [old for old, new in _NAMES.items() if new in self._values]
            valid = [*self._values, *theirs]
            raise AttributeError(
                f"{self._attack} has no setting {name!r}; it has {', '.join(valid)}{nearest(name, valid)}"
            )
        return own

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._values[self._known(name)]

    def __setattr__(self, name: str, value: Any) -> None:
        self._values[self._known(name)] = value

    def __dir__(self) -> list[str]:
        return [*self._values, *(old for old, new in _NAMES.items() if new in self._values)]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self._values.items())
        return f"{self._attack}({shown})"

    def as_dict(self) -> dict[str, Any]:
        """Settings by our names, a copy."""
        return dict(self._values)


def knobs(version: str, norm: str) -> dict[str, Knobs]:
    """The settings of a version by attribute of `AutoAttack`: apgd, apgd_targeted, fab, square.

    Args:
        version: "standard", "plus", "rand", or "custom", which has what the original is constructed with.
        norm: "linf", "l2" or "l1".
    """
    large = version == "standard" and norm == "l1"
    apgd = {"steps": 100, "restarts": 5, "eot": 1, "rho": 0.75, "large_eps": large}
    targeted = {**apgd, "restarts": 1, "targets": 5 if large else 9}
    fab = {
        "steps": 100, "restarts": 5, "targets": 9, "alpha_max": 0.1, "eta": 1.05, "beta": 0.9,
    }  # fmt: skip
    square = {
        "queries": 5000, "restarts": 1, "p_init": 0.8, "loss": "margin", "rescale_schedule": False,
    }  # fmt: skip
    if version == "standard":
        apgd["restarts"] = 5 if large else 1
        fab["restarts"] = 1
    elif version == "rand":
        apgd |= {"restarts": 1, "eot": 20}
    return {
        "apgd": Knobs("apgd", **apgd),
        "apgd_targeted": Knobs("apgd_targeted", **targeted),
        "fab": Knobs("fab", **fab),
        "square": Knobs("square", **square),
    }


def part_settings(name: str, of: dict[str, Knobs]) -> dict[str, Any]:
    """What the attack of a part is made with, beside the model, eps, norm and what all share.

    FAB-T is run once for each target whatever the restarts of FAB are, as in the original.
    """
    if name in ("apgd-ce", "apgd-dlr"):
        return {"loss": name.removeprefix("apgd-"), "targets": 0, **of["apgd"].as_dict()}
    if name == "apgd-t":
        return {"loss": "dlr", **of["apgd_targeted"].as_dict()}
    if name == "fab":
        return {**of["fab"].as_dict(), "targets": 0}
    if name == "fab-t":
        return {**of["fab"].as_dict(), "restarts": 1}
    return of["square"].as_dict()


def cost(name: str, settings: dict[str, Any], classes: int) -> tuple[int, int]:
    """(forward, backward) passes of one image that a sample takes which this part does not break.

    Of FAB this is an estimate: it depends on how often its iterates cross the boundary. Square takes a few passes more
    where it asks several queries at once.

    Args:
        settings: of `part_settings`, with as many targets as are run.
        classes: number of logits: untargeted FAB differentiates all but one.
    """
    runs = settings["restarts"] * max(1, settings.get("targets", 0))
    if name.startswith("apgd"):
        gradients = runs * settings["steps"] * settings["eot"]
        # The last iterate of a run, or of each of its three radii, needs no gradient.
        return gradients + runs * (3 if settings["large_eps"] else 1), gradients
    if name.startswith("fab"):
        steps = runs * settings["steps"]
        gradients = 1 if name == "fab-t" else classes - 1
        return (gradients + 1) * steps, gradients * steps
    return settings["restarts"] * (settings["queries"] + 1), 0
