"""One pass of APGD: a number of steps of all rows together, and what each row came to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from advfast.attacks.finish import LEAVE_FROM
from advfast.attacks.losses import TargetedLoss
from advfast.attacks.rows import _Selectable, pick
from advfast.kernels import apgd_step_

from . import apgd_l1
from .apgd_losses import check_values
from .apgd_schedule import Progress, checkpoints, even_checkpoints
from .oracle import Oracle

MOMENTUM = 0.75
_LOOK_EVERY = 5
"""Steps between two looks at what has finished where a look makes the host wait for the device."""


@dataclass(frozen=True)
class Plan:
    """How a pass goes.

    Attributes:
        eps: radius.
        norm: "linf", "l2" or "l1".
        steps: at most.
        loss: to be raised.
        eot: gradients that are averaged for one step.
        rho: share of rises up to which a check halves the step.
        leaves: a row ends with the first adversarial iterate, and leaves the batch. If not, all rows take all steps,
            and the last adversarial iterate counts.
        given: the start is the result of an earlier stage (l1).
        impl: of the fused ops.
    """

    eps: float
    norm: str
    steps: int
    loss: TargetedLoss
    eot: int = 1
    rho: float = 0.75
    leaves: bool = True
    given: bool = False
    impl: str = "auto"


@dataclass
class _Rows(_Selectable):
    """The rows that are still here, [n, ...] or [n] each; `at`: [n] their places in the whole pass."""

    at: Tensor
    x: Tensor
    x_prev: Tensor  # the iterate before; the buffer of the next one
    x0: Tensor
    labels: Tensor
    targets: Tensor
    gradient: Tensor
    best: Tensor
    best_gradient: Tensor
    improved: Tensor  # rows of which x and gradient are yet to be copied to best and best_gradient
    step: Tensor
    done: Tensor  # rows that succeeded, and those whose success no longer counts


def _copy_rows(rows: Tensor, source: Tensor, target: Tensor) -> None:
    """target[rows] = source[rows], rows bool [n]."""
    if source.device.type == "cpu":
        index = rows.nonzero()[:, 0]
        if len(index):
            target.index_copy_(0, index, source.index_select(0, index))
    else:
        torch.where(apgd_l1.over(rows, source), source, target, out=target)


class Run:
    """A pass over rows [N, ...].

    Args:
        oracle: open.
        plan: how it goes.
        start: [N, ...] in the ball and the box; overwritten.
        x0: [N, ...] centres.
        labels, targets: [N] int64.
        runs: the rows are so many runs of the same samples, one run behind the other: after a success, later runs of
            the sample do not count.

    Attributes:
        success: [N] bool, where the model was wrong at the start or after a step.
        found: [N, ...] an iterate of those; elsewhere it holds nothing.
        best: [N, ...] the iterate with the highest loss. Only if `plan.leaves` is False.
    """

    def __init__(
        self,
        oracle: Oracle,
        plan: Plan,
        start: Tensor,
        x0: Tensor,
        labels: Tensor,
        targets: Tensor,
        runs: int = 1,
    ) -> None:
        self._oracle, self._plan, self._runs = oracle, plan, runs
        count = len(x0)
        self.success = torch.zeros(count, dtype=torch.bool, device=x0.device)
        self.found = torch.empty_like(x0)
        factor = 1.0 if plan.norm == "l1" else 2.0
        self._rows = _Rows(
            at=torch.arange(count, device=x0.device),
            x=start,
            x_prev=torch.empty_like(x0),
            x0=x0,
            labels=labels,
            targets=targets,
            gradient=start,
            best=torch.empty_like(x0),
            best_gradient=torch.empty_like(x0),
            improved=torch.ones_like(self.success),
            step=torch.full((count,), factor * plan.eps, dtype=x0.dtype, device=x0.device),
            done=self.success.clone(),
        )
        self._progress: Progress | None = None
        self._sparsity: apgd_l1.Sparsity | None = None
        if plan.norm == "l1":
            self._sparsity = apgd_l1.Sparsity.start(start, x0, plan.given)

    @property
    def best(self) -> Tensor:
        self._keep_best()
        return self._rows.best

    def __call__(self, watch: Callable[[float], None]) -> Run:
        """watch: told the share of the steps that is taken."""
        plan = self._plan
        checks = (even_checkpoints if plan.norm == "l1" else checkpoints)(plan.steps)
        self._look(last=plan.steps == 0)
        for taken in range(1, plan.steps + 1):
            if plan.leaves and self._over(taken):
                break
            self._step(first=taken == 1)
            self._look(last=taken == plan.steps)
            if taken in checks and taken < plan.steps:
                self._check(checks[taken])
            watch(taken / plan.steps)
        return self

    def _losses(self, logits: Tensor, rows: slice) -> Tensor:
        values = self._plan.loss(logits, self._rows.labels[rows], self._rows.targets[rows])
        return check_values(values, len(logits))

    def _gradient(self) -> tuple[Tensor, Tensor]:
        """The logits of the last draw, and the mean gradient, of eot passes."""
        x = self._rows.x
        logits, gradient = self._oracle.gradient(x, self._losses)
        for _ in range(self._plan.eot - 1):
            logits, more = self._oracle.gradient(x, self._losses)
            gradient = gradient + more
        return logits, gradient / float(self._plan.eot) if self._plan.eot > 1 else gradient

    def _look(self, last: bool) -> None:
        """Asks the model about the iterates; the gradient is left out where no step follows."""
        rows = self._rows
        if last:
            logits = self._oracle.logits(rows.x)
        else:
            logits, rows.gradient = self._gradient()
        with torch.no_grad():
            loss = self._losses(logits, slice(None))
            if self._progress is None:
                self._progress = Progress.start(loss)
            else:
                rows.improved = self._progress.note(loss)
        wrong = logits.argmax(1) != rows.labels
        newly = wrong & ~rows.done if self._plan.leaves else wrong
        place = newly.nonzero()[:, 0]
        if len(place):
            at = rows.at[place]
            self.found.index_copy_(0, at, rows.x.index_select(0, place))
            self.success[at] = True
        rows.done = rows.done | newly

    def _over(self, taken: int) -> bool:
        """Whether no row needs a step; finished rows leave if they are many."""
        rows = self._rows
        if rows.x.device.type != "cpu" and taken % _LOOK_EVERY != 1:
            return False
        if self._runs > 1:
            table = self.success.view(self._runs, -1).long()
            later = ((table.cumsum(0) - table) > 0).flatten()
            rows.done = rows.done | later[rows.at]
        finished = int(rows.done.sum())
        if finished == len(rows.done):
            return True
        if finished * LEAVE_FROM >= len(rows.done):
            left = (~rows.done).nonzero()[:, 0]
            self._rows = rows.selected(left)
            if self._progress is not None:
                self._progress = self._progress.selected(left)
            if self._sparsity is not None:
                self._sparsity = self._sparsity.selected(left)
        return False

    def _step(self, first: bool) -> None:
        rows, plan = self._rows, self._plan
        if self._sparsity is not None:
            self._keep_best()
            rows.x = apgd_l1.step(
                rows.x, rows.x0, rows.gradient, rows.step, self._sparsity.share, plan.eps, plan.impl
            )
            return
        following = apgd_step_(
            rows.x, rows.x_prev, rows.x0, rows.gradient, rows.step,
            momentum=1.0 if first else MOMENTUM, eps=plan.eps, norm=plan.norm,
            improved=rows.improved, best=rows.best, best_gradient=rows.best_gradient,
            impl=plan.impl,
        )  # fmt: skip
        rows.x, rows.x_prev = following, rows.x
        rows.improved = torch.zeros_like(rows.improved)

    def _keep_best(self) -> None:
        rows = self._rows
        _copy_rows(rows.improved, rows.x, rows.best)
        _copy_rows(rows.improved, rows.gradient, rows.best_gradient)
        rows.improved = torch.zeros_like(rows.improved)

    def _check(self, window: int) -> None:
        rows, plan = self._rows, self._plan
        assert self._progress is not None
        if self._sparsity is None:
            back = self._progress.check(window, plan.rho)
            rows.step = torch.where(back, rows.step / 2, rows.step)
            back = back & ~rows.improved  # those are at their best point
        else:
            self._keep_best()
            back, rows.step = self._sparsity.check(rows.best, rows.x0, rows.step, plan.eps)
        _copy_rows(back, rows.best, rows.x)
        _copy_rows(back, rows.best_gradient, rows.gradient)


def first_success(run: Run, runs: int) -> tuple[Tensor, Tensor]:
    """(bool [n], whether a run of the sample succeeded; [n, ...] what the first one that did found)."""
    table = run.success.view(runs, -1)
    order = torch.arange(runs, 0, -1, device=table.device)[:, None]
    first = (table * order).argmax(0)
    n = table.shape[1]
    return table.any(0), pick(run.found, first * n + torch.arange(n, device=table.device))
