"""Auto-PGD: PGD with momentum that chooses its step sizes, and its form towards many targets."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import torch
from torch import Tensor

from advfast.attacks import checks
from advfast.attacks.finish import LEAVE_FROM
from advfast.attacks.losses import Loss
from advfast.kernels import l1_box_correction

from . import apgd_losses
from .apgd_run import Plan, Run, first_success
from .apgd_start import Draws, start
from .base import Found, Points, SearchAttack, Watch, part_of
from .oracle import Oracle

LARGER = (3.0, 2.0, 1.0)
"""Times eps, of the stages of `large_eps`."""


class APGD(SearchAttack):
    """Auto-PGD (Croce and Hein, ICML 2020, algorithm 1), in l1 that of Croce and Hein, ICML 2021. See `SearchAttack`.

    Each run starts on the sphere in a random direction (linf: a point of the cube, scaled until it touches the
    sphere; l2: a normal direction; l1: the projection of a normal vector of about sqrt(D) length), and takes `steps`
    steps of first twice eps (l1: eps), which checks of its progress shrink. A run is given up at its first
    misclassified iterate, which is returned; with fold=False it takes all its steps and returns the last one, as the
    published implementation does. Runs follow each other on the samples that are still right: for each target, each
    restart.

    With fold=False and rng="upstream" the iterates are those of pyautoattack 0.2.0 on a CPU, bit for bit in linf and
    l2. With fold=True and rng="philox" few samples take several runs at once; what is returned is the same.

    Args:
        model, eps, norm, ...: as `SearchAttack`.
        loss: "ce" (cross-entropy), "dlr" (difference of logits ratio), or a function of (logits [B, K], labels [B]) ->
            [B], to be raised. All work from two classes on. Where the paper's ratio needs more than the model has (3
            logits; towards a target 4), its denominator is z_(1) - z_(3) with three classes, and 1 with two: a sign
            and a normalised gradient do not see a positive factor.
        steps: of a run; a run that does not succeed costs so many gradients and one pass more.
        restarts: runs from different starts (for each target).
        targets: 0, or how many classes runs go towards: the second most likely one on the clean image, the third,
            and so on. Success is any misclassification. "ce" and functions are lowered for the target.
        eot: gradients that are averaged for a step, for models that draw at random.
        rho: a check halves the step where at most this share of the steps raised the loss.
        large_eps: l1: 30 % of the steps in a ball of 3 eps, 30 % in one of 2 eps, the rest in that of eps.

    Raises:
        TypeError, ValueError: bad settings, here or at the call; at the call also targets >= K.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float = 8 / 255,
        *,
        norm: str = "linf",
        loss: str | Loss = "ce",
        steps: int = 100,
        restarts: int = 1,
        targets: int = 0,
        eot: int = 1,
        rho: float = 0.75,
        large_eps: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(model, eps, norm=norm, **settings)
        self.loss = loss
        self.steps = steps
        self.restarts = restarts
        self.targets = targets
        self.eot = eot
        self.rho = rho
        self.large_eps = large_eps
        self.check()

    def check(self) -> None:
        apgd_losses.check(self.loss)
        checks.check_count("steps", self.steps, 3 if self.large_eps else 1)
        checks.check_count("restarts", self.restarts, 1)
        checks.check_count("targets", self.targets, 0)
        checks.check_count("eot", self.eot, 1)
        if isinstance(self.rho, bool) or not 0 <= self.rho <= 1:
            raise ValueError(f"rho must be a number between 0 and 1, got {self.rho!r}")
        super().check()
        if self.large_eps and self.norm.lower() != "l1":
            raise ValueError(f"large_eps=True is for norm='l1', got norm={self.norm!r}")

    def search(self, oracle: Oracle, points: Points, watch: Watch | None = None) -> Found:
        self.check_targets(self.targets, points.logits.shape[1])
        whole = not self.fold or self.rng == "upstream"
        size = len(points) if whole else oracle.rows
        found = Found(points.x.clone(), torch.zeros_like(points.labels, dtype=torch.bool))
        draws = Draws(self.rng, self.seed, self.norm.lower())
        for begin in range(0, len(points), size):
            index = torch.arange(begin, min(begin + size, len(points)), device=points.x.device)
            inner = part_of(watch, begin / len(points), len(index) / len(points))
            part = self._runs(oracle, points.selected(index), draws, inner, not whole)
            found.success[index] = part.success
            found.x.index_copy_(0, index, part.x)
        return found

    def _runs(
        self, oracle: Oracle, points: Points, draws: Draws, watch: Watch, folds: bool
    ) -> Found:
        """All runs of some samples: for each target its restarts, on the samples that are still right."""
        found = Found(points.x.clone(), torch.zeros_like(points.labels, dtype=torch.bool))
        order = points.logits.sort(dim=1).indices
        total = max(1, self.targets) * self.restarts
        first, rare = 0, False
        while first < total:
            left = (~found.success).nonzero()[:, 0]
            if not len(left):
                break
            runs = self._side_by_side(total - first, len(left), oracle.rows, rare) if folds else 1
            numbers = range(first, first + runs)
            inner = part_of(watch, first / total, runs / total)
            here = points.selected(left)
            targets = [order[left, -2 - number // self.restarts] for number in numbers]
            run = self._run(oracle, here, torch.cat(targets), numbers, draws, inner)
            success, x = first_success(run, runs)
            hit = success.nonzero()[:, 0]
            found.success[left[hit]] = True
            found.x.index_copy_(0, left[hit], x.index_select(0, hit))
            first, rare = first + runs, len(hit) * LEAVE_FROM < len(left)
        return found

    @staticmethod
    def _side_by_side(runs: int, samples: int, rows: int, rare: bool) -> int:
        """How many of the runs that are left go together; what they find does not depend on it.

        Later runs of a sample that an earlier one breaks are work for nothing, so that this waits for a run that
        broke few samples (`rare`), unless all of it is little.
        """
        if not rare and runs * samples * LEAVE_FROM > rows:
            return 1
        return max(1, min(runs, rows // samples))

    def _run(
        self,
        oracle: Oracle,
        points: Points,
        targets: Tensor,
        numbers: range,
        draws: Draws,
        watch: Watch,
    ) -> Run:
        """The runs of these numbers, side by side."""
        norm, runs, impl = self.norm.lower(), len(numbers), self._impl()
        drawn = torch.cat([draws(points.x, points.ids, number) for number in numbers])
        rows = points.selected(torch.arange(len(points), device=drawn.device).repeat(runs))
        # What is cut into pieces, and joined again, has lost its memory format.
        drawn = torch.empty_like(rows.x).copy_(drawn)
        stages = self._stages()
        if self.large_eps:
            x = self._projected(rows.x + drawn, rows.x, stages[0][0])
        else:
            x = start(drawn, rows.x, stages[0][0], norm, impl)
        steps_before = 0
        for number, (eps, steps) in enumerate(stages):
            last = number + 1 == len(stages)
            if self.large_eps:
                x = self._projected(x, rows.x, eps)
                draws.skip(rows.x)
            inner = part_of(watch, steps_before / self.steps, steps / self.steps)
            plan = self._plan(eps, steps, last)
            run = Run(oracle, plan, x.clamp(0.0, 1.0), rows.x, rows.labels, targets, runs)(inner)
            if last:
                return run
            x = run.best
            steps_before += steps
        raise AssertionError("there is a last stage")

    def _projected(self, x: Tensor, x0: Tensor, eps: float) -> Tensor:
        return x + l1_box_correction(x - x0, x0, eps=eps, impl=self._impl())

    def _stages(self) -> list[tuple[float, int]]:
        """(eps, steps) of each."""
        if not self.large_eps:
            return [(float(self.eps), self.steps)]
        early = ceil(0.3 * self.steps)
        steps = (early, early, self.steps - 2 * early)
        return [(times * self.eps, count) for times, count in zip(LARGER, steps, strict=True)]

    def _plan(self, eps: float, steps: int, last: bool) -> Plan:
        return Plan(
            eps=eps,
            norm=self.norm.lower(),
            steps=steps,
            loss=apgd_losses.loss_of(self.loss, self.targets > 0),
            eot=self.eot,
            rho=self.rho,
            leaves=self.fold and last,
            given=self.large_eps,
            impl=self._impl(),
        )

    def _impl(self) -> str:
        """In l2 and l1 only the reference has the published bits."""
        return "reference" if self.impl == "auto" and not self.fold else self.impl


class APGDT(APGD):
    """`APGD` towards the nine most likely wrong classes, by their difference of logits ratio: APGD-T of AutoAttack."""

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float = 8 / 255,
        *,
        loss: str | Loss = "dlr",
        targets: int = 9,
        **settings: Any,
    ) -> None:
        super().__init__(model, eps, loss=loss, targets=targets, **settings)

    def check(self) -> None:
        checks.check_count("targets", self.targets, 1)
        super().check()
