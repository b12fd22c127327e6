"""One batch from clean to adversarial images: starts, runs, and which run is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from advfast.kernels import project_
from advfast.kernels.pgd.api import Number

from . import checks
from .engine import Loop
from .finish import over
from .losses import margin
from .network import Network, open_network
from .plan import Logits, Objective, Plan
from .ranking import FAILED, STOPPED, choose, most_likely_wrong
from .rows import Rows, Samples, join, pick


def craft(
    inputs: Mapping[str, Tensor],
    plan: Plan,
    network: Network | None = None,
    logits: Logits | None = None,
) -> tuple[Tensor, Tensor]:
    """Adversarial images, as a function of tensors: nothing else changes between calls with the same plan.

    Call it in `crafting`, with gradients enabled. Nothing is written to the inputs.

    Args:
        inputs: "x0" [B, ...] in `plan.wide`; where there are any: "labels" [B] or [B, K], "eps" and "alpha" in
            place of the plan's, "seed" int64 [1], "sample_ids" int64 [B], "mask" bool, "starts" [B, R, ...] one for
            each restart.
        network, logits: opened before, with one another.

    Returns:
        ([B, ...] in `plan.result_dtype`, int64 [1] the number of gradient entries that were not finite).
    """
    x0 = inputs["x0"]
    if network is None or logits is None:
        logits = Logits(plan, None)
        network = open_for(plan, logits, x0)
    return _Batch(inputs, plan, network, logits).run()


def open_for(plan: Plan, logits: Logits, example: Tensor) -> Network:
    """The network of a plan."""
    return open_network(
        plan.model,
        input_dtype=plan.input_dtype,
        select=logits,
        sixteen_bit=plan.sixteen_bit,
        fold=plan.fold,
        deterministic=plan.deterministic,
        example=example,
        compile=plan.compile == "on",
        keep=not plan.capturing,
    )


class _Batch:
    """The samples of one call of `craft` and their runs; run = restart x targets + target."""

    def __init__(
        self, inputs: Mapping[str, Tensor], plan: Plan, network: Network, logits: Logits
    ) -> None:
        self._plan, self._network, self._logits = plan, network, logits
        x0 = inputs["x0"]
        if network.memory_format is not None and x0.dim() == 4:
            x0 = x0.contiguous(memory_format=network.memory_format)
        self._nonfinite = torch.zeros(1, dtype=torch.int64, device=x0.device)
        self._objective = Objective(plan)
        self._seed = inputs.get("seed")
        self._samples = Samples(
            x0=x0,
            eps=inputs.get("eps", plan.eps),
            alpha=inputs.get("alpha", plan.alpha),
            mask=inputs.get("mask"),
            ids=inputs.get("sample_ids"),
            reference=inputs.get("labels"),
            classes=None,
            towards=None,
            starts=inputs.get("starts"),
        )
        self._look_at_clean(self._samples)

    def _look_at_clean(self, samples: Samples) -> None:
        """What the model says of the clean images, where labels, loss or targets need it."""
        plan, labels = self._plan, samples.reference
        needs_labels = labels is None and (plan.steps or plan.runs > 1)
        clean = None
        if plan.loss == "kl" or plan.targets or needs_labels:
            self._logits.rows = len(samples.x0)
            clean = self._network.logits(samples.x0.to(plan.input_dtype))
            labels = clean.argmax(1) if labels is None else labels
        if labels is not None:
            samples.classes = checks.classes_of(labels)
        samples.reference = clean if plan.loss == "kl" else labels
        if plan.targets:
            assert clean is not None and samples.classes is not None
            samples.towards = most_likely_wrong(clean, samples.classes, plan.targets)

    def run(self) -> tuple[Tensor, Tensor]:
        plan, samples = self._plan, self._samples
        x = self._pass([0], samples)[0].x if plan.runs == 1 else self._best_of_runs()
        if plan.result_dtype != x.dtype:
            x = self._narrowed(x, samples.x0, samples.eps, plan.result_dtype)
        return x, self._nonfinite

    def _pass(self, runs: Sequence[int], samples: Samples) -> tuple[Rows, Tensor | None]:
        """These runs as one batch: its rows at the end, and which of them stopped early, bool [N], if any may."""
        rows = self._rows(runs, samples)
        if not self._plan.steps:
            return rows, None
        loop = Loop(
            self._network,
            self._logits,
            self._objective,
            rows,
            len(runs),
            self._plan,
            self._nonfinite,
        )
        x, stopped = loop.run()
        return replace(rows, x=x), stopped

    def _rows(self, runs: Sequence[int], samples: Samples) -> Rows:
        targets = max(1, self._plan.targets)
        length = len(samples.x0)

        def repeated(value: Any) -> Any:
            per_row = isinstance(value, Tensor) and value.dim() and value.shape[0] == length
            return join([value] * len(runs)) if per_row else value

        starts: dict[int, Tensor] = {}
        for run in runs:
            if run // targets not in starts:
                starts[run // targets] = self._start(run // targets, samples)
        towards = samples.towards
        return Rows(
            x=join([starts[run // targets] for run in runs]),
            x0=repeated(samples.x0),
            eps=repeated(samples.eps),
            alpha=repeated(samples.alpha),
            mask=repeated(samples.mask),
            reference=repeated(samples.reference),
            classes=repeated(samples.classes),
            target_classes=(
                None if towards is None else torch.cat([towards[:, run % targets] for run in runs])
            ),
        )

    def _start(self, restart: int, samples: Samples) -> Tensor:
        plan, x0 = self._plan, samples.x0
        if samples.starts is not None:
            start = torch.empty_like(x0).copy_(samples.starts[:, restart])
        elif plan.random_start:
            start = plan.start(x0, samples.eps, plan.norm, self._seed, restart, samples.ids)
        else:
            return x0.clone()
        if samples.mask is None:
            return start
        # where() may choose another memory format than x0's.
        return torch.empty_like(x0).copy_(torch.where(samples.mask, start, x0))

    def _best_of_runs(self) -> Tensor:
        """For each sample the result of the best of its runs, as many of them in one pass as may be."""
        plan, samples = self._plan, self._samples
        count, device = len(samples.x0), samples.x0.device
        at_once = max(1, plan.most_rows // count) if plan.folds_runs else 1
        best = samples.x0.clone()
        outcome = torch.full((count,), FAILED - 1, device=device)
        value = torch.zeros(count, dtype=torch.float64, device=device)
        drops = plan.early_stop and plan.compacts
        if drops and samples.ids is None:
            samples.ids = torch.arange(count, device=device)
        todo = torch.arange(count, device=device)
        for first in range(0, plan.runs, at_once):
            runs = range(first, min(first + at_once, plan.runs))
            rows, stopped = self._pass(runs, samples)
            outcomes, values = self._outcomes(rows, stopped, len(runs))
            chosen = choose(
                torch.cat((outcome[todo][None], outcomes)), torch.cat((value[todo][None], values))
            )
            # Number 0 is what there was before.
            position = torch.arange(len(todo), device=device)
            row = (chosen - 1).clamp(min=0) * len(todo) + position
            new = over(chosen > 0, rows.x)
            best.index_copy_(0, todo, torch.where(new, pick(rows.x, row), pick(best, todo)))
            outcome[todo] = torch.where(chosen > 0, outcomes.flatten()[row], outcome[todo])
            value[todo] = torch.where(chosen > 0, values.flatten()[row], value[todo])
            if drops and runs[-1] + 1 < plan.runs:
                open_ = (outcome[todo] != STOPPED).nonzero()[:, 0]
                todo = todo[open_]
                if not len(todo):
                    break
                samples = samples.selected(open_)
        return best

    def _outcomes(self, rows: Rows, stopped: Tensor | None, runs: int) -> tuple[Tensor, Tensor]:
        """([R, b], [R, b] float64) what the runs came to, and the value by which equal ones are ranked."""
        if stopped is None:
            success, value = self._judged(rows)
            return success.long().view(runs, -1), value.view(runs, -1)
        outcome = torch.where(stopped, STOPPED, FAILED)
        value = torch.zeros(len(stopped), dtype=torch.float64, device=stopped.device)
        if self._plan.compacts:
            # A sample of which one run stopped needs no look at the others.
            settled = stopped.view(runs, -1).any(0).repeat(runs)
            index = (~settled).nonzero()[:, 0]
            if len(index):
                success, values = self._judged(rows.selected(index))
                outcome[index], value[index] = success.long(), values
        else:
            success, value = self._judged(rows)
            outcome = torch.where(stopped, STOPPED, success.long())
        return outcome.view(runs, -1), value.view(runs, -1)

    def _judged(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """([N] success, [N] float64 margin or objective) of the last iterates, as the model sees them."""
        plan = self._plan
        seen = rows.x
        if plan.input_dtype != seen.dtype:
            seen = self._narrowed(seen, rows.x0, rows.eps, plan.input_dtype)
        self._logits.rows = len(seen)
        self._objective.follow(rows.reference, rows.target_classes)
        logits = self._network.logits(seen)
        if plan.eot > 1:
            passes = [logits, *(self._network.logits(seen) for _ in range(plan.eot - 1))]
            logits = torch.stack(passes).to(plan.wide).mean(0)
        with torch.no_grad():
            if plan.targets and rows.classes is not None:
                value = margin(logits, rows.classes)
            else:
                value = self._objective(logits)
        return plan.succeeds(logits, rows.classes), value.double()

    def _narrowed(self, x: Tensor, x0: Tensor, eps: Number, dtype: torch.dtype) -> Tensor:
        """x in another dtype, still inside the ball and the box."""
        plan = self._plan
        result = torch.empty_like(x, dtype=dtype)
        project_(x, x0, eps=eps, norm=plan.norm, bounds=plan.bounds, out=result, impl=plan.impl)
        return result
