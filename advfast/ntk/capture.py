"""The per-sample factors of a network's gradients, for a chunk of samples and all readouts.

One forward pass, then one backward pass a readout, for the gradients with respect to the outputs of the calls that take
parameters; no gradient with respect to a weight is formed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .calls import Call, Recorder
from .claims import ALL_RULES, find_claims, laid_out, reached_by
from .generic import Generic
from .readouts import Cotangents, Readout
from .subject import Subject
from .summands import Summand, make_summands
from .terms import Factor, Layer, Rows


class Capture:
    """What a network's kernel is a sum of, and the factors of these terms for any samples.

    Args:
        subject: the network.
        readout: see readouts.py.
        example: [m, ...], m >= 1 samples like those to come; the network is run on copies of them.
        y_example: labels [m], for readouts that need them (any label will do, the default).

    Attributes:
        layers: the terms, in the order of their first use. Parameters that no rule covers are the last one.
        readouts: R of the factors; of "trace" O.
        outputs: O.
        unused: parameters that the logits do not depend on; they add nothing.
        generic: parameters that are differentiated sample by sample (generic.py), which is slow.

    Raises:
        ValueError: a sample's logits depend on another sample, or are not finite; the readout does not fit.
    """

    def __init__(
        self,
        subject: Subject,
        readout: Readout | Cotangents,
        example: Tensor,
        y_example: Tensor | None = None,
    ):
        if not isinstance(example, Tensor) or example.dim() < 1 or not len(example):
            raise ValueError("example must be a tensor of one sample or more, [m, ...]")
        self.subject = subject
        example = example.detach().to(subject.device)
        with _running(subject):
            claims = find_claims(subject, example)
            self.outputs = claims.logits.shape[1]
            self.cotangents = (
                readout if isinstance(readout, Cotangents) else Cotangents(readout, self.outputs)
            )
            if self.cotangents.outputs != self.outputs:
                raise ValueError(
                    f"readout is for {self.cotangents.outputs} outputs, the network has {self.outputs}"
                )
            which = torch.arange(2) % len(example)
            if y_example is not None:
                y_example = y_example[which]
            elif self.cotangents.needs_labels:
                y_example = torch.zeros(2, dtype=torch.int64)
            c = self.cotangents(claims.logits, y_example, torch.zeros(2, dtype=torch.int64))
            self.readouts = c.shape[1]
            self._splits, self._excluded, self._copied = (
                claims.splits, claims.excluded, claims.copied,
            )  # fmt: skip
            self._seen = claims.seen
            self._last, self._channels_last = claims.last, claims.channels_last
            self._shapes = {key: _per_sample(call) for key, call in claims.calls.items()}
            self._summands = make_summands(claims)
            self.generic, self.unused = claims.generic, claims.unused
            layers = [summand.layer for summand in self._summands]
            self._generic = None
            if self.generic:
                self._generic = Generic(subject, self.generic, example[which], c)
                layers.append(
                    Layer(self.generic[0], "rows", self._generic.columns, parameters=self.generic)
                )
            self.layers = tuple(layers)
        self._check_claimed_once()

    def _check_claimed_once(self) -> None:
        """Every parameter is in the layers or among the unused, none of its elements twice."""
        counts = dict.fromkeys(self.subject.parameters, 0)
        for layer in self.layers:
            for name in layer.parameters:
                counts[name] += layer.columns if len(layer.parameters) == 1 else 0
        for name, parameter in self.subject.parameters.items():
            homes = (name in self.unused) + (name in self.generic) + (counts[name] > 0)
            if name in self.generic and len(self.generic) == 1:
                homes -= 1
            if homes != 1 or counts[name] > parameter.numel():
                raise RuntimeError(
                    f"parameter {name!r} is accounted for {homes} times ({counts[name]} of its "
                    f"{parameter.numel()} elements in layers), expected once"
                )

    def __call__(
        self,
        x: Tensor,
        y: Tensor | None = None,
        rows: Tensor | None = None,
        out: Sequence[Tensor | None] | None = None,
    ) -> list[Factor]:
        """Factors of the samples x [n, ...], one for each of `layers`; detached, contiguous but for `out`.

        Args:
            y: labels int64 [n], for readouts that need them.
            rows: int64 [n], which rows of a per-sample readout these samples are.
            out: for each of `layers` a tensor that its g (or j) is written to and that stands in the factor, of any
                strides; None where a new one is wanted. New memory costs as much as what is written to it.

        Raises:
            ValueError: logits or gradients that are not finite; says of which samples.
            RuntimeError: the network makes other calls for these samples than for the example.
        """
        subject = self.subject
        x = x.detach().to(subject.device)
        with _running(subject):
            recorder = Recorder(
                subject.parameters, ALL_RULES, self._excluded, self._splits, self._copied,
                self._channels_last,
            )  # fmt: skip
            with recorder:
                logits = subject.logits(laid_out(x, self._channels_last))
            _check_finite(logits.detach().sum(1), "logits")
            calls = self._recorded(recorder, logits)
            c = self.cotangents(logits, y, rows)
            if out is None:
                out = [None] * len(self.layers)
            factors = self._factors(calls, logits, c, out)
            if self._generic is not None:
                j = self._generic(x, c)
                _check_finite(j.sum((1, 2)), "gradients")
                factors.append(Rows(j if out[-1] is None else out[-1].copy_(j)))
        return factors

    def _recorded(self, recorder: Recorder, logits: Tensor) -> dict[str, Call]:
        """The claimed calls by use; that these are all there are is checked."""
        calls: dict[str, Call] = {}
        for call in recorder.calls:
            if call.changed():
                raise RuntimeError(
                    "the network writes to an input of a layer after its call, which it did not for the example"
                )
            call.release()
            for key in call.keys.values():
                calls[key] = call
        same = list(calls) == list(self._shapes) and all(
            _per_sample(call) == self._shapes[key] for key, call in calls.items()
        )
        # Uses of generic parameters may differ: one for each sample, say.
        new = {key.split(":")[2] for key in recorder.seen if key not in self._seen}
        reached = reached_by(logits, self.subject.parameters)
        if not same or not new | reached <= set(self.generic):
            raise RuntimeError(
                f"the network makes other calls for {len(logits)} samples than it made for the example: all must have "
                "the example's shape, and control flow must not depend on them"
            )
        return calls

    def _factors(
        self,
        calls: dict[str, Call],
        logits: Tensor,
        c: Tensor,
        out: Sequence[Tensor | None],
    ) -> list[Factor]:
        """A backward pass a readout. A gradient is taken as the pass comes by (a hook on the call's node) and is free
        again after; passes end at the calls that have none behind them."""
        users: dict[str, list[Summand]] = {key: [] for key in calls}
        with torch.no_grad():
            for summand, room in zip(self._summands, out, strict=False):
                summand.begin(calls, len(logits), self.readouts, c, room)
                for key in summand.keys:
                    users[key].append(summand)
        by_call: dict[int, list[str]] = {}
        for key, call in calls.items():
            by_call.setdefault(id(call), []).append(key)
        ends: list[tuple[Call, list[str]]] = []
        with contextlib.ExitStack() as hooks:
            taker = _Taker(users, c)
            for keys in by_call.values():
                call = calls[keys[0]]
                if keys[0] in self._last:
                    ends.append((call, keys))
                else:
                    hooks.callback(taker.hook(call, keys).remove)
            for r in range(self.readouts if ends else 0):
                taker.readout = r
                grads = torch.autograd.grad(
                    logits, [call.edge for call, _ in ends], c[:, r],
                    retain_graph=r + 1 < self.readouts, allow_unused=True,
                )  # fmt: skip
                with torch.no_grad():
                    for (call, keys), g in zip(ends, grads, strict=True):
                        taker.take(call, keys, g)
        factors = []
        with torch.no_grad():
            for summand in self._summands:
                factor, finite = summand.end()
                _check_finite(finite, f"gradients of {summand.layer.name}")
                factors.append(factor)
        return factors


class _Taker:
    """Hands gradients to the terms that they are part of."""

    def __init__(self, users: dict[str, list[Summand]], like: Tensor):
        self._users, self._like, self.readout = users, like, 0

    def hook(self, call: Call, keys: list[str]) -> RemovableHandle:
        place = call.edge.output_nr

        def before(grads: tuple[Tensor | None, ...]) -> None:
            self.take(call, keys, grads[place])

        return call.edge.node.register_prehook(before)

    def take(self, call: Call, keys: list[str], g: Tensor | None) -> None:
        if g is None:  # a custom function's word for zero
            g = self._like.new_zeros(call.shape)
        for key in keys:
            for summand in self._users[key]:
                summand.add(self.readout, key, g)


def _per_sample(call: Call) -> tuple[int, ...]:
    """Shape of the output with a sample's own entries where the batch is."""
    shape = list(call.shape)
    shape[call.split.dim] = call.split.per
    return tuple(shape)


def _check_finite(values: Tensor, what: str) -> None:
    """values [n]."""
    bad = (~values.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"{what} are not finite for {len(bad)} of the samples: {bad[:10]}")


@contextlib.contextmanager
def _running(subject: Subject) -> Iterator[None]:
    """As the subject runs, with gradients, and with the same algorithms whatever ran before."""
    cudnn = torch.backends.cudnn
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        subject.running(),
        cudnn.flags(cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        yield
