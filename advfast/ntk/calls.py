"""Calls of functions that take parameters, seen as the network runs.

Module hooks miss what a network calls by itself (`F.linear`, the output projection of `nn.MultiheadAttention`), so the
functions are watched. A call that a rule knows is made with its parameters detached and its output's gradient edge is
taken at once, before an in-place operation can follow. What still reaches a parameter through autograd after that was
used in a way that no rule knows.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def named(names: str) -> list[Callable]:
    """The functions of these names, as torch's and as methods, whichever exist."""
    places = (torch, torch.Tensor)
    return [
        getattr(place, name) for name in names.split() for place in places if hasattr(place, name)
    ]


@dataclass(frozen=True)
class Operand:
    """A parameter, or a view of one, among the arguments of a call."""

    name: str
    tensor: Tensor  # kept, so that its id stays its own
    index: Tensor | None  # int64, which elements of the parameter these are; None: all, in order


@dataclass(frozen=True)
class Split:
    """Where the samples are in a dimension of a call's output: n * `per` long, a sample's entries side by side or, with
    `minor`, n apart."""

    dim: int
    per: int
    minor: bool = False

    def front(self, t: Tensor) -> Tensor:
        """[n, *shape of t with `per` at `dim`], a view where one exists."""
        if self.per == 1:
            return t.movedim(self.dim, 0).unsqueeze(self.dim + 1)
        if self.minor:
            return t.unflatten(self.dim, (self.per, -1)).movedim(self.dim + 1, 0)
        return t.unflatten(self.dim, (-1, self.per)).movedim(self.dim, 0)


class Call:
    """One call; a class for each kind of function (rules.py).

    `kind(role)` says what the gradient with respect to the parameter in argument `role` is made of:

    * "product": `source` [n, groups, L, e], `taps()`, `positions(g)` [n, groups, S, c];
    * "tokens": `source` [n, S], int64, `positions(g)` [n, 1, S, c];
    * "rows": `rows(role, g)` [n, elements], the gradient itself.

    These hold after `prepare`; g is the gradient with respect to the output.
    """

    NAMES: tuple[str, ...] = ()  # of the function's arguments, in order
    ROLES: tuple[str, ...] = ()  # of these, what may be a parameter

    def __init__(self, func: Callable, args: tuple, kwargs: dict):
        self.func, self.args, self.kwargs = func, args, kwargs
        self.operands: dict[str, Operand] = {}
        self.shape: tuple[int, ...] = ()  # of the output
        self.keys: dict[str, str] = {}
        self.channels_last = False
        self.edge: GradientEdge
        self.split: Split
        self.source: Tensor | None = None
        self.watched: list[tuple[Tensor, int]] = []

    def argument(self, name: str, default: Any = None) -> Any:
        place = self.NAMES.index(name)
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)

    def known(self) -> bool:
        """Whether the rule covers the call with these arguments."""
        return True

    def find(self, operands: dict[int, Operand]) -> bool:
        """Looks up the parameters among the arguments; False where there is none."""
        for role in self.ROLES:
            found = operands.get(id(self.argument(role)))
            if found is not None:
                self.operands[role] = found
        return bool(self.operands)

    def run(self, detached: Iterable[str]) -> Tensor:
        """Makes the call with the parameters of these roles detached; takes the edge of its output."""
        args, kwargs = list(self.args), dict(self.kwargs)
        stand_ins = {}
        for role in detached:
            place = self.NAMES.index(role)
            stand_in = stand_ins[role] = self.stand_in(role)
            if place < len(args):
                args[place] = stand_in
            else:
                kwargs[role] = stand_in
        if not any(isinstance(a, Tensor) and a.requires_grad for a in (*args, *kwargs.values())):
            next(
                iter(stand_ins.values())
            ).requires_grad_()  # nothing before it: it starts the graph
        out = self.func(*args, **kwargs)
        self.edge, self.shape = get_gradient_edge(out), tuple(out.shape)
        return out

    def stand_in(self, role: str) -> Tensor:
        """The parameter, apart from autograd."""
        return self.operands[role].tensor.detach()

    def inputs(self) -> Iterator[Tensor]:
        """Tensors that `prepare` reads, besides parameters."""
        yield self.argument(self.NAMES[0])

    def watch(self) -> None:
        """Notes the versions of the inputs: `changed` tells whether one was written to since."""
        self.watched = [(t, t._version) for t in self.inputs()]

    def changed(self) -> bool:
        return any(t._version != version for t, version in self.watched)

    def fits(self, role: str, split: Split) -> bool:
        """Whether the rule holds with the samples there: never along a dimension of the parameter."""
        return True

    def prepare(self, split: Split) -> None:
        """Computes `source`, what the gradients will be multiplied with."""
        self.split = split

    def own(self) -> None:
        """The inputs are written to later: what shares memory with them is copied."""
        if self.source is not None:
            self.source = self.source.clone()
        self.watched = []

    def release(self) -> None:
        """Lets go of the arguments."""
        self.args, self.kwargs, self.watched = (), {}, []

    def kind(self, role: str) -> str:
        return "rows"

    def taps(self) -> Tensor | None:
        return None

    def positions(self, g: Tensor) -> Tensor:
        raise NotImplementedError

    def rows(self, role: str, g: Tensor) -> Tensor:
        raise NotImplementedError

    def arranged(self, rows: Tensor) -> Tensor:
        """Product rows [..., groups, c, T, e] in the order of the parameter's elements, [..., elements]."""
        return rows.flatten(-4)


# Functions whose result is a view, or a copy in another order, of some elements of their first argument.
_VIEWS = {
    *named(
        "__getitem__ chunk contiguous flatten movedim narrow permute ravel reshape select split squeeze swapaxes "
        "swapdims t tensor_split transpose unbind unflatten unsqueeze view view_as expand expand_as broadcast_to"
    ),
    *(getattr(torch.Tensor, name).__get__ for name in ("T", "mT")),
}


def _no(*_: Any) -> bool:
    return False


@functools.cache
def _opened(func: types.FunctionType) -> Callable:
    """`func` without its own look at __torch_function__, so that the functions it calls are seen."""
    overrides = {
        name: _no
        for name in (
            "has_torch_function",
            "has_torch_function_unary",
            "has_torch_function_variadic",
        )
    }
    opened = types.FunctionType(
        func.__code__,
        func.__globals__ | overrides,
        func.__name__,
        func.__defaults__,
        func.__closure__,
    )
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened


_COMPOSITE = (F.multi_head_attention_forward,)


class Recorder(TorchFunctionMode):
    """Finds the calls that take parameters, in the order they are made.

    Args:
        parameters: by name.
        rules: from a function to the class of its calls.
        excluded: keys of uses that are left to autograd.
        splits: for each key whose use is wanted where its samples are; None to record without preparing.
        copied: keys of calls whose inputs are written to later.
        channels_last: whether two-dimensional convolutions are given their weights in that layout.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        rules: dict[Callable, type[Call]],
        excluded: set[str],
        splits: dict[str, Split] | None = None,
        copied: frozenset[str] = frozenset(),
        channels_last: bool = False,
    ):
        super().__init__()
        self._operands = {id(p): Operand(name, p, None) for name, p in parameters.items()}
        self._rules, self._excluded, self._splits, self._copied = rules, excluded, splits, copied
        self._channels_last = channels_last
        self._counts: dict[tuple[str, str, str], int] = {}
        self.calls: list[Call] = []
        self.seen: list[str] = []  # keys of all uses

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _COMPOSITE:
            with self:
                return _opened(func)(*args, **kwargs)
        if torch.is_grad_enabled():
            rule = self._rules.get(func)
            if rule is not None:
                call = rule(func, args, kwargs)
                call.channels_last = self._channels_last
                if call.find(self._operands) and call.known():
                    wanted = self._wanted(call)
                    if wanted:
                        return self._record(call, wanted)
            if func in _VIEWS and args and id(args[0]) in self._operands:
                return self._view(func, args, kwargs)
        return func(*args, **kwargs)

    def _wanted(self, call: Call) -> list[str]:
        """Roles that are not left to autograd; names each use."""
        for role, operand in call.operands.items():
            which = (getattr(call.func, "__name__", "call"), role, operand.name)
            count = self._counts[which] = self._counts.get(which, -1) + 1
            call.keys[role] = ":".join((*which, str(count)))
            self.seen.append(call.keys[role])
        return [role for role, key in call.keys.items() if key not in self._excluded]

    def _record(self, call: Call, wanted: list[str]) -> Tensor:
        call.operands = {role: call.operands[role] for role in wanted}
        call.keys = {role: call.keys[role] for role in wanted}
        if self._splits is None:
            out = call.run(wanted)
            call.watch()
            self.calls.append(call)
            return out
        out = call.run(wanted)
        call.keys = {role: key for role, key in call.keys.items() if key in self._splits}
        if not call.keys:
            return out
        call.operands = {role: call.operands[role] for role in call.keys}
        used = list(call.keys.values())
        call.watch()
        call.prepare(self._splits[used[0]])
        if any(key in self._copied for key in used):
            call.own()
        self.calls.append(call)
        return out

    def _view(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """A view of a parameter is a parameter in part; the same function says which elements it is of."""
        operand = self._operands[id(args[0])]
        out = func(*args, **kwargs)
        index = operand.index
        if index is None:
            index = torch.arange(operand.tensor.numel(), device=operand.tensor.device)
            index = index.view(operand.tensor.shape)
        picked = func(index, *args[1:], **kwargs)
        for part, which in zip(_tensors(out), _tensors(picked), strict=True):
            if len(which.unique()) == which.numel():  # else an element would count several times
                self._operands[id(part)] = Operand(operand.name, part, which)
        return out


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)
