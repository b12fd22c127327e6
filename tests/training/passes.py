"""Counts the passes of a training step through a network, by the matrix products of one of its layers."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from advfast.training.modifiers import RunInfo, StepInfo
from advfast.training.step import TrainStep

_ATEN = torch.ops.aten
_PRODUCTS = {_ATEN.mm, _ATEN.addmm, _ATEN.bmm, _ATEN.matmul, _ATEN.linear}
INNER, OUTER = 19, 23
"""Of the layer whose products are counted: no other product of a step has these sizes."""


class Network(nn.Module):
    """Looks at its data, so that the engine runs it as it is."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(pixels, INNER)
        self.counted = nn.Linear(INNER, OUTER)
        self.last = nn.Linear(OUTER, classes)

    def forward(self, x):
        if not x.sum().isfinite():
            raise ValueError("an image is not finite")
        x = torch.tanh(self.first(x.flatten(1)))
        return self.last(torch.tanh(self.counted(x)))


class _Counter(TorchDispatchMode):
    def __init__(self, size):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in _PRODUCTS:
            left, right = [a for a in args if isinstance(a, torch.Tensor) and a.dim() == 2]
            self.count += math.prod(left.shape) * right.shape[1] == self.size
        return func(*args, **(kwargs or {}))


def counted(make, batch, classes=3, modifiers=()):
    """Pass-units of the second step of a method: a product forward, to the input or to the weights counts 1 each.

    make: model -> method.
    """
    model = Network(batch.images[0].numel(), classes)
    method = make(model)
    for modifier in modifiers:
        modifier.begin(model, RunInfo(classes, len(batch.images), 1, 1, 0))
        modifier.before_step(StepInfo(0, 1, 1, 0.1, method, 0))
    step = TrainStep(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        modifiers,
        torch.amp.GradScaler("cpu", enabled=False),
    )
    step(method, batch)
    with _Counter(len(batch.images) * INNER * OUTER) as counter:
        step(method, batch)
    return counter.count
