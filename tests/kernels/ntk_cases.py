"""Layers for the tests of the ntk family, their operands and their kernels by autograd."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def taps(size, kernel, stride=1, padding=0, dilation=1) -> Tensor:
    """int32 [S, T]: the pixels that each output position of a convolution reads, -1 for padding."""
    rank = len(size)
    index, inside = torch.zeros((), dtype=torch.int64), torch.ones((), dtype=torch.bool)
    for d, (length, k) in enumerate(zip(size, kernel, strict=True)):
        positions = (length + 2 * padding - dilation * (k - 1) - 1) // stride + 1
        at = torch.arange(positions)[:, None] * stride - padding + torch.arange(k) * dilation
        shape = [1] * (2 * rank)
        shape[d], shape[rank + d] = positions, k
        at = at.view(shape)
        index = index * length + at
        inside = inside & (at >= 0) & (at < length)
    table = torch.where(inside, index, -1).flatten(rank).flatten(0, rank - 1)
    return table.to(torch.int32).contiguous()


@dataclass(frozen=True)
class Layer:
    size: tuple[int, ...] = (5, 6)  # of the left images
    size2: tuple[int, ...] = (4, 7)
    kernel: tuple[int, ...] | None = (3, 3)  # None: no taps, a linear layer on tokens
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    c: int = 5
    e: int = 3
    readouts: tuple[int, int] = (3, 2)
    n: tuple[int, int] = (2, 3)

    def taps(self, size) -> Tensor | None:
        if self.kernel is None:
            return None
        return taps(size, self.kernel, self.stride, self.padding, self.dilation)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [n, groups*e, *size], weight [groups*c, e, *kernel]."""
        if self.kernel is None:
            return torch.einsum("nes,ce->ncs", x, weight)
        function = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel) - 1]
        return function(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def rows(self, side: Side) -> Tensor:
        """[n, R, groups, c, T, e] by autograd: gradients of <output, g> with respect to the weight."""
        width = 1 if self.kernel is None else torch.Size(self.kernel).numel()
        weight = torch.zeros(
            self.groups * self.c, self.e, *(self.kernel or ()), dtype=torch.float64
        )
        images = side.x.double().transpose(2, 3).flatten(1, 2).unflatten(2, side.size)
        grads = side.g.double().transpose(3, 4).flatten(2, 3)  # [n, R, groups*c, S]

        def of_sample(image, grads):
            _, pull = torch.func.vjp(lambda w: self.convolve(image[None], w).flatten(2)[0], weight)
            return torch.func.vmap(lambda g: pull(g)[0])(grads)

        found = torch.stack([of_sample(*pair) for pair in zip(images, grads, strict=True)])
        found = found.view(*found.shape[:2], self.groups, self.c, self.e, width)
        return found.transpose(4, 5)


@dataclass
class Side:
    """The operands of n samples."""

    x: Tensor
    g: Tensor
    taps: Tensor | None
    size: tuple[int, ...]

    def to(self, device="cpu", dtype=torch.float32) -> Side:
        table = None if self.taps is None else self.taps.to(device)
        return Side(self.x.to(device, dtype), self.g.to(device, dtype), table, self.size)

    def abs(self) -> Side:
        return Side(self.x.abs(), self.g.abs(), self.taps, self.size)

    def sample(self, i: int) -> Side:
        return Side(self.x[i : i + 1].clone(), self.g[i : i + 1].clone(), self.taps, self.size)


LAYERS = {
    "conv": Layer(padding=1),
    "no-padding": Layer(),
    "stride": Layer((7, 5), (6, 6), stride=2, padding=1, c=3, e=5),
    "dilation": Layer((6, 6), (5, 7), dilation=2, padding=2),
    "kernel-4-stride-2": Layer((6, 8), (8, 4), (4, 4), stride=2, padding=1),
    "1x1-stride-2": Layer((5, 5), (4, 4), (1, 1), stride=2, e=17),
    "groups": Layer(padding=1, groups=2, c=2, e=2),
    "depthwise": Layer((4, 4), (4, 4), padding=1, groups=3, c=1, e=1),
    "1d": Layer((9,), (7,), (3,), padding=1),
    "3d": Layer((3, 2, 3), (2, 3, 2), (2, 2, 2), padding=1, c=2),
    "tokens": Layer((7,), (5,), None),
    "one-position": Layer((1,), (1,), None, c=4, e=9),
    "one-position-padded": Layer((2, 2), (2, 2), (3, 3), stride=3, padding=1),
    "one-channel": Layer((4, 5), (4, 5), padding=1, c=1, e=1, readouts=(1, 1)),
    "ten-readouts": Layer((3, 3), (3, 3), (2, 2), padding=1, c=4, readouts=(10, 10), n=(1, 2)),
}


def sides(layer: Layer, seed: int = 0) -> tuple[Side, Side]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for size, readouts, n in zip((layer.size, layer.size2), layer.readouts, layer.n, strict=True):
        table = layer.taps(size)
        pixels = torch.Size(size).numel()
        positions = pixels if table is None else len(table)
        x = torch.randn(n, layer.groups, pixels, layer.e, generator=generator)
        g = torch.randn(n, readouts, layer.groups, positions, layer.c, generator=generator)
        found.append(Side(x, g, table, size))
    return found[0], found[1]
