"""The one inner loop: forward, gradient with respect to the input alone, fused step; finished rows leave."""

from __future__ import annotations

import torch
from torch import Tensor

from advfast.graphs import nvtx_range
from advfast.kernels import project_
from advfast.kernels.pgd.prepared import PreparedStep

from .cycles import Cycles
from .finish import Finish
from .momentum import Momentum
from .network import Network
from .plan import Logits, Objective, Plan
from .rows import Rows


def _generators(device: torch.device) -> list[Tensor]:
    """The states of torch's generators, which a network that draws from them moves."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


class Loop:
    """`steps` PGD steps on the rows of one pass; needs grad mode on.

    Args:
        rows: N = runs x samples; rows.x is changed in place.
        runs: of each sample in this pass.
        nonfinite: int64 [1], counts non-finite gradient entries.
    """

    def __init__(
        self,
        network: Network,
        logits: Logits,
        objective: Objective,
        rows: Rows,
        runs: int,
        plan: Plan,
        nonfinite: Tensor,
    ) -> None:
        self._network, self._logits, self._objective, self._plan = network, logits, objective, plan
        self._nonfinite = nonfinite
        cycles = plan.detects_cycles and network.deterministic
        self._cycles = Cycles(plan.steps, rows.x) if cycles else None
        self._finish = Finish(rows.x, runs) if plan.early_stop or cycles else None
        self._momentum = Momentum(plan.momentum) if plan.momentum else None
        self._take(rows)

    def run(self) -> tuple[Tensor, Tensor | None]:
        """([N, ...] the last iterates, [N] bool the rows that stopped early, if that is asked for)."""
        plan = self._plan
        device = self._rows.x.device
        before = None
        if self._cycles is not None:
            self._cycles.look(0, self._rows.x)
            before = _generators(device)
        for step in range(plan.steps):
            with nvtx_range("advfast.step"):
                self._step(step)
            if before is not None:
                if not all(map(torch.equal, before, _generators(device))):
                    self._cycles = None  # a network that draws does not repeat itself
                before = None
            look = (step + 1) % plan.compact_every == 0 and step + 1 < plan.steps
            if look and not plan.capturing and not self._settle():
                break
        if self._finish is None:
            return self._rows.x, None
        stopped = self._finish.stopped() if plan.early_stop else None
        return self._finish.collect(self._rows.x), stopped

    def _take(self, rows: Rows) -> None:
        """The batch is now these rows."""
        plan, x = self._plan, rows.x
        self._rows = rows
        self._logits.rows = len(x)
        self._objective.follow(rows.reference, rows.target_classes)
        self._input = x
        narrow = None
        if plan.input_dtype != x.dtype:
            self._input = narrow = torch.empty_like(x, dtype=plan.input_dtype)
            project_(
                x, rows.x0, eps=rows.eps, norm=plan.norm, bounds=plan.bounds, out=narrow, impl=plan.impl
            )  # fmt: skip
        self._move = PreparedStep(
            x,
            rows.x0,
            alpha=rows.alpha,
            eps=rows.eps,
            norm=plan.norm,
            bounds=plan.bounds,
            mask=rows.mask,
            out=narrow,
            nonfinite=self._nonfinite,
            l2_order=plan.l2_order,
            impl=plan.impl,
        )

    def _step(self, step: int) -> None:
        x = self._rows.x
        logits, gradient = self._gradient()
        active = None
        if self._finish is not None and self._plan.early_stop:
            success = self._plan.succeeds(logits, self._rows.classes)
            active = self._finish.stop(success, x)
        if self._momentum is not None:
            gradient = self._momentum(gradient.to(x.dtype), self._rows.mask)
        self._move(gradient, active)
        if self._cycles is not None:
            self._cycles.look(step + 1, x)

    def _gradient(self) -> tuple[Tensor, Tensor]:
        """(logits, input gradient), averaged over passes of a network that draws."""
        logits, gradient = self._network.gradient(self._input, self._objective)
        passes = self._plan.eot
        if passes == 1:
            return logits, gradient
        # In the iterate's dtype: a sum in 16 bits would lose the small ones.
        wide = self._plan.wide
        logits, gradient = logits.to(wide), gradient.to(wide)
        for _ in range(passes - 1):
            more_logits, more = self._network.gradient(self._input, self._objective)
            logits, gradient = logits + more_logits, gradient + more
        return logits / passes, gradient / passes

    def _settle(self) -> bool:
        """Lets finished rows leave; whether any row still needs a step."""
        if self._finish is None:
            return True
        if self._cycles is not None:
            self._finish.end(self._cycles.finished(self._rows.x), self._rows.x)
        may_leave = self._plan.compacts and not self._objective.coupled
        left, more = self._finish.leave(may_leave)
        if left is not None:
            if self._cycles is not None:
                self._cycles.keep(left)
            if self._momentum is not None:
                self._momentum.keep(left)
            self._take(self._rows.selected(left))
        return more
