"""FAB: the closest misclassified image, by projections onto the linearised decision boundary."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from advfast.attacks import checks
from advfast.attacks.rows import pick

from .base import Found, Points, SearchAttack, Watch, part_of
from .fab_boundary import Step
from .fab_runs import Search
from .fab_starts import keyed, published
from .oracle import Oracle

KEEPS = ("ball", "closest")
Run = tuple[int, int]
"""(number of the target, number of the restart)."""


class FAB(SearchAttack):
    """FAB, the fast adaptive boundary attack: steps to the boundary between the label and another class, and back.

    At each step the boundary is taken for linear; the iterate and the clean image are projected onto it inside [0, 1],
    in `norm`, and the next iterate lies between the two a little past it. After a misclassified iterate the search goes
    on nearer to the image. Nothing depends on eps but what counts as a success, and where restarts begin.

    With ``keep="closest"`` it returns what FAB was made for: the misclassified image of the smallest norm, also beyond
    eps, from all targets and restarts. The distances tell the minimal perturbation of each sample.

    Args:
        model, eps: as for `SearchAttack`.
        norm, seed, rng, fold, precision, batch_size, output: as for `SearchAttack`. rng matters for restarts alone, of
            which the first begins at the image: "philox": uniform in the ball of radius eps / 2, keyed by (seed, sample
            id, target, restart). "upstream": at a distance of eps / 2.
        steps: number of steps of a run.
        restarts: runs of each sample (and target).
        targets: 0: toward the class whose linear boundary is nearest, which takes a gradient for each class but the
            label at each step. T: FAB-T, a run toward each of the classes with the second to the (T + 1)-th largest
            logit of the image, of one gradient a step; at most K - 1.
        alpha_max: largest weight of the image's projection, 0 to 1.
        eta: overshoot past the boundary, at least 1.
        beta: after a misclassified iterate the search goes on from x0 + beta (x - x0); above 0, at most 1.
        keep: "ball": a sample is done with the first misclassified image within eps, in the first run or else in
            whichever of the other ones comes to one by the fewest steps. "closest": all runs go to the end.
        impl: implementation of the projections: "auto", "reference", "cpp" (on a GPU: "reference").

    Raises:
        TypeError, ValueError: bad settings, here or (when changed later) at the call; targets >= K at the call.

    Source: Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020,
    algorithm 1; FAB-T: Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", ICML 2020, section 5.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float = 8 / 255,
        *,
        norm: str = "linf",
        steps: int = 100,
        restarts: int = 1,
        targets: int = 0,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        keep: str = "ball",
        **settings: Any,
    ) -> None:
        super().__init__(model, eps, norm=norm, **settings)
        self.steps = steps
        self.restarts = restarts
        self.targets = targets
        self.alpha_max = alpha_max
        self.eta = eta
        self.beta = beta
        self.keep = keep
        self.check()

    def check(self) -> None:
        name = type(self).__name__
        for setting in ("steps", "restarts"):
            checks.check_count(setting, getattr(self, setting), 1)
        checks.check_count("targets", self.targets, 0)
        checks.check_choice("keep", self.keep, KEEPS)
        if not 0 <= self.alpha_max <= 1:
            raise ValueError(f"{name}: alpha_max must be 0 to 1, got {self.alpha_max}")
        if not 1 <= self.eta < math.inf:
            raise ValueError(f"{name}: eta must be a finite number >= 1, got {self.eta}")
        if not 0 < self.beta <= 1:
            raise ValueError(f"{name}: beta must be above 0 and at most 1, got {self.beta}")
        super().check()

    def search(self, oracle: Oracle, points: Points, watch: Watch | None = None) -> Found:
        classes = points.logits.shape[1]
        self.check_targets(self.targets, classes)
        step = Step(self.norm.lower(), self.alpha_max, self.eta, self.impl)
        search = Search(
            oracle, step, steps=self.steps, beta=self.beta, classes=classes,
            eps=self.eps if self.keep == "ball" else None,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(self.seed)
        distance = torch.full_like(points.logits[:, 0], math.inf)
        found = Found(
            points.x.clone(), distance.isfinite(), distance if self.keep == "closest" else None
        )
        groups = self._groups()
        runs, begun = sum(map(len, groups)), 0.0
        for group in groups:
            left = (~found.success).nonzero()[:, 0]
            if not len(left):
                break
            drawn = [self._drawn(points.x[left], run, generator) for run in group]
            for piece in torch.arange(len(left)).split(max(1, oracle.rows // len(group))):
                rows = piece.to(left.device)
                index = left[rows]
                part = points.selected(index)
                starts = [
                    self._start(part, run) if start is None else pick(start, rows)
                    for run, start in zip(group, drawn, strict=True)
                ]
                share = len(group) * len(piece) / len(left)
                found.x[index], distance[index] = search(
                    starts, part.x, part.labels,
                    self._others(part, group),
                    part_of(watch, begun / runs, share / runs),
                )  # fmt: skip
                begun += share
            found.success = distance.isfinite()
        if watch is not None:
            watch(1.0)
        return found

    def _groups(self) -> list[list[Run]]:
        """The runs that go side by side; a sample that is done after one group has no part in the next one."""
        runs = [(t, r) for t in range(max(1, self.targets)) for r in range(self.restarts)]
        if self.keep == "closest":
            return [runs]
        if self.rng == "upstream" and self.restarts > 1:
            # Their draws are for the samples that all runs before have left.
            return [[run] for run in runs]
        # Most of what is found at all is found by the first.
        return [group for group in (runs[:1], runs[1:]) if group]

    def _drawn(self, x: Tensor, run: Run, generator: torch.Generator) -> Tensor | None:
        """Where a run begins, if that is drawn for the batch as a whole."""
        if self.rng != "upstream" or run[1] == 0:
            return None
        return published(x, self.eps, self.norm.lower(), generator)

    def _start(self, points: Points, run: Run) -> Tensor:
        target, restart = run
        if restart == 0:
            return points.x
        return keyed(
            points.x, self.eps, self.norm.lower(), seed=self.seed,
            stream=target * self.restarts + restart, ids=points.ids,
        )  # fmt: skip

    def _others(self, points: Points, group: list[Run]) -> list[Tensor] | None:
        """The classes that runs go towards, by the clean logits; None: the nearest ones."""
        if not self.targets:
            return None
        ranked = points.logits.sort(dim=1).indices.flip(1)
        return [ranked[:, target + 1] for target, _ in group]


class FABT(FAB):
    """FAB-T: `FAB` toward each of the nine classes that are likeliest after the label; arguments as there."""

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float = 8 / 255,
        *,
        targets: int = 9,
        **settings: Any,
    ) -> None:
        super().__init__(model, eps, targets=targets, **settings)
