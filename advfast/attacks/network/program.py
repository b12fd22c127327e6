"""A traced model as a list of steps: logits, and the gradient of the image, without autograd around them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from .lower import Graph, Layer
from .plain import PlainNetwork, rescaled
from .run import Run, Unfit, Weights
from .segment import SegmentStep, constants_of
from .steps import (
    AddStep,
    AvgPoolStep,
    ConstantStep,
    ConvStep,
    LinearStep,
    MaxPoolStep,
    MeanStep,
    NormStep,
    ReluStep,
    ReshapeStep,
    Step,
)
from .trace import trace

_STEPS: dict[str, Callable[..., Step]] = {
    "conv": ConvStep, "linear": LinearStep, "norm": NormStep, "shift": ConstantStep, "scale": ConstantStep,
    "reshape": ReshapeStep, "maxpool": MaxPoolStep, "avgpool": AvgPoolStep, "mean": MeanStep,
}  # fmt: skip
_BARE: dict[str, Callable[..., Step]] = {"relu": ReluStep, "add": AddStep}
_KEEPS_MEMORY = (ReshapeStep, SegmentStep)
"""Steps whose outputs or saved values share memory with their inputs."""


class Program:
    """The steps of one model. Holds no weights: they are read when it is opened.

    Attributes:
        folded, norms: BN layers folded into the layer before them, and all of them.
        steps: the steps in order.

    Raises:
        NotTraced: the model's operations cannot be had as a graph.
    """

    def __init__(self, model: nn.Module) -> None:
        graph = Graph(model, trace(model))
        self.folded, self.norms = graph.folded, graph.norms
        self._graph = graph
        nodes = [graph.image] + [layer.node for layer in graph.layers]
        self._slots = {node: index for index, node in enumerate(nodes)}
        for alias, origin in graph.aliases.items():
            if origin in self._slots:
                self._slots[alias] = self._slots[origin]
        self._count = len(nodes)
        returned: list[fx.Node] = []
        fx.map_arg(graph.result, returned.append)
        self.steps = self._make(graph, set(returned))
        self._find_dead({self._slots[node] for node in returned if node in self._slots})
        self.nhwc = any(isinstance(step, ConvStep) for step in self.steps)

    def _make(self, graph: Graph, returned: set[fx.Node]) -> list[Step]:
        steps: list[Step] = []
        run: list[Layer] = []
        for layer in [*graph.layers, None]:
            if layer is not None and layer.kind == "other":
                run.append(layer)
                continue
            if run:
                steps.append(SegmentStep(run, self._slots, graph, returned))
                run = []
            if layer is None:
                break
            if layer.kind in _BARE:
                steps.append(_BARE[layer.kind](layer, self._slots))
            else:
                steps.append(_STEPS[layer.kind](layer, self._slots, graph))
        return steps

    def _find_dead(self, returned: set[int]) -> None:
        """What is read for the last time in each step, and whether its memory may then be used for the result."""
        shared: set[int] = {0}
        for step in self.steps:
            if isinstance(step, _KEEPS_MEMORY):
                shared.update(step.reads, getattr(step, "writes", [step.slot]))
        last: dict[int, int] = {}
        for index, step in enumerate(self.steps):
            for slot in (*step.reads, step.added):
                if slot is not None:
                    last[slot] = index
        for index, step in enumerate(self.steps):
            own = {slot for slot in (*step.reads, step.added) if slot is not None}
            step.dead = frozenset(slot for slot in own if last[slot] == index) - returned
            step.fresh = step.dead - shared

    def open(
        self, model: nn.Module, example: Tensor, dtype: torch.dtype, *, autocast: bool
    ) -> Opened:
        """The program with the weights as they are now.

        Args:
            dtype: of its arithmetic.
            autocast: layers without a rule of ours choose between `dtype` and float32 as torch.autocast does.
        """
        nhwc = self.nhwc and example.dim() == 4
        with torch.no_grad():
            constants = constants_of(self._graph, model)
            weights = Weights(constants, dtype, example.device, nhwc)
            states = [step.prepare(weights) for step in self.steps]
        return Opened(self, states, constants, dtype, nhwc, autocast)

    def pays(self) -> bool:
        """Whether it is faster than the model as it is: not where most work is in stretches by autograd (a ViT)."""
        stretches = sum(isinstance(step, SegmentStep) for step in self.steps)
        return sum(isinstance(step, ConvStep | NormStep) for step in self.steps) >= stretches

    def summary(self) -> str:
        """For people: what has become of the layers."""
        own = sum(not isinstance(step, SegmentStep) for step in self.steps)
        rest = len(self.steps) - own
        text = f"{own} layers without autograd, {self.folded} of {self.norms} BN layers folded"
        return text + (f", {rest} stretches by autograd" if rest else "")

    def new_run(self, constants: dict[fx.Node, Any]) -> Run:
        return Run(self._count, self._slots, constants)

    def result(self, run: Run) -> Any:
        return fx.map_arg(self._graph.result, run.lookup)


class Opened:
    """A program with weights: good until they change."""

    def __init__(
        self,
        program: Program,
        states: list[Any],
        constants: dict[fx.Node, Any],
        dtype: torch.dtype,
        nhwc: bool,
        autocast: bool,
    ) -> None:
        self._autocast = autocast
        self._program, self._states, self._constants = program, states, constants
        self.dtype, self.nhwc = dtype, nhwc

    def forward(self, image: Tensor, *, backwards: bool) -> tuple[Any, Run, list[Any]]:
        """(what the model returns, the run, what its steps keep for `backward`)."""
        run = self._program.new_run(self._constants)
        run.backwards = backwards
        if self._autocast:
            run.autocast = functools.partial(torch.autocast, image.device.type, self.dtype)
        run.values[0] = image.contiguous(memory_format=torch.channels_last) if self.nhwc else image
        keep: list[Any] = []
        for step, state in zip(self._program.steps, self._states, strict=True):
            kept = step.forward(run, state)
            keep.append(kept if backwards else None)
            for slot in step.dead:
                run.values[slot] = None
        return self._program.result(run), run, keep

    def backward(self, run: Run, keep: list[Any], logits: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of the image from that of the logits (one of the values returned)."""
        slots = [slot for slot, value in enumerate(run.values) if value is logits]
        if not slots:
            raise Unfit("the logits are not a value that the model returns")
        run.give(slots[-1], gradient, owned=False)
        run.values.clear()
        steps = self._program.steps
        for index in range(len(steps) - 1, -1, -1):
            steps[index].backward(run, self._states[index], keep[index])
            keep[index] = None
        found = run.total(0)
        if found is None:
            raise Unfit("the logits do not depend on the image")
        return found


class ProgramNetwork:
    """A network by its program, or by `plain` if a pass shows that it does not fit."""

    def __init__(
        self,
        opened: Opened,
        plain: PlainNetwork,
        select: Callable[[object], Tensor],
        sixteen_bit: bool,
    ) -> None:
        self.input_dtype = plain.input_dtype
        self.memory_format = torch.channels_last if opened.nhwc else None
        self.deterministic = plain.deterministic
        self.unfit: Unfit | None = None
        """Why `plain` has taken over."""
        self._opened, self._plain = opened, plain
        self._select = select
        self._sixteen_bit = sixteen_bit

    def logits(self, model_input: Tensor) -> Tensor:
        if self.unfit is None:
            try:
                with torch.no_grad(), torch.autocast(model_input.device.type, enabled=False):
                    result, _, _ = self._opened.forward(model_input.detach(), backwards=False)
                    return self._select(result)
            except Unfit as error:
                self.unfit = error
        return self._plain.logits(model_input)

    def gradient(
        self, model_input: Tensor, objective: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        if self.unfit is None:
            try:
                return self._gradient(model_input.detach(), objective)
            except Unfit as error:
                self.unfit = error
        return self._plain.gradient(model_input, objective)

    def _gradient(
        self, model_input: Tensor, objective: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), torch.autocast(model_input.device.type, enabled=False):
            result, run, keep = self._opened.forward(model_input, backwards=True)
            logits = self._select(result)
            cotangent = self._cotangent(logits, objective)
            gradient = self._opened.backward(run, keep, logits, cotangent)
        return logits, gradient

    def _cotangent(self, logits: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
        """d objective(logits).sum() / d logits."""
        narrow = logits.dtype in (torch.float16, torch.bfloat16)
        closed = getattr(objective, "closed", None)
        if closed is not None:
            cotangent = closed(logits)
        else:
            with torch.enable_grad():
                leaf = (logits.float() if narrow else logits.detach()).requires_grad_()
                (cotangent,) = torch.autograd.grad(objective(leaf).sum(), leaf)
        return (rescaled(cotangent) if self._sixteen_bit or narrow else cotangent).to(logits.dtype)
