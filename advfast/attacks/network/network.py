"""What the inner loop asks of a model, and which way of computing it is taken."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from advfast.attacks.state import bare_model, crafting, parameter_dtype

from .compiled import compiled_network
from .fingerprint import fingerprint
from .kept import Kept, open_program
from .plain import PlainNetwork
from .program import Program, ProgramNetwork
from .run import Unfit
from .trace import NotTraced, has_hooks

_SAMPLES = 4
"""Of the batch that a program is tried on."""
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.2}
"""How far program and model may differ there: rounding is far below, a wrong layer far above."""
_EDGE = 100
"""Times that, a few samples."""


class Network(Protocol):
    """Attributes:
    input_dtype: dtype of the model input.
    memory_format: of a 4-d model input; None: as it is given.
    deterministic: the settings allow that the same input gives the same bits.
    """

    input_dtype: torch.dtype
    memory_format: torch.memory_format | None
    deterministic: bool

    def logits(self, model_input: Tensor) -> Tensor:
        """[B, K], without gradients."""

    def gradient(
        self, model_input: Tensor, objective: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(logits [B, K], d objective(logits).sum() / d model_input), both detached."""


@dataclass
class Engine:
    """How the attacks run a model.

    Attributes:
        program: its steps, or None: it runs as it is, by autograd.
        reason: why there is no program.
        tried: kinds of input on which program and model agreed.
        kept: weights of the last call, folded and packed.
    """

    program: Program | None = None
    reason: str = ""
    tried: set[Hashable] = field(default_factory=set)
    kept: Kept | None = None

    def give_up(self, reason: str) -> None:
        self.program, self.reason, self.kept = None, reason, None

    def __str__(self) -> str:
        if self.program is None:
            return f"by autograd, as it is: {self.reason}"
        return self.program.summary()


_engines: WeakKeyDictionary[nn.Module, tuple[Hashable, Engine]] = WeakKeyDictionary()


def engine_of(model: object) -> Engine:
    """The engine of a model as it is now, made if need be; with a program only if the model can be traced."""
    if not isinstance(model, nn.Module):
        return Engine(reason="it is not an nn.Module")
    if has_hooks(model):
        return Engine(reason="it has hooks, which must see every pass")
    mark = fingerprint(model)
    known = _engines.get(model)
    if known is not None and known[0] == mark:
        return known[1]
    engine = Engine()
    try:
        engine.program = Program(model)
        if fingerprint(model) != mark:
            raise NotTraced("its forward changes its own attributes")
        if not engine.program.pays():
            raise NotTraced("most of its layers would run by autograd all the same")
    except NotTraced as error:
        engine.give_up(str(error))
    _engines[model] = (mark, engine)
    return engine


def explain(model: Callable[[Tensor], Tensor]) -> str:
    """How the attacks run `model`: its layers without autograd and its folded BN layers, or why it runs as it is.

    The first attack compares the two on a few images; until then what only that would show is not in it.
    """
    model = bare_model(model)
    with crafting(model, "eval"):
        return str(engine_of(model))


def open_network(
    model: Callable[[Tensor], Tensor],
    *,
    input_dtype: torch.dtype,
    select: Callable[[object], Tensor],
    sixteen_bit: bool,
    fold: bool,
    deterministic: bool,
    example: Tensor,
    compile: bool = False,
    keep: bool = True,
) -> Network:
    """The model for one call of an attack; call it inside `crafting`.

    Args:
        model: any callable, already in the mode for crafting.
        select: what the model returns -> logits, with its checks.
        sixteen_bit: the model computes in 16 bits, under torch.autocast, which is on.
        fold: permits a change of arithmetic within rounding.
        deterministic: whether the settings allow that the same input gives the same bits.
        example: [B, ...] a model input, for its shape, device and layout; a few of its samples are computed with, and
            what `select.bare` makes of the results, if there is such a thing, is not checked.
        compile: by torch.compile.
        keep: folded weights may be those of the last call, if the model's have not changed since; False where the work
            is recorded.
    """
    if compile and isinstance(model, nn.Module):
        return compiled_network(
            model, input_dtype, select, sixteen_bit, False, deterministic, example
        )
    plain = PlainNetwork(model, input_dtype, select, sixteen_bit, fold, deterministic, example)
    if not fold or not isinstance(model, nn.Module) or any(m.training for m in model.modules()):
        return plain
    engine = engine_of(model)
    if engine.program is None:
        return plain
    example = example.detach().to(input_dtype)
    own = parameter_dtype(model) or input_dtype
    dtype = torch.get_autocast_dtype(example.device.type) if sixteen_bit else own
    kind = (example.device, own, example.shape[1:])
    try:
        if kind not in engine.tried:
            bare = getattr(select, "bare", select)
            if not _try(engine.program, model, own, example[:_SAMPLES], input_dtype, bare):
                return plain
            engine.tried.add(kind)
        if keep:
            opened, engine.kept = open_program(
                engine.kept, engine.program, model, example, dtype, sixteen_bit
            )
        else:
            opened = engine.program.open(model, example, dtype, autocast=sixteen_bit)
    except Unfit as error:
        engine.give_up(str(error))
        return plain
    return ProgramNetwork(opened, plain, select, sixteen_bit)


def _try(
    program: Program,
    model: nn.Module,
    dtype: torch.dtype,
    example: Tensor,
    input_dtype: torch.dtype,
    select: Callable[[object], Tensor],
) -> bool:
    """Program and model on a few images: the same logits and gradients, or Unfit.

    Returns:
        False: there is nothing to compare with, the model fails on them or gives values that are not finite.
    """

    def objective(logits: Tensor) -> Tensor:
        weights = torch.arange(1, logits.shape[1] + 1, device=logits.device).cos()
        return logits @ weights.to(logits.dtype)

    with torch.autocast(example.device.type, enabled=False):
        plain = PlainNetwork(model, input_dtype, select, False, False, True, example)
        try:
            expected = plain.gradient(example, objective)
        except Exception:  # it is told when all images meet it, with their number
            return False
        try:
            opened = program.open(model, example, dtype, autocast=False)
            network = ProgramNetwork(opened, plain, select, False)
            found = network.gradient(example, objective)
            if network.unfit is not None:
                raise network.unfit
        except Unfit:
            raise
        except Exception as error:  # of whatever the user's layers do with what they are given
            raise Unfit(f"a trial failed: {type(error).__name__}: {error}") from error
    for name, ours, theirs in zip(("logits", "gradients"), found, expected, strict=True):
        ours, theirs = ours.flatten(1).double(), theirs.flatten(1).double()
        if not theirs.isfinite().all():
            return False
        away, size = (ours - theirs).norm(dim=1), theirs.norm(dim=1)
        near = away <= _TOLERANCE[dtype] * size
        # Where a unit lies on the edge of its ReLU, rounding decides on a sample's gradient, in the model itself too.
        edge = away <= min(0.5, _EDGE * _TOLERANCE[dtype]) * size
        enough = near.all() if name == "logits" else 2 * near.sum() >= len(near)
        if not (enough and edge.all()):  # NaN is neither
            raise Unfit(
                f"its {name} on a trial differ: it is random, or does what a graph does not show"
            )
    return True
