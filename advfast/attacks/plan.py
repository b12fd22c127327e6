"""The static settings of one call, as the loop reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from advfast.kernels.pgd.api import Bounds, Number

from . import checks
from .losses import CLOSED, LOSSES, MIN_CLASSES, TARGETED_MIN_CLASSES, Loss, targeted
from .outputs import Output, selector

CYCLES_FROM = 32
"""Steps from which cycles are looked for: fewer are done before enough samples repeat themselves to pay for it."""

Start = Callable[..., Tensor]


@dataclass(frozen=True)
class Plan:
    """All that `craft` needs beside tensors; `PGDAttack` documents the settings.

    Attributes:
        model: the bare model, in the mode for crafting.
        start: (x0, eps, norm, seed, restart, sample_ids) -> one random start.
        eps, alpha: numbers; where they are tensors, those among the inputs are taken.
        result_dtype: of the images that are returned.
        sixteen_bit: the model computes in 16 bits, by autocast.
        couples: the samples of a batch depend on one another (batch statistics): it is run as it is given.
        most_rows: rows of a pass, as far as runs decide.
        capturing: the work is recorded: nothing is read back from the device, and all steps are computed.
    """

    model: Callable[[Tensor], Tensor]
    start: Start
    loss: str | Loss
    output: Output
    eps: Number
    alpha: Number
    steps: int
    random_start: bool
    norm: str
    bounds: Bounds
    l2_order: str
    targeted: bool
    restarts: int
    targets: int
    early_stop: bool
    cycles: str
    compact_every: int
    eot: int
    momentum: float
    fold: bool
    couples: bool
    impl: str
    compile: str
    wide: torch.dtype
    input_dtype: torch.dtype
    result_dtype: torch.dtype
    sixteen_bit: bool
    most_rows: int
    capturing: bool = False

    @property
    def runs(self) -> int:
        """Runs of each sample."""
        return self.restarts * max(1, self.targets)

    @property
    def folds_runs(self) -> bool:
        """Whether several runs may be one batch: never where that could change a bit that was promised."""
        return self.fold and not self.couples

    @property
    def rows_a_sample(self) -> int:
        """Rows that each sample has in a batch."""
        return self.runs if self.folds_runs else 1

    @property
    def compacts(self) -> bool:
        """Whether finished samples may leave the batch."""
        return self.fold and not self.couples and not self.capturing

    @property
    def deterministic(self) -> bool:
        """Whether the settings allow that the same input gives the same bits."""
        return self.eot == 1 and not self.couples

    @property
    def detects_cycles(self) -> bool:
        """Only a sign step returns to an iterate in all bits."""
        return (
            self.cycles == "auto"
            and self.steps >= CYCLES_FROM
            and self.norm == "linf"
            and self.momentum == 0
            and self.deterministic
            and not self.capturing
        )

    def succeeds(self, logits: Tensor, classes: Tensor | None) -> Tensor:
        """[B] bool: the class, [B], is left, or where it is the target, reached."""
        compare = torch.eq if self.targeted else torch.ne
        return compare(logits.argmax(1), classes)  # type: ignore[arg-type]  # there are classes where steps are


class Logits:
    """What the model returns -> logits [B, K], with their checks.

    Attributes:
        rows: B, of the batch that the model is given; None: not known.
        bare: the same without the checks.
    """

    def __init__(self, plan: Plan, on_first: Callable[[int], None] | None) -> None:
        self.rows: int | None = None
        self.bare = selector(plan.output)
        self._loss = plan.loss
        self._targets = plan.targets
        least = TARGETED_MIN_CLASSES if plan.targets else MIN_CLASSES
        self._least = least.get(plan.loss, 1) if isinstance(plan.loss, str) else 1
        self._on_first = on_first

    def __call__(self, returned: object) -> Tensor:
        logits = self.bare(returned)
        rows = self.rows if self.rows is not None else len(logits)
        checks.check_logits(logits, rows, self._least, self._loss)
        if logits.shape[1] <= self._targets:
            raise ValueError(
                f"targets={self._targets} needs as many wrong classes, the model has "
                f"{logits.shape[1]} classes"
            )
        if self._on_first is not None:
            on_first, self._on_first = self._on_first, None
            on_first(logits.shape[1])
        return logits


class Objective:
    """What is raised, as a function of the logits of the rows of the moment.

    Attributes:
        coupled: the loss returned one value for all rows.
    """

    def __init__(self, plan: Plan) -> None:
        self.coupled = False
        self._sign = -1 if plan.targeted else 1
        self._towards = targeted(plan.loss) if plan.targets else None
        self._loss = LOSSES[plan.loss] if isinstance(plan.loss, str) else plan.loss
        self._closed = None
        if isinstance(plan.loss, str) and plan.fold and not plan.targets:
            self._closed = CLOSED.get(plan.loss)
        self._several = plan.runs > 1
        self._reference: Tensor | None = None
        self._target_classes: Tensor | None = None

    def follow(self, reference: Tensor | None, target_classes: Tensor | None) -> None:
        """The batch is now one of these labels (or clean logits), [B] or [B, K], and classes to reach, [B]."""
        self._reference, self._target_classes = reference, target_classes

    def __call__(self, logits: Tensor) -> Tensor:
        """[B], or a scalar of a user's loss."""
        if self._towards is not None:
            value = self._towards(logits, self._reference, self._target_classes)  # type: ignore[arg-type]
        else:
            value = self._loss(logits, self._reference)  # type: ignore[arg-type]
            value = value if self._sign > 0 else -value
        if value.dim() == 0:
            self.coupled = True
        if self._several and value.shape != logits.shape[:1]:
            raise ValueError(
                f"with several runs of a sample the loss must return one value a sample, shape "
                f"({logits.shape[0]},), got {tuple(value.shape)}"
            )
        return value

    @property
    def closed(self) -> Callable[[Tensor], Tensor] | None:
        """logits -> d objective(logits).sum() / d logits in float32 or float64, where there is a closed form."""
        closed, reference = self._closed, self._reference
        if closed is None or reference is None:
            return None
        if self._sign > 0:
            return lambda logits: closed(logits, reference)
        return lambda logits: -closed(logits, reference)
