"""When an attack is captured as one CUDA graph, when it is replayed, and why it runs eagerly."""

from __future__ import annotations

import dataclasses
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from advfast import graphs

from .graph_key import graph_key

if TYPE_CHECKING:
    from .pgd import PGDAttack
    from .plan import Plan

Craft = Callable[[dict[str, Any], "Plan"], tuple[Tensor, Tensor]]

KEPT = 8
"""Graphs of one model, the ones used last; the memory of all of them is shared."""

_REMEMBERED = 64
"""Kinds of call of one model that were seen, or that cannot be captured."""


class _Known:
    """What is known of one model: its graphs, and by kind of call why there is none ("": seen once)."""

    def __init__(self) -> None:
        self.graphs = graphs.GraphCache(KEPT)
        self.notes: OrderedDict[Hashable, str] = OrderedDict()

    def note(self, key: Hashable, reason: str) -> None:
        self.notes[key] = reason
        if len(self.notes) > _REMEMBERED:
            self.notes.popitem(last=False)


_known: weakref.WeakKeyDictionary[Any, _Known] = weakref.WeakKeyDictionary()


def captured_craft(
    attack: PGDAttack, craft: Craft, inputs: dict[str, Tensor], plan: Plan
) -> tuple[Tensor, Tensor]:
    """``craft(inputs, plan)``, replayed as a graph where `attack.capture` asks for it and it is possible.

    "auto": eagerly at the first call of a kind, as one that is not repeated would not earn back its capture;
    captured at the second. "required": captured at once, or an error. eps and alpha that are numbers reach a captured
    `craft` as 0-d tensors among the inputs.

    `attack.capture_note` says why it ran eagerly ("" if it did not, or first call of a kind), `attack.launches` counts
    replays. A graph keeps its memory until the model is gone or others have taken its place.

    Args:
        craft: (inputs, plan) -> (images, count of non-finite entries); pure, and with plan.capturing device work only.

    Raises:
        RuntimeError: "required", with the reason why it cannot be captured.
    """
    attack.capture_note = ""
    if graphs.capturing() and not plan.capturing:
        # Somebody's larger graph, of a training step for one: this attack becomes a part of it.
        return craft(inputs, dataclasses.replace(plan, capturing=True))
    if attack.capture == "off":
        return craft(inputs, plan)
    device = inputs["x0"].device
    recorder = graphs.recorder(device)
    if recorder is None:
        return _eagerly(attack, craft, inputs, plan, f"no CUDA graphs on {device}")
    reason = _obstacle(attack, plan)
    if reason:
        return _eagerly(attack, craft, inputs, plan, reason)
    owner = plan.model if isinstance(plan.model, nn.Module) else attack
    known = _of(owner)
    # A tensor wins over the number of the same name, as in craft.
    numbers = {
        name: float(value)
        for name, value in (("eps", plan.eps), ("alpha", plan.alpha))
        if not isinstance(value, Tensor)
    }
    moving: dict[str, Tensor | float] = {**numbers, **inputs}
    key = graph_key(attack, plan, moving)
    captured = known.graphs.get(key)
    if captured is None:
        first = key not in known.notes
        if not first and known.notes[key]:
            return _eagerly(attack, craft, inputs, plan, known.notes[key])
        if first and attack.capture == "auto":
            known.note(key, "")
            return craft(inputs, plan)
        try:
            captured = _capture(craft, moving, plan, recorder)
        except graphs.CaptureError as error:
            known.note(key, str(error))
            return _eagerly(attack, craft, inputs, plan, str(error), error)
        known.graphs.put(key, captured)
        known.notes.pop(key, None)
    outputs = captured(moving)
    attack.launches += 1
    return outputs["x"], outputs["nonfinite"]


def _of(owner: object) -> _Known:
    if owner not in _known:
        _known[owner] = known = _Known()
        # Not left to the collector: a replay may still be reading what it would free.
        weakref.finalize(owner, known.graphs.clear).atexit = False
    return _known[owner]


def forget_graphs(model: object = None) -> None:
    """Releases the graphs of a model (or of all models), and what is known of failures."""
    for owner in list(_known) if model is None else [model]:
        known = _known.pop(owner, None)
        if known is not None:
            known.graphs.clear()


def _capture(
    craft: Craft,
    moving: Mapping[str, Tensor | float],
    plan: Plan,
    recorder: graphs.Recorder,
) -> graphs.Captured:
    capturing = dataclasses.replace(plan, capturing=True)

    def run(static: dict[str, Tensor]) -> graphs.Outputs:
        x, nonfinite = craft(static, capturing)
        return {"x": x, "nonfinite": nonfinite}

    # Running statistics move with every run, and rehearsing is none.
    buffers = list(plan.model.buffers()) if isinstance(plan.model, nn.Module) else []
    x0 = moving["x0"]
    assert isinstance(x0, Tensor)
    return graphs.Captured(run, moving, number=x0, recorder=recorder, preserved=buffers)


def _eagerly(
    attack: PGDAttack,
    craft: Craft,
    inputs: dict[str, Tensor],
    plan: Plan,
    reason: str,
    cause: BaseException | None = None,
) -> tuple[Tensor, Tensor]:
    if attack.capture == "required":
        raise RuntimeError(
            f"capture='required', but this attack cannot be captured: {reason}"
        ) from cause
    attack.capture_note = reason
    return craft(inputs, plan)


def _obstacle(attack: PGDAttack, plan: Plan) -> str:
    """Why nothing is captured here, whatever the attack does; "" if something may be."""
    if torch.compiler.is_compiling():
        return "torch.compile is tracing"
    if attack.capture == "auto" and not isinstance(plan.model, nn.Module):
        return "the model is not an nn.Module: whether its tensors moved cannot be seen"
    return ""
