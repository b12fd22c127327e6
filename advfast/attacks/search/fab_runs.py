"""Runs of FAB side by side: several starts and targets of each sample, until each has what it looks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from advfast.attacks.finish import LEAVE_FROM
from advfast.attacks.rows import _Selectable, pick

from .fab_boundary import Boundary, Step, across, boundary, lengths, repeated
from .oracle import Oracle


@dataclass
class Runs(_Selectable):
    """A row for each run of each sample, all samples of a run together, the runs in their order.

    Attributes:
        x: [N, ...] iterates.
        x0: [N, ...] the clean images.
        labels: [N].
        others: [N] the class that a run goes towards; None: the nearest one.
        sample: [N] number of the sample among the n that are searched here.
        difference, w: of the boundary at x.
        crossed: [N] bool, whether the last step crossed the boundary, as the next one then probably does.
        known: [N] bool, whether the class of x is known.
        best: [N, ...] the closest misclassified images so far, or None where they are not wanted.
        distance: [N] how far the closest misclassified image is, inf where there is none.
    """

    x: Tensor
    x0: Tensor
    labels: Tensor
    others: Tensor | None
    sample: Tensor
    difference: Tensor
    w: Tensor
    crossed: Tensor
    known: Tensor
    best: Tensor | None
    distance: Tensor


class Search:
    """FAB on some samples.

    After a step the published loop asks for the class of the new iterate, and then, in the next step, for the gradient:
    where the iterate is not misclassified at the same point, so that one pass serves both.

    Args:
        oracle: open.
        step: how iterates move.
        steps: number of steps.
        beta: after a misclassified iterate the search goes on from x0 + beta (x - x0).
        classes: K.
        eps: a sample with a misclassified image in this distance needs no further step. None: all run to the end, for
            the closest one.
    """

    def __init__(
        self,
        oracle: Oracle,
        step: Step,
        *,
        steps: int,
        beta: float,
        classes: int,
        eps: float | None,
    ) -> None:
        self._oracle, self._step = oracle, step
        self._steps, self._beta, self._classes, self._eps = steps, beta, classes, eps

    def __call__(
        self,
        starts: list[Tensor],
        x0: Tensor,
        labels: Tensor,
        others: list[Tensor] | None,
        watch: Callable[[float], None],
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            starts: R tensors [n, ...], where the runs of each sample begin.
            x0: [n, ...] images, right when clean.
            labels: [n].
            others: R tensors [n], the classes that the runs go towards; None: the nearest ones.
            watch: told the share of the steps that is done.

        Returns:
            (images [n, ...], their distances [n]; inf where no misclassified image was found). With eps that of the run
            that came within it by the fewest steps, of several the first; without, the closest one.
        """
        self._found = x0.clone()
        self._distance = torch.full_like(x0.flatten(1)[:, 0], torch.inf)
        runs: Runs | None = self._begin(starts, x0, labels, others)
        for number in range(1, self._steps + 1):
            assert runs is not None
            runs.x = self._step(runs.x, runs.x0, Boundary(runs.difference, runs.w))
            runs = self._look(runs) if number < self._steps else self._look_last(runs)
            watch(number / self._steps)
            if runs is None:
                break
        if self._eps is None and runs is not None:
            self._choose(runs)
        return self._found, self._distance

    def _begin(
        self, starts: list[Tensor], x0: Tensor, labels: Tensor, others: list[Tensor] | None
    ) -> Runs:
        count = len(starts)
        x, labels = torch.cat(starts), labels.repeat(count)
        towards = None if others is None else torch.cat(others)
        _, at = self._boundary(x, labels, towards)
        no = torch.zeros_like(labels, dtype=torch.bool)
        return Runs(
            x=x,
            x0=repeated(x0, count),
            labels=labels,
            others=towards,
            sample=torch.arange(len(x0), device=x0.device).repeat(count),
            difference=at.difference,
            w=at.w,
            crossed=no,
            known=~no,
            best=x.clone() if self._eps is None else None,
            distance=torch.full_like(at.difference, torch.inf),
        )

    def _boundary(
        self, x: Tensor, labels: Tensor, others: Tensor | None
    ) -> tuple[Tensor, Boundary]:
        return boundary(self._oracle, x, labels, others, self._classes, self._step.norm)

    def _look(self, runs: Runs) -> Runs | None:
        """Where the new iterates are, and the boundary from there; None: nothing is left to do.

        Rows that crossed before are asked for their class alone, as they will be pulled back; of the others the
        boundary is found at once, and once more should they have crossed.
        """
        runs.known = runs.crossed
        self._cross(runs, self._wrong(runs, runs.known.nonzero()[:, 0]))
        left = self._stay(runs)
        if left is None:
            return None
        logits, at = self._boundary(left.x, left.labels, left.others)
        left.difference, left.w = at.difference, at.w
        late = ~left.known & (logits.argmax(1) != left.labels)
        left.known = ~late
        if not late.any():
            return left
        self._cross(left, late.nonzero()[:, 0])
        left = self._stay(left)
        if left is None:
            return None
        rows = (~left.known & ~self._done(left)).nonzero()[:, 0]
        if len(rows):
            others = None if left.others is None else left.others[rows]
            _, at = self._boundary(pick(left.x, rows), left.labels[rows], others)
            left.difference[rows], left.w[rows] = at.difference, at.w
        return left

    def _look_last(self, runs: Runs) -> Runs:
        self._cross(runs, self._wrong(runs, torch.arange(len(runs.x), device=runs.x.device)))
        return runs

    def _wrong(self, runs: Runs, rows: Tensor) -> Tensor:
        """Those of the rows whose iterates are misclassified."""
        runs.crossed = torch.zeros_like(runs.crossed)
        if not len(rows):
            return rows
        classes = self._oracle.logits(pick(runs.x, rows)).argmax(1)
        return rows[classes != runs.labels[rows]]

    def _cross(self, runs: Runs, rows: Tensor) -> None:
        """Notes the misclassified iterates of these rows, and pulls them back toward the clean images."""
        if not len(rows):
            return
        x, x0 = pick(runs.x, rows), pick(runs.x0, rows)
        distance = lengths(x - x0, self._step.norm)
        if runs.best is not None:
            closer = distance < runs.distance[rows]
            runs.best[rows] = torch.where(across(closer, x), x, pick(runs.best, rows))
            runs.distance[rows] = torch.where(closer, distance, runs.distance[rows])
        if self._eps is not None:
            self._note(runs.sample[rows], x, distance, distance <= self._eps)
        runs.crossed[rows] = True
        runs.x[rows] = x0 + (x - x0) * self._beta

    def _note(self, sample: Tensor, x: Tensor, distance: Tensor, within: Tensor) -> None:
        """Keeps images within eps, of each sample the first, unless it has one already."""
        hit = (within & self._distance[sample].isinf()).nonzero()[:, 0]
        if not len(hit):
            return
        first = torch.full_like(self._distance, len(sample), dtype=torch.int64)
        first.scatter_reduce_(0, sample[hit], hit, "amin")
        rows = first[first < len(sample)]
        self._found[sample[rows]] = pick(x, rows)
        self._distance[sample[rows]] = distance[rows]

    def _done(self, runs: Runs) -> Tensor:
        """[N] bool, whether the sample has what it looks for."""
        return self._distance[runs.sample].isfinite()

    def _stay(self, runs: Runs) -> Runs | None:
        """Without the rows of samples that are done, once they are many enough; None: all are."""
        if self._eps is None:
            return runs
        done = self._done(runs)
        finished = int(done.sum())
        if finished == len(done):
            return None
        if finished * LEAVE_FROM < len(done):
            return runs
        return runs.selected((~done).nonzero()[:, 0])

    def _choose(self, runs: Runs) -> None:
        """The closest image of each sample, of equally close ones that of the first run."""
        assert runs.best is not None  # all rows are still here
        distance, run = runs.distance.view(-1, len(self._found)).min(0)
        rows = run * len(self._found) + torch.arange(len(run), device=run.device)
        found = distance.isfinite().nonzero()[:, 0]
        self._found[found] = pick(runs.best, rows[found])
        self._distance = distance
