"""The terms of the kernel: each parameter's uses put together, filled with one readout's gradients at a time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from advfast.kernels.ntk.reference import ntk_rows

from .calls import Call, Operand
from .claims import Claims
from .terms import Factor, Layer, Product, Rows, Tokens


class Summand:
    """One layer and the uses whose gradients make its factor."""

    layer: Layer

    def __init__(self, keys: list[str]):
        self.keys = keys

    def begin(self, calls: Mapping[str, Call], n: int, readouts: int, like: Tensor) -> None:
        raise NotImplementedError

    def add(self, readout: int, grads: Mapping[str, Tensor]) -> None:
        """grads: by use, with respect to the output of its call."""
        raise NotImplementedError

    def end(self) -> tuple[Factor, Tensor]:
        """The factor, and a number for each sample that is finite where the gradients are, [n]."""
        raise NotImplementedError


class ProductSummand(Summand):
    """A weight's uses, side by side in pixels and positions."""

    def __init__(self, keys: list[str], calls: Mapping[str, Call], name: str):
        super().__init__(keys)
        first = calls[keys[0]]
        sources, taps, self.counts = [], [], []
        start = 0
        windowed = any(calls[key].taps() is not None for key in keys)
        for key in keys:
            source, own = _source(calls[key]), calls[key].taps()
            pixels = source.shape[2]
            if windowed and own is None:
                own = torch.arange(pixels, dtype=torch.int32, device=source.device)[:, None]
            if own is not None:
                taps.append(torch.where(own < 0, own, own + start))
            self.counts.append(pixels if own is None else len(own))
            sources.append(source)
            start += pixels
        groups, features = sources[0].shape[1], sources[0].shape[3]
        window = taps[0].shape[1] if taps else 1
        columns = first.operands[_role(first, keys[0])].tensor.numel()
        self.layer = Layer(
            name=name,
            kind="product",
            columns=columns,
            parameters=(_parameter(first, keys[0]),),
            groups=groups,
            positions=sum(self.counts),
            channels=columns // (groups * features * window),
            pixels=start,
            features=features,
            taps=torch.cat(taps).contiguous() if taps else None,
        )

    def begin(self, calls, n, readouts, like):
        layer, self._calls = self.layer, [calls[key] for key in self.keys]
        self._g = like.new_empty(n, readouts, layer.groups, layer.positions, layer.channels)

    def add(self, readout, grads):
        start = 0
        for key, call, count in zip(self.keys, self._calls, self.counts, strict=True):
            self._g[:, readout, :, start : start + count] = call.positions(grads[key])
            start += count

    def end(self):
        sources = [_source(call) for call in self._calls]
        x = sources[0] if len(sources) == 1 else torch.cat(sources, 2)
        g, self._g, self._calls = self._g, None, []
        return Product(x, g), g.sum((1, 2, 3, 4))


class TokensSummand(Summand):
    """An embedding's uses, side by side."""

    def __init__(self, keys: list[str], calls: Mapping[str, Call], name: str):
        super().__init__(keys)
        self.counts = [_source(calls[key]).shape[1] for key in keys]
        table = calls[keys[0]].operands["weight"].tensor
        self.layer = Layer(
            name=name,
            kind="tokens",
            columns=table.numel(),
            parameters=(_parameter(calls[keys[0]], keys[0]),),
            positions=sum(self.counts),
            channels=table.shape[1],
        )

    def begin(self, calls, n, readouts, like):
        self._calls = [calls[key] for key in self.keys]
        self._g = like.new_empty(n, readouts, self.layer.positions, self.layer.channels)

    def add(self, readout, grads):
        start = 0
        for key, call, count in zip(self.keys, self._calls, self.counts, strict=True):
            self._g[:, readout, start : start + count] = call.positions(grads[key])[:, 0]
            start += count

    def end(self):
        ids = torch.cat([_source(call) for call in self._calls], 1)
        g, self._g, self._calls = self._g, None, []
        return Tokens(ids, g), g.sum((1, 2, 3))


class RowsSummand(Summand):
    """Uses whose gradients are the parameter's own, added up."""

    def __init__(self, keys: list[str], calls: Mapping[str, Call], name: str):
        super().__init__(keys)
        call = calls[keys[0]]
        self.layer = Layer(
            name=name,
            kind="rows",
            columns=call.operands[_role(call, keys[0])].tensor.numel(),
            parameters=(_parameter(call, keys[0]),),
        )

    def begin(self, calls, n, readouts, like):
        self._calls = [(key, calls[key], _role(calls[key], key)) for key in self.keys]
        self._j = like.new_empty(n, readouts, self.layer.columns)

    def add(self, readout, grads):
        rows = [call.rows(role, grads[key]) for key, call, role in self._calls]
        self._j[:, readout] = rows[0]
        for more in rows[1:]:
            self._j[:, readout] += more

    def end(self):
        j, self._j, self._calls = self._j, None, []
        return Rows(j), j.sum((1, 2))


class TiedSummand(Summand):
    """Uses of several kinds, or of parts that overlap: each one's rows, added up where its elements are."""

    def __init__(self, groups: list[tuple[Summand, Operand]], name: str, columns: int):
        super().__init__([key for summand, _ in groups for key in summand.keys])
        self._groups = groups
        self.layer = Layer(name=name, kind="rows", columns=columns, parameters=(groups[0][1].name,))

    def begin(self, calls, n, readouts, like):
        self._j = like.new_zeros(n, readouts, self.layer.columns)
        self._first = [calls[summand.keys[0]] for summand, _ in self._groups]
        for summand, _ in self._groups:
            summand.begin(calls, n, readouts, like)

    def add(self, readout, grads):
        for summand, _ in self._groups:
            summand.add(readout, grads)

    def end(self):
        for (summand, operand), call in zip(self._groups, self._first, strict=True):
            factor, _ = summand.end()
            if isinstance(factor, Product):
                rows = call.arranged(ntk_rows(factor.x, factor.g, summand.layer.taps))
            elif isinstance(factor, Tokens):
                table = factor.g.new_zeros(*factor.g.shape[:2], *operand.tensor.shape)
                for i, ids in enumerate(factor.ids):
                    table[i].index_add_(1, ids, factor.g[i])
                rows = table.flatten(2)
            else:
                rows = factor.j
            if operand.index is None:
                self._j += rows
            else:
                self._j[:, :, operand.index.flatten()] += rows
        j, self._j, self._first = self._j, None, []
        return Rows(j), j.sum((1, 2))


def _role(call: Call, key: str) -> str:
    return next(role for role, own in call.keys.items() if own == key)


def _source(call: Call) -> Tensor:
    assert call.source is not None  # prepared
    return call.source


def _parameter(call: Call, key: str) -> str:
    return call.operands[_role(call, key)].name


_SUMMANDS = {"product": ProductSummand, "tokens": TokensSummand, "rows": RowsSummand}


def make_summands(claims: Claims) -> list[Summand]:
    """In the order of the first use."""
    uses: dict[str, list[str]] = {}
    for key, name in claims.names.items():
        uses.setdefault(name, []).append(key)
    return [s for name, keys in uses.items() for s in _of_parameter(name, keys, claims.calls)]


def _of_parameter(name: str, keys: list[str], calls: dict[str, Call]) -> list[Summand]:
    """Uses of the same elements go together; parts that do not overlap are layers of their own."""
    alike: list[tuple[Operand, str, list[str]]] = []
    for key in keys:
        call = calls[key]
        role = _role(call, key)
        operand, form = call.operands[role], _form(call, role)
        for known, other, members in alike:
            if other == form and _same(known, operand):
                members.append(key)
                break
        else:
            alike.append((operand, form, [key]))
    single = len(alike) == 1
    summands = [
        (_SUMMANDS[form.split()[0]](members, calls, name if single else f"{name}[{i}]"), operand)
        for i, (operand, form, members) in enumerate(alike)
    ]
    if single or _disjoint([operand for operand, _, _ in alike]):
        return [summand for summand, _ in summands]
    total = 1 + max(int(_index(operand).max()) for operand, _, _ in alike)
    return [TiedSummand(summands, name, total)]


def _form(call: Call, role: str) -> str:
    """Uses of one form can be put side by side."""
    kind = call.kind(role)
    if kind != "product":
        return kind
    source, taps = _source(call), call.taps()
    window = 1 if taps is None else taps.shape[1]
    return f"product {type(call).__name__} {source.shape[1]} {source.shape[3]} {window}"


def _index(operand: Operand) -> Tensor:
    if operand.index is None:
        return torch.arange(operand.tensor.numel(), device=operand.tensor.device)
    return operand.index.flatten()


def _same(a: Operand, b: Operand) -> bool:
    if a.tensor.shape != b.tensor.shape:
        return False
    return (a.index is None and b.index is None) or torch.equal(_index(a), _index(b))


def _disjoint(operands: list[Operand]) -> bool:
    every = torch.cat([_index(operand) for operand in operands])
    return len(every.unique()) == len(every)
