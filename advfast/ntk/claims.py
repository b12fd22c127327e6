"""Which uses of which parameters the rules account for, found by running the network on a few samples.

A use is claimed where (1) the network makes the same calls for two samples and for three, (2) one dimension of the
call's output grows with them, and (3) the gradient of a sample's logits is exactly zero at the other samples' entries.
A parameter that autograd still reaches when its claimed uses are detached has uses no rule knows: it is left whole to
generic.py. So every parameter ends claimed, generic or unused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from .calls import Call, Recorder, Split
from .rules import RULES
from .rules_conv import CONV_RULES
from .subject import Subject

_MIXED = (
    "model: a sample's logits depend on the other samples of its batch (batch statistics, or something else across the "
    "batch), so that there is no kernel of two samples"
)
ALL_RULES: dict[Callable, type[Call]] = RULES | CONV_RULES
_COUNTS = (2, 3)  # samples of the two runs


@dataclass
class Claims:
    splits: dict[str, Split]  # of each claimed use, by key, in the order of the calls
    calls: dict[str, Call]  # as recorded for two samples, prepared
    names: dict[str, str]  # the parameter of each use
    generic: tuple[str, ...]
    unused: tuple[str, ...]
    seen: set[str]  # all uses, by key
    excluded: set[str]  # uses that are left to autograd
    copied: frozenset[str]  # uses whose call has its input written to later
    last: frozenset[str]  # uses whose call no other claimed call comes before
    channels_last: bool  # layout of the images
    logits: Tensor  # [2, O]


@dataclass
class _Run:
    count: int
    calls: list[Call]
    seen: list[str]
    logits: Tensor
    x: Tensor
    uses: dict[str, tuple[Call, str]] = field(default_factory=dict)  # key -> call and role

    def __post_init__(self) -> None:
        for call in self.calls:
            for role, key in call.keys.items():
                self.uses[key] = (call, role)


def find_claims(subject: Subject, example: Tensor) -> Claims:
    """Under `subject.running()` and with grad enabled.

    Args:
        example: [m, ...], a sample or more.

    Raises:
        ValueError: a sample's logits depend on another sample.
    """
    excluded: set[str] = set()
    channels_last: bool | None = None
    while True:
        small = _run(subject, example, _COUNTS[0], excluded, False)
        if channels_last is None:
            large, channels_last = _laid_out_run(subject, example, small)
            _check_ids_apart(subject, large)
        else:
            large = _run(subject, example, _COUNTS[1], excluded, channels_last)
        runs = [small, large]
        splits, refused = _splits(runs)
        if not refused:
            splits, refused = _verified(large, splits)
        if not refused:
            break
        excluded |= refused
    return _settled(subject, runs, splits, excluded, channels_last)


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    """A copy of x for the network."""
    return x.clone(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _laid_out_run(subject: Subject, example: Tensor, small: _Run) -> tuple[_Run, bool]:
    """The run of more samples, and whether its images are channels_last.

    On a CPU images are best run that way, as the convolutions are no slower and the gradients come in the order in
    which they are kept; unless the network does not take it.
    """
    if example.dim() == 4 and example.device.type == "cpu" and example.is_floating_point():
        with contextlib.suppress(RuntimeError):  # it takes a view that this layout does not have
            run = _run(subject, example, _COUNTS[1], set(), True)
            plain, other = small.logits[0], run.logits[0]
            tolerance = 1e-3 if plain.dtype == torch.float32 else 1e-9
            if bool((other - plain).abs().max() <= tolerance * plain.abs().max()):
                return run, True
    return _run(subject, example, _COUNTS[1], set(), False), False


def _run(
    subject: Subject, example: Tensor, count: int, excluded: set[str], channels_last: bool
) -> _Run:
    x = example.detach()[torch.arange(count) % len(example)]
    if x.is_floating_point():
        x.requires_grad_()
    recorder = Recorder(subject.parameters, ALL_RULES, excluded, channels_last=channels_last)
    with recorder:
        logits = subject.logits(laid_out(x, channels_last))
    if not bool(logits.isfinite().all()):
        raise ValueError("model: the logits of the example are not finite")
    return _Run(count, recorder.calls, recorder.seen, logits, x)


def _check_ids_apart(subject: Subject, run: _Run) -> None:
    """Of a network that takes token ids: a sample's logits must not depend on the others of its batch."""
    if run.x.requires_grad:
        return  # its gradients tell (`_verified`)
    with torch.no_grad():  # others in the second sample's place
        changed = run.x.clone()
        changed[1], changed[2] = 0, changed.max()
        logits = subject.logits(changed)[0]
    scale = run.logits.detach().abs().max()
    if bool((logits - run.logits[0]).abs().max() > 1e-4 * scale):
        raise ValueError(_MIXED)


def _weights(logits: Tensor) -> Tensor:
    """Numbers that no two terms cancel under; the caller's random state is left alone."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(logits.shape, generator=generator, dtype=logits.dtype).to(logits.device)


def _splits(runs: list[_Run]) -> tuple[dict[str, Split], set[str]]:
    """The dimension of each use's output that counts the samples; keys of uses that have none."""
    small, large = runs
    refused = set(small.uses) ^ set(large.uses)
    splits: dict[str, Split] = {}
    for key in small.uses:
        if key in refused:
            continue
        a, b = small.uses[key][0], large.uses[key][0]
        split = _split(a.shape, b.shape) if type(a) is type(b) else None
        if split is None or not a.fits(small.uses[key][1], split):
            refused.add(key)
        else:
            splits[key] = split
    return splits, refused


def _split(small: tuple[int, ...], large: tuple[int, ...]) -> Split | None:
    if len(small) != len(large):
        return None
    grown = [d for d, (a, b) in enumerate(zip(small, large, strict=True)) if a != b]
    if len(grown) != 1:
        return None
    a, b = small[grown[0]], large[grown[0]]
    per = b - a
    if per < 1 or a != per * _COUNTS[0] or b != per * _COUNTS[1]:
        return None
    return Split(grown[0], per)


def _verified(run: _Run, splits: dict[str, Split]) -> tuple[dict[str, Split], set[str]]:
    """The splits, each with the samples where gradients show them; keys of uses where they do not.

    The logits of the first and of the last sample are differentiated: the others must not have a part in them.
    """
    keys = list(splits)
    fits = {key: {False, True} if splits[key].per > 1 else {False} for key in keys}
    seen: set[str] = set()
    inputs: list[Any] = [run.x] if run.x.requires_grad else []
    edges: list[Any] = [run.uses[key][0].edge for key in keys]
    for sample in (0, run.count - 1) if run.logits.requires_grad else ():
        grads = torch.autograd.grad(
            run.logits[sample] @ _weights(run.logits[sample]),
            [*inputs, *edges],
            retain_graph=True,
            allow_unused=True,
        )
        others = [k for k in range(run.count) if k != sample]
        if inputs and grads[0] is not None and bool((grads[0][others] != 0).any()):
            raise ValueError(_MIXED)
        for key, g in zip(keys, grads[len(inputs) :], strict=True):
            if g is None:
                continue
            here = g != 0
            if bool(here.any()):
                seen.add(key)
            for minor in tuple(fits[key]):
                split = Split(splits[key].dim, splits[key].per, minor)
                if bool(split.front(here).flatten(1).any(1)[others].any()):
                    fits[key].discard(minor)
    refused = {key for key in keys if not fits[key] or (splits[key].per > 1 and key not in seen)}
    return {key: Split(s.dim, s.per, False not in fits[key]) for key, s in splits.items()}, refused


def _settled(
    subject: Subject,
    runs: list[_Run],
    splits: dict[str, Split],
    excluded: set[str],
    channels_last: bool,
) -> Claims:
    parameters = subject.parameters
    reached = {name for run in runs for name in reached_by(run.logits, parameters)}
    small = runs[0]
    keys = [
        key
        for key in _alive(small)
        if small.uses[key][0].operands[small.uses[key][1]].name not in reached
    ]
    calls = {key: small.uses[key][0] for key in keys}
    names = {key: calls[key].operands[small.uses[key][1]].name for key in keys}
    for key in keys:
        calls[key].prepare(splits[key])
    copied = frozenset(
        key
        for run in runs
        for key, (call, _) in run.uses.items()
        if key in calls and call.changed()
    )
    claimed = set(names.values())
    return Claims(
        splits={key: splits[key] for key in keys},
        calls=calls,
        names=names,
        generic=tuple(name for name in parameters if name in reached),
        unused=tuple(name for name in parameters if name not in reached | claimed),
        seen=set(runs[0].seen) | set(runs[1].seen),
        excluded=excluded,
        copied=copied,
        last=_last(calls),
        channels_last=channels_last,
        logits=small.logits.detach(),
    )


def _last(calls: dict[str, Call]) -> frozenset[str]:
    """Keys of calls from whose node a backward pass reaches no other call: where it may end."""
    own = {call.edge.node for call in calls.values()}
    reaches: dict[Node, bool] = {}  # whether a call is at the node or behind it
    for start in own:
        stack = [start]
        while stack:
            node = stack[-1]
            behind = [after for after, _ in node.next_functions if after is not None]
            open_ones = [after for after in behind if after not in reaches]
            if open_ones:
                stack.extend(open_ones)
                continue
            stack.pop()
            reaches[node] = node in own or any(reaches[after] for after in behind)
    return frozenset(
        key
        for key, call in calls.items()
        if not any(
            reaches[after] for after, _ in call.edge.node.next_functions if after is not None
        )
    )


def reached_by(logits: Tensor, parameters: Mapping[str, Tensor]) -> set[str]:
    """Names of parameters that a backward pass from the logits would come to."""
    names = {id(p): name for name, p in parameters.items()}
    leaves = (id(getattr(node, "variable", None)) for node in _nodes(logits))
    return {names[leaf] for leaf in leaves if leaf in names}


def _nodes(logits: Tensor) -> set[Node]:
    """The autograd nodes that a backward pass from the logits can come to."""
    stack = [logits.grad_fn] if logits.grad_fn is not None else []
    seen = set(stack)
    while stack:
        for after, _ in stack.pop().next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                stack.append(after)
    return seen


def _alive(run: _Run) -> Iterator[str]:
    """Keys of uses that the logits depend on."""
    nodes = _nodes(run.logits)
    return (key for key, (call, _) in run.uses.items() if call.edge.node in nodes)
