"""Names of RobustBench: data sets, threat models, networks."""

from __future__ import annotations

from dataclasses import dataclass

from advfast.kernels.pgd.api import nearest

PREFIX = "robustbench:"
EPS: dict[tuple[str, str], float] = {
    ("cifar10", "Linf"): 8 / 255,
    ("cifar10", "L2"): 0.5,
    ("cifar100", "Linf"): 8 / 255,
    ("imagenet", "Linf"): 4 / 255,
}
"""(data set, threat model) -> the radius of that leaderboard, in pixel units."""
SAMPLES = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}
"""Data set -> test images that the leaderboard's numbers are of."""


@dataclass(frozen=True)
class Name:
    """A network of RobustBench, such as cifar10/Linf/Wong2020Fast."""

    dataset: str
    threat_model: str
    model: str

    @property
    def eps(self) -> float:
        return EPS[self.dataset, self.threat_model]


def check_benchmark(dataset: str, threat_model: str) -> None:
    """
    Raises:
        ValueError: RobustBench has no such leaderboard.
    """
    if (dataset, threat_model) not in EPS:
        known = ["/".join(key) for key in EPS]
        got = f"{dataset}/{threat_model}"
        raise ValueError(
            f"the data set and threat model must be one of {', '.join(known)}, got {got!r}{nearest(got, known)}"
        )


def is_name(text: object) -> bool:
    """Whether it is meant as the name of a network of RobustBench: "robustbench:..."."""
    return isinstance(text, str) and text.startswith(PREFIX)


def parse_name(text: str) -> Name:
    """ "robustbench:cifar10/Linf/Wong2020Fast", with or without "robustbench:".

    Raises:
        ValueError: another form, or no such leaderboard.
    """
    parts = text.removeprefix(PREFIX).split("/")
    if len(parts) != 3 or not all(parts):
        raise ValueError(
            f"a network of RobustBench is named {PREFIX}<data set>/<threat model>/<name>, such as "
            f"{PREFIX}cifar10/Linf/Wong2020Fast, got {text!r}"
        )
    check_benchmark(parts[0], parts[1])
    return Name(*parts)
