"""What is known of the functions that take parameters: linear maps, embeddings, sums and products, norms.

Convolutions are in rules_conv.py. Every rule gives the exact gradient of each sample from the gradient with respect to
the call's output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from .calls import Call, Operand, Split, named


def sum_to(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[n, elements of shape] of t [n, ...]: the gradient of an operand of this shape that was broadcast or repeated to
    that of t[0]."""
    shape = (1,) * (t.dim() - 1 - len(shape)) + shape
    parts, summed, kept = [len(t)], [], True
    for have, want in zip(t.shape[1:], shape, strict=True):
        for size, keep in ((have // want, False), (want, True)):
            if size == 1:
                continue
            if keep == kept and len(parts) > 1:  # neighbours with one fate are one dimension
                parts[-1] *= size
                continue
            if not keep:
                summed.append(len(parts))
            parts.append(size)
            kept = keep
    t = t.reshape(parts)
    return (t.sum(summed) if summed else t).reshape(len(t), math.prod(shape))


class Broadcast(Call):
    """Rows by summation: a parameter that acts on every entry it is broadcast to."""

    def placed(self, role: str) -> tuple[int, ...]:
        """The parameter's shape, set against the last dimensions of the output's."""
        return tuple(self.operands[role].tensor.shape)

    def factor(self, role: str) -> Tensor | None:
        """What the gradient is multiplied with before it is summed, [n, ...] as `Split.front` makes it."""
        return None

    def rows(self, role: str, g: Tensor) -> Tensor:
        g, factor = self.split.front(g), self.factor(role)
        return sum_to(g if factor is None else g * factor, self.placed(role))


class Linear(Broadcast):
    NAMES: tuple[str, ...] = ("input", "weight", "bias")
    ROLES: tuple[str, ...] = ("weight", "bias")

    def known(self) -> bool:
        return self.argument("input").dim() >= 2 and self.argument("weight").dim() == 2

    def kind(self, role: str) -> str:
        return "product" if role == "weight" else "rows"

    def prepare(self, split: Split) -> None:
        super().prepare(split)
        if "weight" in self.operands:
            x = split.front(self.argument("input").detach())
            self.source = x.reshape(len(x), 1, -1, x.shape[-1]).contiguous()

    def positions(self, g: Tensor) -> Tensor:
        g = self.split.front(g)
        return g.reshape(len(g), 1, -1, g.shape[-1])


class MatMul(Linear):
    """x @ w, with w [in, out] a parameter."""

    NAMES: tuple[str, ...] = ("input", "weight")
    ROLES: tuple[str, ...] = ("weight",)

    def arranged(self, rows: Tensor) -> Tensor:
        return rows.flatten(-4, -3).squeeze(-2).mT.flatten(-2)


class AddMM(MatMul):
    """bias + x @ w."""

    NAMES = ("bias", "input", "weight")
    ROLES = ("bias", "weight")

    def known(self) -> bool:
        return not self.kwargs and super().known()

    def inputs(self) -> Iterator[Tensor]:
        yield self.argument("input")


class Embedding(Broadcast):
    NAMES = (
        "input",
        "weight",
        "padding_idx",
        "max_norm",
        "norm_type",
        "scale_grad_by_freq",
        "sparse",
    )
    ROLES = ("weight",)

    def known(self) -> bool:
        return self.argument("max_norm") is None and not self.argument("scale_grad_by_freq", False)

    def kind(self, role: str) -> str:
        return "tokens"

    def prepare(self, split: Split) -> None:
        super().prepare(split)
        self.source = split.front(self.argument("input")).flatten(1).to(torch.int64).contiguous()
        padding = self.argument("padding_idx")
        self.padding = None
        if padding is not None:
            vocabulary = len(self.operands["weight"].tensor)
            self.padding = (self.source == padding % vocabulary)[:, None, :, None]

    def positions(self, g: Tensor) -> Tensor:
        g = self.split.front(g)
        g = g.reshape(len(g), 1, -1, g.shape[-1])
        return g if self.padding is None else g.masked_fill(self.padding, 0)


class Norm(Broadcast):
    """(x - mean) / deviation * weight + bias, the deviation and mean fixed or of each sample.

    What multiplies the weight is computed by the same function without weight and bias, never from its output, so that
    a weight of zero is exact.
    """

    ROLES: tuple[str, ...] = ("weight", "bias")

    def inputs(self) -> Iterator[Tensor]:
        if "weight" in self.operands:
            yield self.argument("input")

    def prepare(self, split: Split) -> None:
        super().prepare(split)
        if "weight" not in self.operands:
            return
        kept = {name: self.argument(name) for name in self.NAMES if self.given(name)}
        kept |= {"weight": None} | ({"bias": None} if "bias" in kept else {})
        kept["input"] = kept["input"].detach()
        with torch.no_grad():
            self.source = split.front(self.func(**kept))

    def given(self, name: str) -> bool:
        return name in self.kwargs or self.NAMES.index(name) < len(self.args)

    def factor(self, role: str) -> Tensor | None:
        return self.source if role == "weight" else None


class ChannelNorm(Norm):
    """The parameters go along dimension 1."""

    def placed(self, role: str) -> tuple[int, ...]:
        return (*self.operands[role].tensor.shape, *(1,) * (len(self.shape) - 2))


class BatchNorm(ChannelNorm):
    NAMES = (
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "training",
        "momentum",
        "eps",
    )


class InstanceNorm(ChannelNorm):
    NAMES = (
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "use_input_stats",
        "momentum",
        "eps",
    )


class GroupNorm(ChannelNorm):
    NAMES = ("input", "num_groups", "weight", "bias", "eps")


class LayerNorm(Norm):
    NAMES = ("input", "normalized_shape", "weight", "bias", "eps")


class RMSNorm(Norm):
    NAMES = ("input", "normalized_shape", "weight", "eps")
    ROLES = ("weight",)


_ADDED = (
    dict.fromkeys(named("add add_ __add__ __radd__ __iadd__"), (1, 1))
    | dict.fromkeys(named("sub sub_ subtract __sub__ __isub__"), (1, -1))
    | dict.fromkeys(named("__rsub__ rsub"), (-1, 1))
)  # signs of the two
_MULTIPLIED = dict.fromkeys(
    named("mul mul_ multiply __mul__ __rmul__ __imul__"), (1, 1)
) | dict.fromkeys(
    named("div div_ divide true_divide __truediv__ __itruediv__"), (1, -1)
)  # exponents
_IN_PLACE = ("add_", "sub_", "mul_", "div_", "__iadd__", "__isub__", "__imul__", "__itruediv__")


class Elementwise(Broadcast):
    """A parameter added to, or multiplied with, something that depends on the sample."""

    NAMES = ("first", "second")
    ROLES = ("first", "second")

    def find(self, operands: dict[int, Operand]) -> bool:
        return len(self.args) == 2 and super().find(operands)

    def known(self) -> bool:
        a, b = self.args
        if self.kwargs or len(self.operands) != 1 or not isinstance(a, Tensor):
            return False
        if not isinstance(b, Tensor) or a.dtype != b.dtype:
            return False
        self.role = next(iter(self.operands))
        self.place = self.NAMES.index(self.role)
        return True

    def inputs(self) -> Iterator[Tensor]:
        if self.func in _MULTIPLIED:
            yield self.args[1 - self.place]

    def run(self, detached: Iterable[str]) -> Tensor:
        other = self.args[1 - self.place]
        in_place = getattr(self.func, "__name__", "") in _IN_PLACE
        before = other.detach().clone() if in_place and self.func in _MULTIPLIED else None
        out = super().run(detached)
        if before is not None:
            self.args = (before, self.args[1])
        return out

    def prepare(self, split: Split) -> None:
        super().prepare(split)
        self.sign = 1
        if self.func in _ADDED:
            self.sign = _ADDED[self.func][self.place]
            return
        own, others = (
            _MULTIPLIED[self.func][self.place],
            _MULTIPLIED[self.func][1 - self.place],
        )
        other = self.args[1 - self.place].detach()
        scale = other if others == 1 else other.reciprocal()
        if own == -1:
            scale = -scale * self.operands[self.role].tensor.detach().square().reciprocal()
        self.source = split.front(scale.expand(self.shape))

    def factor(self, role: str) -> Tensor | None:
        return self.source

    def rows(self, role: str, g: Tensor) -> Tensor:
        rows = super().rows(role, g)
        return -rows if self.sign < 0 else rows


class PReLU(Broadcast):
    NAMES = ("input", "weight")
    ROLES = ("weight",)

    def placed(self, role: str) -> tuple[int, ...]:
        return (*self.operands[role].tensor.shape, *(1,) * max(0, len(self.shape) - 2))

    def prepare(self, split: Split) -> None:
        super().prepare(split)
        self.source = split.front(self.argument("input").detach().clamp(max=0))

    def factor(self, role: str) -> Tensor | None:
        return self.source


class Expand(Broadcast):
    """A parameter repeated for every sample, as a class token is."""

    NAMES = ("operand",)
    ROLES = ("operand",)

    def fits(self, role: str, split: Split) -> bool:
        shape = self.placed(role)
        shape = (1,) * (len(self.shape) - len(shape)) + shape
        return shape[split.dim] == 1

    def inputs(self) -> Iterator[Tensor]:
        yield from ()


RULES: dict[Callable, type[Call]] = {
    F.linear: Linear,
    F.embedding: Embedding,
    F.batch_norm: BatchNorm,
    F.instance_norm: InstanceNorm,
    F.group_norm: GroupNorm,
    F.layer_norm: LayerNorm,
    F.rms_norm: RMSNorm,
    **dict.fromkeys(named("addmm"), AddMM),
    **dict.fromkeys(named("prelu"), PReLU),
    **dict.fromkeys(named("matmul __matmul__"), MatMul),
    **dict.fromkeys((*_ADDED, *_MULTIPLIED), Elementwise),
    **dict.fromkeys(named("expand expand_as broadcast_to repeat"), Expand),
}
