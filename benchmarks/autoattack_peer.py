"""AutoAttack by pyautoattack and by advfast, on the same model and images, with the same accounts of both."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from records import package_version
from torch import Tensor, nn

import advfast

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@dataclass
class Outcome:
    """One evaluation.

    Attributes:
        stages: attack -> [N] bool, right after it; "clean" first.
        seconds, forwards, backwards: by attack; images that went through the model, and of these those with a gradient.
        total: seconds of the whole call.
        cost: (forward, backward) passes of a sample that stays right; ours alone.
        images: [N, ...] what was returned.
    """

    stages: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    forwards: dict[str, int] = field(default_factory=dict)
    backwards: dict[str, int] = field(default_factory=dict)
    total: float = 0.0
    cost: tuple[int, int] | None = None
    images: Tensor | None = None


class Counted(nn.Module):
    """The model, with a count of the images that it was given, and of those whose gradient was asked for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        if x.requires_grad and torch.is_grad_enabled():
            self.backwards += len(x)
        return self.model(x)


def by_pyautoattack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str,
    eps: float,
    batch_size: int,
    attacks: Sequence[str] | None = None,
    queries: int | None = None,
) -> Outcome:
    """Its standard version, or with `attacks` these at its settings.

    Its run and its attacks are its own; a subclass of its state, which it tells of every finished attack, looks on.

    Args:
        queries: of Square, for a trial.

    Raises:
        ImportError: it is not installed.
    """
    from pyautoattack import autoattack as theirs

    counted = Counted(model)
    found = Outcome()
    last = [0.0, 0, 0]

    def note(attack: str, flags: Tensor) -> None:
        found.stages[attack] = flags.clone()
        now = [time.perf_counter(), counted.forwards, counted.backwards]
        for table, after, before in zip(
            (found.seconds, found.forwards, found.backwards), now, last, strict=True
        ):
            table[attack] = after - before  # type: ignore[index]
        last[:] = now

    class Looking(theirs.EvaluationState):
        @property
        def clean_accuracy(self) -> float:
            return self._clean_accuracy

        @clean_accuracy.setter
        def clean_accuracy(self, accuracy: float) -> None:
            self._clean_accuracy = accuracy
            note("clean", self.robust_flags)

        def add_run_attack(self, attack: str) -> None:
            super().add_run_attack(attack)
            note(attack, self.robust_flags)

    logging.getLogger("auto-attack").setLevel(logging.WARNING)
    evaluation = theirs.AutoAttack(
        counted, norm=NORMS[norm], eps=eps, seed=0, version="standard", device=images.device
    )
    if attacks is not None:
        evaluation.attacks_to_run = list(attacks)
    if queries is not None:
        evaluation.square.n_queries = queries
    own, theirs.EvaluationState = theirs.EvaluationState, Looking
    began = time.perf_counter()
    last[0] = began
    try:
        with torch.random.fork_rng():  # it seeds torch's generator
            found.images, _ = evaluation.run_standard_evaluation(
                images, labels, batch_size=batch_size
            )
    finally:
        theirs.EvaluationState = own
    found.total = time.perf_counter() - began
    _fill(found, evaluation.attacks_to_run)
    return found


def by_advfast(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str,
    eps: float,
    batch_size: int,
    rng: str,
    fold: bool,
    attacks: Sequence[str] | None = None,
    queries: int | None = None,
) -> Outcome:
    """Ours; args as `by_pyautoattack`."""
    evaluation = advfast.AutoAttack(
        model, norm=NORMS[norm], eps=eps, seed=0, rng=rng, fold=fold, verbose=False, progress=False
    )
    if attacks is not None:
        evaluation.attacks_to_run = list(attacks)
    if queries is not None:
        evaluation.square.queries = queries
    began = time.perf_counter()
    evaluation.run_standard_evaluation(images, labels, bs=batch_size)
    total = time.perf_counter() - began
    result = evaluation.result
    assert result is not None
    return Outcome(
        result.stages,
        result.seconds,
        result.forwards,
        result.backwards,
        total,
        result.cost,
        result.images,
    )


def _fill(found: Outcome, attacks: Sequence[str]) -> None:
    """Attacks that had nothing to do."""
    for attack in attacks:
        if attack not in found.stages:
            found.stages[attack] = list(found.stages.values())[-1].clone()
            found.seconds[attack], found.forwards[attack], found.backwards[attack] = 0.0, 0, 0


def peer_version() -> str:
    return package_version("pyautoattack")
