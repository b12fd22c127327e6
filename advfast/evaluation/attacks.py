"""The attacks of an evaluation: ours by name, and any callable, whose results are checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from advfast.attacks import AutoAttack, PGDAttack
from advfast.attacks.search.base import SearchAttack

from .guard import lent
from .named import named

Foreign = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]
"""attack(model, images, labels) -> adversarial images."""
Craft = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images [B, ...], labels [B], sample numbers [B]) -> adversarial images."""

_ORDER = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}
_RELATIVE, _ABSOLUTE = 1e-4, 1e-6
"""A result counts as inside the ball up to here: room for float32 rounding."""


@dataclass
class Outside:
    """What was wrong with the results of an attack that is not ours."""

    ball: int = 0
    largest: float = 0.0
    box: int = 0
    nonfinite: int = 0


@dataclass
class Entry:
    """One attack of an evaluation.

    Attributes:
        name: as it stands in the report.
        words: what it is.
        craft: (images [B, ...], labels [B], sample numbers [B]) -> adversarial images; None for clean ones.
        foreign: not made here by name: may fail while the others go on, and is checked.
        outside: results that broke a rule.
        wrote: weights that the attack wrote to.
        nonfinite: gradient entries that were not finite, of ours.
        stages: after `craft`, of an attack that has several parts: part -> [B] bool, still right after it.
        forwards, backwards: images that went through the model so far, and those with a gradient; for an attack that
            counts them.
        watch: set by the evaluation; an attack that takes long calls it in `craft` with the share of this batch's work
            that is done (0 to 1) and how many of its samples are still right.
    """

    name: str
    words: str
    craft: Craft | None
    foreign: bool = False
    outside: Outside = field(default_factory=Outside)
    wrote: set[str] = field(default_factory=set)
    nonfinite: int = 0
    stages: dict[str, Tensor] = field(default_factory=dict)
    forwards: int = 0
    backwards: int = 0
    watch: Callable[[float, int], None] | None = None


def entries(
    attacks: Sequence[object] | Mapping[str, object],
    model: Callable[[Tensor], Tensor],
    *,
    eps: float,
    norm: str,
    seed: int,
    precision: str,
) -> list[Entry]:
    """The attacks asked for, ready to run.

    Raises:
        ValueError, TypeError: which one is wrong, and how.
    """
    if isinstance(attacks, str) or callable(attacks):
        raise TypeError(
            f"attacks must be a sequence such as ('clean', 'pgd-20') or a mapping, got {attacks!r}"
        )
    pairs: list[tuple[str | None, object]]
    if isinstance(attacks, Mapping):
        pairs = list(attacks.items())
    else:
        # The same name twice is the same work; two callables may share a name and differ.
        pairs = [(None, attack) for attack in dict.fromkeys(attacks)]
    if not pairs:
        raise ValueError("attacks must name at least one, such as ('clean', 'pgd-20')")
    made: list[Entry] = []
    for name, attack in pairs:
        if name is not None and (not isinstance(name, str) or not name or name == "worst"):
            raise ValueError(
                f"the name of an attack must be a text other than 'worst', got {name!r}"
            )
        if isinstance(attack, PGDAttack):
            entry = _instance(name, attack)
        elif isinstance(attack, (AutoAttack, SearchAttack)):
            entry = _searching_instance(name, attack)
        elif callable(attack):
            entry = _foreign(name, attack, model, seed)
        else:
            entry = _named(name, attack, model, eps, norm, seed, precision)
        taken = {other.name for other in made}
        stem, number = entry.name, 2
        while entry.name in taken or entry.name == "worst":
            entry.name, number = f"{stem}-{number}", number + 1
        made.append(entry)
    return made


def _named(name, attack, model, eps, norm, seed, precision) -> Entry:
    made, words = named(attack, model, eps=eps, norm=norm, seed=seed, precision=precision)
    entry = Entry(name or str(attack), words, None)
    if isinstance(made, AutoAttack):
        entry.craft = _searching(entry, made)
    elif made is not None:
        entry.craft = _stepping(entry, made)
    return entry


def _stepping(entry: Entry, pgd: PGDAttack) -> Craft:
    def craft(images: Tensor, labels: Tensor, numbers: Tensor) -> Tensor:
        result = pgd(images, labels, sample_ids=numbers)
        if pgd.nonfinite is not None:
            entry.nonfinite += int(pgd.nonfinite)
        return result

    return craft


def _searching(entry: Entry, attack: AutoAttack | SearchAttack) -> Craft:
    """Fills the entry's counts, and its stages where the attack has several parts."""

    def craft(images: Tensor, labels: Tensor, numbers: Tensor) -> Tensor:
        if isinstance(attack, SearchAttack):
            result = attack(images, labels, sample_ids=numbers)
            entry.forwards += attack.forwards
            entry.backwards += attack.backwards
        else:
            result = attack(
                images, labels, sample_ids=numbers, bs=max(1, len(images)), watch=entry.watch
            )
            found = attack.result
            assert found is not None
            entry.forwards += sum(found.forwards.values())
            entry.backwards += sum(found.backwards.values())
            parts = {part: right for part, right in found.stages.items() if part != "clean"}
            entry.stages = parts if len(parts) > 1 else {}
        entry.nonfinite += attack.nonfinite
        return result

    return craft


def _searching_instance(name: str | None, attack: AutoAttack | SearchAttack) -> Entry:
    own = type(attack).__name__.lower()
    if isinstance(attack, AutoAttack) and attack.version != "standard":
        own = f"{own}-{attack.version}"
    entry = Entry(name or own, repr(attack), None, foreign=True)
    entry.craft = _searching(entry, attack)
    return entry


def _instance(name: str | None, attack: PGDAttack) -> Entry:
    def craft(images: Tensor, labels: Tensor, numbers: Tensor) -> Tensor:
        return attack(images, labels, sample_ids=numbers)

    return Entry(
        name or f"{type(attack).__name__}-{attack.steps}", repr(attack), craft, foreign=True
    )


def _foreign(
    name: str | None, attack: Callable, model: Callable[[Tensor], Tensor], seed: int
) -> Entry:
    own = getattr(attack, "__name__", type(attack).__name__)
    name = name or ("attack" if own == "<lambda>" else own)
    _check_signature(name, attack)
    module = getattr(attack, "__module__", None) or type(attack).__module__
    entry = Entry(name, f"{module}.{own}, called as attack(model, images, labels)", None, True)

    def craft(images: Tensor, labels: Tensor, numbers: Tensor) -> Tensor:
        devices = [images.device] if images.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices),
            torch.inference_mode(False),
            torch.enable_grad(),
            lent(model) as wrote,
        ):
            # Its draws then do not depend on what else is evaluated.
            torch.manual_seed((seed * 1_000_003 + int(numbers[0])) % 2**63)
            result = attack(model, images.clone(), labels.clone())
        entry.wrote.update(wrote)
        return _tensor(result, images)

    entry.craft = craft
    return entry


def _check_signature(name: str, attack: Callable) -> None:
    try:
        signature = inspect.signature(attack)
    except (TypeError, ValueError):  # some built-in callables have none
        return
    try:
        signature.bind(None, None, None)
    except TypeError as error:
        raise TypeError(
            f"attack {name!r} must be callable as attack(model, images, labels), but takes "
            f"{signature}: {error}; wrap it in a function"
        ) from None


def _tensor(result: object, images: Tensor) -> Tensor:
    if not isinstance(result, Tensor):
        raise TypeError(
            f"it must return a tensor of adversarial images, got {type(result).__name__}"
        )
    if result.shape != images.shape:
        raise ValueError(
            f"it must return images of shape {tuple(images.shape)}, got {tuple(result.shape)}"
        )
    return result.detach().to(images)


def distances(results: Tensor, images: Tensor, norm: str) -> Tensor:
    """[B] float64: how far each result is from its image."""
    difference = (results - images).flatten(1)
    return torch.linalg.vector_norm(difference, _ORDER[norm.lower()], dim=1, dtype=torch.float64)


def inspect_results(entry: Entry, results: Tensor, images: Tensor, eps: float, norm: str) -> None:
    """Notes what is not finite, outside the ball or outside [0, 1], as the model sees it."""
    distance = distances(results, images, norm)
    flat = results.flatten(1)
    finite = flat.isfinite().all(1)
    ball = finite & (distance > eps * (1 + _RELATIVE) + _ABSOLUTE)
    box = finite & ((flat.amin(1) < -_ABSOLUTE) | (flat.amax(1) > 1 + _ABSOLUTE))
    largest = torch.where(ball, distance, 0).amax()
    counts = torch.stack([ball.sum(), box.sum(), (~finite).sum(), largest]).tolist()
    entry.outside.ball += int(counts[0])
    entry.outside.box += int(counts[1])
    entry.outside.nonfinite += int(counts[2])
    entry.outside.largest = max(entry.outside.largest, counts[3])


def complaints(entry: Entry, eps: float, norm: str) -> list[str]:
    """What makes this attack's number doubtful, in words."""
    found = []
    outside = entry.outside
    counted = "counted as they are: the accuracy is not that of a valid attack, and may be too low"
    if outside.ball:
        found.append(
            f"{outside.ball} results are outside the {norm} ball by up to "
            f"{outside.largest - eps:.3g} (eps {eps:.6g}, largest distance {outside.largest:.6g}); "
            f"{counted}"
        )
    if outside.box:
        found.append(f"{outside.box} results have pixels outside [0, 1]; {counted}")
    if outside.nonfinite:
        found.append(f"{outside.nonfinite} results contain NaN or infinity; {counted}")
    if entry.wrote:
        found.append(
            f"it wrote to the weights of the model ({sorted(entry.wrote)[0]}, {len(entry.wrote)} in "
            "all); results after that may be of another model"
        )
    if entry.nonfinite:
        found.append(
            f"{entry.nonfinite} gradient entries were not finite; those pixels (l2, l1: samples) did "
            "not move in that step, and the accuracy may be too high"
        )
    return [f"{entry.name}: {problem}" for problem in found]
