"""One call of an attack: its settings and inputs as `craft` takes them, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from advfast.kernels import project_
from advfast.kernels.pgd.api import Bounds, Number, check_norm

from . import checks
from .arguments import first_iterate, ids_of, mask_of
from .capture import captured_craft
from .craft import craft, open_for
from .network import Network
from .plan import Logits, Plan
from .rows import join
from .split import bytes_a_row, most_rows, pieces
from .state import crafting, parameter_dtype

if TYPE_CHECKING:
    from .pgd import PGDAttack

OnFirst = Callable[[int], None]


class Call:
    """An attack on one kind of input: a model, a shape and a dtype; `PGDAttack` keeps it for the next call."""

    def __init__(
        self, attack: PGDAttack, model: Callable[[Tensor], Tensor], images: Tensor
    ) -> None:
        self._attack, self.model = attack, model
        self._classes: int | None = None
        self._row_bytes: int | None = None
        self._limit: int | None = None
        own = parameter_dtype(model)
        wide = torch.float64 if torch.float64 in (images.dtype, own) else torch.float32
        input_dtype = wide if own is None else own
        if own is None and images.dtype != wide:
            input_dtype = images.dtype
        a = attack
        eps = a.eps
        alpha = eps * a.STEP_OF_EPS if a.alpha is None else a.alpha
        self._plan = Plan(
            model=model,
            start=a._start,
            loss=a.loss,
            output=a.output,
            eps=0.0 if isinstance(eps, Tensor) else eps,
            alpha=0.0 if isinstance(alpha, Tensor) else alpha,
            steps=a.steps,
            random_start=a.random_start,
            norm=check_norm("PGDAttack", a.norm),
            bounds=_on_device(a.bounds, images),
            l2_order=a.l2_order,
            targeted=a.targeted,
            restarts=a.restarts,
            targets=a.targets,
            early_stop=a.early_stop,
            cycles=a.cycles,
            compact_every=a.compact_every,
            eot=a.eot,
            momentum=a.momentum,
            fold=a.fold,
            couples=a.bn != "eval",
            impl=a.impl,
            compile=a.compile,
            wide=wide,
            input_dtype=input_dtype,
            result_dtype=images.dtype,
            sixteen_bit=a.precision != "fp32",
            most_rows=most_rows(len(images), images[0].numel()),
        )

    def __call__(
        self,
        images: Tensor,
        labels: Tensor | None,
        sample_ids: Tensor | None,
        mask: Tensor | None,
        init: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """(adversarial images, int64 [1] gradient entries that were not finite); call it in `crafting`."""
        if labels is not None and labels.is_inference():
            labels = labels.clone()  # autograd cannot save a tensor made in inference mode
        x0 = _dense_copy(images, self._plan.wide)
        inputs = self._inputs(x0, labels, sample_ids, mask, init)
        opened = _Opened(self._plan)
        if self._attack.check:
            opened.on_first = self._check(x0, labels)
        self._set_limit(x0, opened)

        def run(inputs: Mapping[str, Tensor], plan: Plan) -> tuple[Tensor, Tensor]:
            if plan.capturing:
                return craft(inputs, plan)
            return craft(inputs, plan, *opened.on(inputs["x0"]))

        images_found, counts = [], []
        for piece in self._pieces(inputs):
            found, nonfinite = captured_craft(self._attack, run, piece, self._plan)
            images_found.append(found)
            counts.append(nonfinite)
        if opened.on_first is not None:  # no step was made
            checks.check_values(x0, self._plan.bounds, None, None)
        result = join(images_found)
        if result.stride() != images.stride():
            result = torch.empty_like(images).copy_(result)
        return result, counts[0] if len(counts) == 1 else torch.stack(counts).sum(0)

    def _inputs(
        self,
        x0: Tensor,
        labels: Tensor | None,
        sample_ids: Tensor | None,
        mask: Tensor | None,
        init: Tensor | None,
    ) -> dict[str, Tensor]:
        a, plan = self._attack, self._plan
        eps: Number = _widened(a.eps, plan)
        alpha: Number = eps * a.STEP_OF_EPS if a.alpha is None else _widened(a.alpha, plan)
        inputs: dict[str, Tensor] = {"x0": x0}
        given = {"labels": labels, "eps": eps, "alpha": alpha}
        inputs |= {name: value for name, value in given.items() if isinstance(value, Tensor)}
        if sample_ids is not None:
            inputs["sample_ids"] = ids_of(sample_ids, x0)
        if mask is not None:
            inputs["mask"] = mask_of(mask, x0)
        if init is not None:
            start = first_iterate(init, x0, plan.restarts)
            project_(start, x0, eps=eps, norm=plan.norm, bounds=plan.bounds, impl=plan.impl)
            inputs["starts"] = start[:, None]
        elif plan.random_start and a.start == "torch":
            # Drawn for the whole batch, before it is split: torch's generator knows no samples.
            starts = [
                a._start(x0, eps, plan.norm, None, restart, sample_ids)
                for restart in range(plan.restarts)
            ]
            inputs["starts"] = starts[0][:, None] if len(starts) == 1 else torch.stack(starts, 1)
        elif plan.random_start:
            if a.seed is None:
                inputs["seed"] = torch.randint(2**63 - 1, (1,), device=x0.device)
            else:
                inputs["seed"] = torch.full((1,), a.seed, dtype=torch.int64, device=x0.device)
        return inputs

    def _check(self, x0: Tensor, labels: Tensor | None) -> OnFirst | None:
        """The check of all values, for the first logits; or made here, where a graph may be replayed."""
        bounds = self._plan.bounds

        def check(classes: int) -> None:
            self._classes = classes
            checks.check_values(x0, bounds, labels, classes)

        if self._attack.capture == "off" or not x0.is_cuda:
            return check
        if self._classes is None:
            self._classes = self._count_classes(x0)
        check(self._classes)
        return None

    def _count_classes(self, x0: Tensor) -> int:
        """By one sample, which leaves no trace in running statistics and generators."""
        plan = self._plan
        with crafting(plan.model, "eval"), torch.random.fork_rng([x0.device]), torch.no_grad():
            return Logits(plan, None)(plan.model(x0[:1].to(plan.input_dtype))).shape[1]

    def _set_limit(self, x0: Tensor, opened: _Opened) -> None:
        a = self._attack
        self._limit = a.batch_size
        if a.max_bytes is not None:
            if self._row_bytes is None:
                self._row_bytes = bytes_a_row(*opened.on(x0), x0)
            fitting = max(1, a.max_bytes // self._row_bytes)
            self._limit = fitting if self._limit is None else min(self._limit, fitting)
        if self._limit is not None and self._plan.most_rows != self._limit:
            self._plan = opened.plan = replace(self._plan, most_rows=self._limit)

    def _pieces(self, inputs: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        plan, batch = self._plan, len(inputs["x0"])
        if self._limit is None or batch * plan.rows_a_sample <= self._limit:
            yield inputs
            return
        if "sample_ids" not in inputs:
            inputs["sample_ids"] = torch.arange(batch, device=inputs["x0"].device)
        for piece in pieces(batch, plan.rows_a_sample, self._limit):
            yield {
                name: t[piece] if name != "seed" and t.dim() and t.shape[0] == batch else t
                for name, t in inputs.items()
            }


class _Opened:
    """The network of one call, opened where it is first asked for: a graph that is replayed needs none."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.on_first: OnFirst | None = None
        self._network: tuple[Network, Logits] | None = None

    def on(self, example: Tensor) -> tuple[Network, Logits]:
        if self._network is None:
            logits = Logits(self.plan, self._first)
            self._network = open_for(self.plan, logits, example), logits
        return self._network

    def _first(self, classes: int) -> None:
        on_first, self.on_first = self.on_first, None
        if on_first is not None:
            on_first(classes)


def _widened(value: Number, plan: Plan) -> Number:
    return value.detach().to(plan.wide) if isinstance(value, Tensor) else value


def _on_device(bounds: Bounds, x0: Tensor) -> Bounds:
    """Bounds without lists, which a graph could not bring to its device."""
    if bounds is None or x0.device.type == "cpu":
        return bounds
    lo, hi = (
        torch.tensor(bound, dtype=torch.float64, device=x0.device)
        if isinstance(bound, Sequence)
        else bound
        for bound in bounds
    )
    return lo, hi


def _dense_copy(images: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in `dtype` that keeps NCHW or NHWC order; any other strides become NCHW."""
    images = images.detach()
    layout = torch.contiguous_format
    if images.dim() == 4 and not images.is_contiguous():
        if images.is_contiguous(memory_format=torch.channels_last):
            layout = torch.channels_last
    elif images.dim() == 5 and images.is_contiguous(memory_format=torch.channels_last_3d):
        layout = torch.channels_last_3d
    return images.to(dtype, memory_format=layout, copy=True)
