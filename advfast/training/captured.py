"""A whole step of training as one CUDA graph."""

from __future__ import annotations

import random
import sys
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from advfast import graphs
from advfast.attacks import PGDAttack
from advfast.attacks.graph_key import place
from advfast.attacks.network.fingerprint import fingerprint
from advfast.data import Batch, Plan

from .methods import Method
from .step import Outcome, TrainStep

if TYPE_CHECKING:
    from .loop import Batches

CAPTURES = ("auto", "required", "off")

_ALWAYS_NEW = 20
"""Steps in a row of different kinds after which it is said that none can be replayed."""

_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
"""Optimisers of which it is known that a step with fused=True is work of the device alone, the rate a tensor."""


@runtime_checkable
class Recordable(Protocol):
    """An optimiser that says so of itself, and what of it is not on the device."""

    def graph_key(self) -> Hashable:
        """What a graph has of it for good; may differ from step to step, where the same ones come again."""
        ...

    def replayed(self) -> None:
        """A graph has done a step: the numbers of the host go on."""
        ...


def check_capture(capture: object, device: torch.device | None = None) -> None:
    """
    Raises:
        ValueError: not one of CAPTURES.
        RuntimeError: "required", and there are no CUDA graphs on the device.
    """
    if capture not in CAPTURES:
        raise ValueError(f"capture must be one of {', '.join(CAPTURES)}, got {capture!r}")
    if capture == "required" and device is not None and graphs.recorder(device) is None:
        raise RuntimeError(f"capture='required', but there are no CUDA graphs on {device}")


def make_step(capture: str, model: nn.Module, *args: Any, **kwargs: Any) -> TrainStep:
    """A step that is captured where it may be and can; the arguments are those of `TrainStep`."""
    device = next(model.parameters()).device
    if capture == "off" or graphs.recorder(device) is None:
        return TrainStep(model, *args, **kwargs)
    return CapturedStep(model, *args, **{**kwargs, "capture": capture})


@dataclass
class CapturedStep(TrainStep):
    """A `TrainStep` that is one launch of a CUDA graph: images, attack, gradient, optimiser, modifiers.

    A step is captured when it is of the same kind as the one before: the same method and settings, shapes, and what
    methods and modifiers say of themselves by `graph_key`. The first step of a kind runs eagerly, and so does the short
    last batch of an epoch, which never comes twice in a row: one of some hundred steps would not earn back a capture.
    An optimiser whose steps alternate has two graphs in turn: "before" is then the last step of the same `graph_key`.
    Learning rates, eps, alpha and the numbers of the samples come in as tensors; images that are on the device are
    gathered and augmented in the graph.

    Attributes:
        capture: "auto": runs eagerly where a step cannot be captured, and says so once. "required": an error there.
        note: why steps run eagerly, "" if they do not.
        launches: replays so far.

    Raises:
        RuntimeError: "required", and the step cannot be captured, with the reason.
    """

    capture: str = "auto"
    note: str = field(default="", init=False)
    launches: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._device = next(self.model.parameters()).device
        recorder = graphs.recorder(self._device)
        assert recorder is not None
        self._recorder = recorder
        self._graphs = graphs.GraphCache()
        self._refused: set[Hashable] = set()
        self._previous: dict[Hashable, Hashable] = {}  # by the key of the optimiser
        self._new = 0
        self._loader: Any = None
        self._addresses: dict[int, Hashable] = {}

    def batches(self, loader: Batches, epoch: int, start: int) -> Iterator[Batch | Plan]:
        self._loader = loader
        self._addresses = {}  # a new epoch may have made new tensors
        if not self.note:
            make = getattr(loader, "plans", None)
            plans = None if make is None else make(epoch, start)
            if plans is not None:
                return plans
        return loader.batches(epoch, start)

    def __call__(self, method: Method, batch: Batch | Plan) -> Outcome:
        reason = self._obstacle(method)
        if reason:
            self._refuse(reason)
            return self._eagerly(method, batch)
        moving = self._moving(method, batch)
        recordable = self.optimizer if isinstance(self.optimizer, Recordable) else None
        own = None if recordable is None else recordable.graph_key()
        key = own, self._key(method, moving)
        captured = self._graphs.get(key)
        again, self._previous[own] = key == self._previous.get(own), key
        if captured is None:
            self._new = 0 if again else self._new + 1
            if self._new == _ALWAYS_NEW:
                self._refuse(
                    "an attribute of the method, of a modifier or of the model changes from step to step"
                )
            if again and key not in self._refused:
                captured = self._captured(method, moving, key)
            if captured is None:
                return self._eagerly(method, batch)
        self._new = 0
        outputs = captured(moving)
        self.launches += 1
        if recordable is not None:
            recordable.replayed()
        made = Batch(outputs["images"], outputs["labels"], outputs.get("indices"))
        return Outcome(outputs["loss"], outputs["correct"], made)

    def _eagerly(self, method: Method, batch: Batch | Plan) -> Outcome:
        made = self._loader.assemble(batch) if isinstance(batch, Plan) else batch
        rates = [group["lr"] for group in self.optimizer.param_groups]
        try:
            # A tensor holds the rate in float32: an eager step is to have the same.
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = float(np.float32(rate))
            return super().__call__(method, made)
        finally:
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def _obstacle(self, method: Method) -> str:
        """Why no step of this run can be captured; "" if it may be."""
        if not method.capturable:
            return f"method {type(method).__name__} cannot be recorded"
        for modifier in self.modifiers:
            if not modifier.capturable:
                return f"modifier {modifier.name!r} cannot be recorded"
        if self.ranks.world > 1:
            return f"gradients are exchanged between {self.ranks.world} processes"
        kind = type(self.optimizer)
        if isinstance(self.optimizer, Recordable):
            return ""
        if kind not in _FUSED or not all(group["fused"] for group in self.optimizer.param_groups):
            return (
                f"of optimizer {kind.__name__} it is not known that a graph can hold it: expected "
                f"{', '.join(known.__name__ for known in _FUSED)} of torch.optim with fused=True, or graph_key() and "
                "replayed() as PNM has them"
            )
        return ""

    def _refuse(self, reason: str, cause: BaseException | None = None) -> None:
        if self.capture == "required":
            raise RuntimeError(
                f"capture='required', but a training step cannot be captured: {reason}"
            ) from cause
        if not self.note:
            if self.ranks.first:
                print(f"training steps run without CUDA graphs: {reason}", file=sys.stderr)
            self.note = reason

    def _moving(self, method: Method, batch: Batch | Plan) -> dict[str, Tensor | float]:
        """What a graph takes in anew at each replay."""
        moving: dict[str, Tensor | float] = {
            f"lr{number}": group["lr"] for number, group in enumerate(self.optimizer.param_groups)
        }
        moving |= {"eps": method.eps, "alpha": method.alpha}
        return moving | {
            name: value for name, value in batch._asdict().items() if value is not None
        }

    def _key(self, method: Method, moving: dict[str, Tensor | float]) -> Hashable:
        kinds = tuple(
            (name, value.shape, value.stride(), value.dtype)
            for name, value in moving.items()
            if isinstance(value, Tensor)
        )
        if id(method) not in self._addresses:
            self._addresses[id(method)] = tuple(
                (*place(tensor), tensor.requires_grad) for tensor in self._tensors(method)
            )
        return (
            id(method),
            kinds,
            method.graph_key(),
            tuple(modifier.graph_key() for modifier in self.modifiers),
            tuple(module.training for module in self.model.modules()),
            self._addresses[id(method)],
        )

    def _tensors(self, method: Method) -> list[Tensor]:
        """Of model, method and modifiers: what a step may read and change besides the optimiser's."""
        found: dict[int, Tensor] = {}
        for owner in (self.model, method, *self.modifiers):
            _collect(owner, found)
        return list(found.values())

    def _preserved(self, method: Method) -> list[Tensor]:
        """All that a rehearsal would change for good."""
        found: dict[int, Tensor] = {id(tensor): tensor for tensor in self._tensors(method)}
        for state in self.optimizer.state.values():
            _collect(state, found)
        _collect(vars(self.scaler), found)
        _collect(list(self.watched), found)
        return [tensor.detach() for tensor in found.values()]

    def _captured(
        self, method: Method, moving: dict[str, Tensor | float], key: Hashable
    ) -> graphs.Captured | None:
        optimizer, groups = self.optimizer, self.optimizer.param_groups
        eps, alpha, steps = method.eps, method.alpha, method.steps
        settings = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        planned = "drawn" in moving

        def run(static: dict[str, Tensor]) -> graphs.Outputs:
            # Here, so that what a method makes of them is a part of the graph too.
            method.strength(static["eps"], static["alpha"], steps)  # type: ignore[arg-type]
            for number, (group, kept) in enumerate(zip(groups, settings, strict=True)):
                group.update(kept)  # what an earlier rehearsal counted
                group["lr"] = static[f"lr{number}"].float()
                if "capturable" in group:
                    group["capturable"] = True  # what torch asks of Adam while it is captured
            if planned:
                batch = self._loader.assemble(Plan(static["indices"], static["drawn"]))
            else:
                batch = Batch(static["images"], static["labels"], static.get("indices"))
            outcome = TrainStep.__call__(self, method, batch)
            images, labels, numbers, *_ = outcome.batch
            made = {"images": images, "labels": labels}
            made |= {} if numbers is None else {"indices": numbers}
            return {"loss": outcome.loss, "correct": outcome.correct, **made}

        own = [(owner, dict(vars(owner))) for owner in (method, *self.modifiers)]
        generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
        before = self._surroundings(method)
        try:
            optimizer._warned_capturable_if_run_uncaptured = True
            if self._device.type == "cuda":
                torch.cuda.empty_cache()  # what the eager step used, for the graph's own pool
            captured = graphs.Captured(
                run,
                moving,
                number=torch.empty((), dtype=torch.float64, device=self._device),
                recorder=self._recorder,
                preserved=self._preserved(method),
            )
            after = self._surroundings(method)
        except (graphs.CaptureError, torch.OutOfMemoryError) as error:
            self._refused.add(key)
            self._refuse(str(error), error)
            return None
        finally:
            for owner, attributes in own:
                vars(owner).clear()
                vars(owner).update(attributes)
            method.strength(eps, alpha, steps)
            for group, kept in zip(groups, settings, strict=True):
                group.update(kept)
            random.setstate(generators[0])
            np.random.set_state(generators[1])
            torch.set_rng_state(generators[2])
        changed = [name for name in before if after[name] != before[name]]
        if changed:
            captured.release()
            self._refused.add(key)
            self._refuse(f"a step changes {' and '.join(changed)} other than by work of the device")
            return None
        self._graphs.put(key, captured)
        return captured

    def _surroundings(self, method: Method) -> dict[str, Hashable]:
        """What a step may change that no graph changes again, by its name in a message."""
        owners = {"the method": method} | {f"modifier {m.name!r}": m for m in self.modifiers}
        found: dict[str, Hashable] = {"the model": fingerprint(self.model)}
        for name, owner in owners.items():
            tensors = [
                (attribute, id(value))
                for attribute, value in vars(owner).items()
                if isinstance(value, Tensor) and attribute not in ("eps", "alpha")
            ]
            found[name] = owner.graph_key(), *tensors
        found["a generator of Python"] = random.getstate()
        found["a generator of NumPy"] = np.random.get_state()[1].tobytes()  # type: ignore[index]
        if self._device.type != "cpu":
            found["torch's generator of the CPU"] = torch.get_rng_state().numpy().tobytes()
        return found


def _collect(owner: object, found: dict[int, Tensor], depth: int = 3) -> None:
    """The tensors in an object, in its attributes and in containers of them, by id."""
    if isinstance(owner, Tensor):
        found[id(owner)] = owner
    elif isinstance(owner, PGDAttack):
        return  # what it keeps is of a call
    elif isinstance(owner, nn.Module):
        for tensor in (*owner.parameters(), *owner.buffers()):
            found[id(tensor)] = tensor
    elif depth:
        if isinstance(owner, dict):
            parts = list(owner.values())
        elif isinstance(owner, (list, tuple)):
            parts = list(owner)
        else:
            parts = list(vars(owner).values()) if hasattr(owner, "__dict__") else []
        for part in parts:
            _collect(part, found, depth - 1)
