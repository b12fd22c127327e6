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
    _filled: Tensor

    def __init__(self, keys: list[str]):
        self.keys = keys

    def begin(
        self,
        calls: Mapping[str, Call],
        n: int,
        readouts: int,
        like: Tensor,
        out: Tensor | None = None,
    ) -> None:
        """out: where g of a product or of tokens, or j of rows, is to be written."""
        raise NotImplementedError

    def add(self, readout: int, key: str, g: Tensor) -> None:
        """g: with respect to the output of the call of this use; each use once a readout."""
        raise NotImplementedError

    def end(self) -> tuple[Factor, Tensor]:
        """The factor, and a number for each sample that is finite where the gradients are, [n]."""
        raise NotImplementedError

    def _taken(self) -> Tensor:
        """What was filled, held here no longer."""
        filled = self._filled
        del self._filled
        return filled


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
        self.starts = _starts(self.counts)
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

    def begin(self, calls, n, readouts, like, out=None):
        layer, self._calls = self.layer, [calls[key] for key in self.keys]
        shape = (n, readouts, layer.groups, layer.positions, layer.channels)
        self._filled = _room(out, shape, like, layer.name)

    def add(self, readout, key, g):
        place = self.keys.index(key)
        start, count = self.starts[place], self.counts[place]
        self._filled[:, readout, :, start : start + count] = self._calls[place].positions(g)

    def end(self):
        sources = [_source(call) for call in self._calls]
        x = sources[0] if len(sources) == 1 else torch.cat(sources, 2)
        g, self._calls = self._taken(), []
        return Product(x, g), g.sum((1, 2, 3, 4))


class TokensSummand(Summand):
    """An embedding's uses, side by side."""

    def __init__(self, keys: list[str], calls: Mapping[str, Call], name: str):
        super().__init__(keys)
        self.counts = [_source(calls[key]).shape[1] for key in keys]
        self.starts = _starts(self.counts)
        table = calls[keys[0]].operands["weight"].tensor
        self.layer = Layer(
            name=name,
            kind="tokens",
            columns=table.numel(),
            parameters=(_parameter(calls[keys[0]], keys[0]),),
            positions=sum(self.counts),
            channels=table.shape[1],
        )

    def begin(self, calls, n, readouts, like, out=None):
        self._calls = [calls[key] for key in self.keys]
        shape = (n, readouts, self.layer.positions, self.layer.channels)
        self._filled = _room(out, shape, like, self.layer.name)

    def add(self, readout, key, g):
        place = self.keys.index(key)
        start, count = self.starts[place], self.counts[place]
        self._filled[:, readout, start : start + count] = self._calls[place].positions(g)[:, 0]

    def end(self):
        ids = torch.cat([_source(call) for call in self._calls], 1)
        g, self._calls = self._taken(), []
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

    def begin(self, calls, n, readouts, like, out=None):
        self._calls = {key: (calls[key], _role(calls[key], key)) for key in self.keys}
        self._filled = _room(out, (n, readouts, self.layer.columns), like, self.layer.name)
        if len(self.keys) > 1:
            self._filled.zero_()

    def add(self, readout, key, g):
        call, role = self._calls[key]
        rows = call.rows(role, g)
        if len(self.keys) == 1:
            self._filled[:, readout] = rows
        else:
            self._filled[:, readout] += rows

    def end(self):
        j, self._calls = self._taken(), {}
        return Rows(j), j.sum((1, 2))


class TiedSummand(Summand):
    """Uses of several kinds, or of parts that overlap: each one's rows, added up where its elements are."""

    def __init__(self, groups: list[tuple[Summand, Operand]], name: str, columns: int):
        super().__init__([key for summand, _ in groups for key in summand.keys])
        self._groups = groups
        self.layer = Layer(name=name, kind="rows", columns=columns, parameters=(groups[0][1].name,))

    def begin(self, calls, n, readouts, like, out=None):
        self._filled = _room(out, (n, readouts, self.layer.columns), like, self.layer.name).zero_()
        self._first = [calls[summand.keys[0]] for summand, _ in self._groups]
        for summand, _ in self._groups:
            summand.begin(calls, n, readouts, like)

    def add(self, readout, key, g):
        for summand, _ in self._groups:
            if key in summand.keys:
                summand.add(readout, key, g)

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
                self._filled += rows
            else:
                self._filled[:, :, operand.index.flatten()] += rows
        j, self._first = self._taken(), []
        return Rows(j), j.sum((1, 2))


def _room(out: Tensor | None, shape: tuple[int, ...], like: Tensor, name: str) -> Tensor:
    if out is None:
        return like.new_empty(shape)
    if out.shape != shape or out.dtype != like.dtype or out.device != like.device:
        raise ValueError(
            f"out for {name} must be {like.dtype} {shape} on {like.device}, got {out.dtype} {tuple(out.shape)} on "
            f"{out.device}"
        )
    return out


def _starts(counts: list[int]) -> list[int]:
    return [sum(counts[:place]) for place in range(len(counts))]


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
