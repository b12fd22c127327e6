"""The per-sample factors of a network's gradients, for a chunk of samples and all readouts.

One forward pass, then one backward pass a readout, for the gradients with respect to the outputs of the calls that take
parameters; no gradient with respect to a weight is formed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from .calls import Call, Recorder
from .claims import ALL_RULES, find_claims
from .generic import Generic
from .readouts import Cotangents, Readout
from .subject import Subject
from .summands import make_summands
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

    def __call__(self, x: Tensor, y: Tensor | None, rows: Tensor | None) -> list[Factor]:
        """Factors of the samples x [n, ...], one for each of `layers`; contiguous, detached.

        Args:
            y: labels int64 [n], for readouts that need them.
            rows: int64 [n], which rows of a per-sample readout these samples are.

        Raises:
            ValueError: logits or gradients that are not finite; says of which samples.
            RuntimeError: the network makes other calls for these samples than for the example.
        """
        subject = self.subject
        x = x.detach().to(subject.device)
        with _running(subject):
            recorder = Recorder(
                subject.parameters, ALL_RULES, self._excluded, self._splits, self._copied
            )
            with recorder:
                logits = subject.logits(x.clone())
            _check_finite(logits.detach().sum(1), "logits")
            calls = self._recorded(recorder, len(x))
            c = self.cotangents(logits, y, rows)
            factors = self._factors(calls, logits, c)
            if self._generic is not None:
                j = self._generic(x, c)
                _check_finite(j.sum((1, 2)), "gradients")
                factors.append(Rows(j.contiguous()))
        return factors

    def _recorded(self, recorder: Recorder, n: int) -> dict[str, Call]:
        calls: dict[str, Call] = {}
        for call in recorder.calls:
            if call.changed():
                raise RuntimeError(
                    "the network writes to an input of a layer after its call, which it did not for the example"
                )
            call.release()
            for key in call.keys.values():
                calls[key] = call
        if list(calls) != list(self._shapes) or any(
            _per_sample(call) != self._shapes[key] for key, call in calls.items()
        ):
            raise RuntimeError(
                f"the network makes other calls for {n} samples than it made for the example: samples must all have "
                "the example's shape, and control flow must not depend on them"
            )
        return calls

    def _factors(self, calls: dict[str, Call], logits: Tensor, c: Tensor) -> list[Factor]:
        if not calls:
            return []
        with torch.no_grad():
            for summand in self._summands:
                summand.begin(calls, len(logits), self.readouts, c)
        edges = {id(call): call.edge for call in calls.values()}
        for r in range(self.readouts):
            grads = torch.autograd.grad(
                logits, list(edges.values()), c[:, r], retain_graph=r + 1 < self.readouts
            )
            by_call = dict(zip(edges, grads, strict=True))
            by_key = {key: by_call[id(call)] for key, call in calls.items()}
            del grads, by_call
            with torch.no_grad():
                for summand in self._summands:
                    summand.add(r, by_key)
        factors = []
        with torch.no_grad():
            for summand in self._summands:
                factor, finite = summand.end()
                _check_finite(finite, f"gradients of {summand.layer.name}")
                factors.append(factor)
        return factors


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
