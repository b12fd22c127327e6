"""What is asked of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from advfast.attacks.checks import check_choice, check_count, check_pixels, check_radius
from advfast.kernels.pgd.api import check_norm

from .inputs import SPLITS, check_shard
from .words import radius_call

PRECISIONS = ("fp32", "bf16", "fp16")
DEFAULT_ATTACKS = ("clean", "pgd-20")


@dataclass(frozen=True)
class Request:
    """The arguments of `evaluate`, and the command line that they came from, if any."""

    model: Callable[[Tensor], Tensor]
    data: object
    attacks: Sequence[object] | Mapping[str, object] = DEFAULT_ATTACKS
    eps: float = 8 / 255
    norm: str = "linf"
    batch_size: int = 500
    seed: int = 0
    precision: str = "fp32"
    split: str = "test"
    limit: int | None = None
    shard: tuple[int, int] | None = None
    data_root: str | Path | None = None
    sanity: str | bool = "auto"
    progress: bool = False
    out: str | Path | None = None
    overwrite: bool = False
    report: bool = False
    resume: bool = False
    command: str = ""

    def checked(self) -> Request:
        """The same, with the norm in lower case and the radius a float.

        Raises:
            ValueError, TypeError: a bad argument.
        """
        if not callable(self.model):
            raise TypeError(f"model must be callable, got {type(self.model).__name__}")
        check_count("batch_size", self.batch_size, 1)
        check_count("seed", self.seed, 0)
        if self.limit is not None:
            check_count("limit", self.limit, 1)
        if self.shard is not None:
            check_shard(self.shard)
        norm = check_norm("evaluate", self.norm)
        check_radius(self.eps)
        check_pixels(self.eps, norm)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("split", self.split, SPLITS)
        if self.sanity != "auto" and not isinstance(self.sanity, bool):
            raise ValueError(f"sanity must be 'auto', True or False, got {self.sanity!r}")
        for name in ("report", "resume"):
            if getattr(self, name) and self.out is None:
                raise ValueError(f"{name}=True needs out, the folder of the evaluation")
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite exclude each other: go on, or start again")
        return replace(self, norm=norm, eps=float(self.eps))

    def call(self) -> str:
        """The call in Python, without what is the default and what is about files alone."""
        attacks = self.attacks
        named = [
            repr(attack) if isinstance(attack, str) else _name(attack)
            for attack in (attacks.values() if isinstance(attacks, Mapping) else attacks)
        ]
        if isinstance(attacks, Mapping):
            pairs = zip(attacks, named, strict=True)
            shown = "{" + ", ".join(f"{name!r}: {attack}" for name, attack in pairs) + "}"
        else:
            shown = "(" + ", ".join(named) + ("," if len(named) == 1 else "") + ")"
        words = [
            "model",
            repr(str(self.data)) if isinstance(self.data, (str, Path)) else "data",
            f"attacks={shown}",
            f"eps={radius_call(self.eps)}",
            f"norm={self.norm!r}",
        ]
        for name in ("batch_size", "seed", "precision", "split", "limit", "shard", "sanity"):
            value = getattr(self, name)
            if value != getattr(Request, name):
                words.append(f"{name}={value!r}")
        return f"advfast.evaluate({', '.join(words)})"


def _name(attack: object) -> str:
    return getattr(attack, "__name__", type(attack).__name__)
