"""The floor of an attack: the convolutions and linear layers of its network as torch runs them, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Product:
    """One call of a convolution or linear layer during a forward pass."""

    module: nn.Module
    inputs: torch.Size
    outputs: torch.Size

    @property
    def flops(self) -> int:
        """Of the forward pass and of the backward pass to the input, which are alike."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return 4 * self.outputs.numel() * weight[0].numel()


def products(model: nn.Module, images: Tensor) -> list[Product]:
    """All of one forward pass, in their order. Attention's own matrix products are not among them."""
    found: list[Product] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(Product(module, inputs[0].shape, output.shape))

    handles = [
        module.register_forward_hook(note)
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def flops(found: list[Product], steps: int) -> int:
    return steps * sum(product.flops for product in found)


def products_alone(
    found: list[Product], layout: torch.memory_format, dtype: torch.dtype, device: str, steps: int
) -> Callable[[], None]:
    """Runs each of them forward and back to its input, `steps` times, on tensors of its own."""
    calls = [_alone(product, layout, dtype, device) for product in found]

    def run() -> None:
        with torch.no_grad():
            for _ in range(steps):
                for forward, _ in calls:
                    forward()
                for _, backward in reversed(calls):
                    backward()

    return run


Pass = Callable[[], Tensor]


def _alone(
    product: Product, layout: torch.memory_format, dtype: torch.dtype, device: str
) -> tuple[Pass, Pass]:
    def made(shape: torch.Size) -> Tensor:
        tensor = torch.rand(shape, dtype=dtype, device=device)
        return tensor.contiguous(memory_format=layout) if tensor.dim() == 4 else tensor

    module = product.module
    x, gradient = made(product.inputs), made(product.outputs)
    assert isinstance(module, nn.Conv2d | nn.Linear)
    weight = module.weight.detach().to(dtype)
    bias = None if module.bias is None else module.bias.detach().to(dtype)
    if isinstance(module, nn.Linear):
        return (lambda: nn.functional.linear(x, weight, bias)), (lambda: gradient @ weight)
    weight = weight.contiguous(memory_format=layout)
    assert isinstance(module.padding, tuple)
    stride, padding, dilation = (list(v) for v in (module.stride, module.padding, module.dilation))
    groups = module.groups

    def forward() -> Tensor:
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)

    def backward() -> Tensor:
        found, _, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, stride, padding, dilation, False, [0, 0], groups,
            [True, False, False],
        )  # fmt: skip
        return found

    return forward, backward


def matmul_rate(dtype: torch.dtype, device: str, side: int | None = None) -> float:
    """FLOP/s of a square torch.matmul, the best of a few: the measured rate of the machine."""
    side = side or (8192 if device == "cuda" else 1024)
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best
