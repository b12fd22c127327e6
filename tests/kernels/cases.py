"""Inputs for the pgd family: one small description of a call, and the tensors made from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FORMATS = {
    "nchw": torch.contiguous_format,
    "nhwc": torch.channels_last,
    "ndhwc": torch.channels_last_3d,
}
SPECIALS = (float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e-45, -1e-40, 1e38, -1e-30)


@dataclass(frozen=True)
class Case:
    shape: tuple[int, ...] = (3, 3, 5, 7)
    layout: str = "nchw"
    dtype: torch.dtype = torch.float32
    grad_dtype: torch.dtype = torch.float32
    norm: str = "linf"
    eps: float = 8 / 255
    alpha: float = 2 / 255
    lo: float | None = 0.0
    hi: float | None = 1.0
    specials: int = 0  # how many entries of the gradient are special values
    spread: float = 0.05  # how far x starts from x0
    mask: bool = False
    operands: str = "number"  # number | sample | channel | full: how alpha and eps vary
    out_dtype: torch.dtype | None = None
    out_layout: str = "nchw"
    affine: bool = False
    l2_order: str = "ball-box"
    seed: int = 0


def laid_out(t: Tensor, layout: str) -> Tensor:
    return t.contiguous(memory_format=FORMATS[layout])


def _vary(value: float, case: Case, name: str, generator: torch.Generator, device: str):
    """The operand as a number or a tensor of the wanted shape."""
    n, ndim = case.shape, len(case.shape)
    per_sample_only = case.norm != "linf" and name == "eps"
    kind = "sample" if per_sample_only and case.operands != "number" else case.operands
    if kind == "number":
        return value
    shape = {
        "sample": (n[0],) + (1,) * (ndim - 1),
        "channel": (1,) + n[1:2] + (1,) * (ndim - 2),
        "full": n,
    }[kind]
    factor = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
    t = (factor * value).to(case.dtype)
    if kind == "full":
        t = laid_out(t, case.layout)
    return t.to(device)


def make(case: Case, device: str = "cpu") -> dict:
    """Arguments of pgd_step_ but for impl: fresh tensors each time."""
    generator = torch.Generator().manual_seed(case.seed)

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    lo = -3.0 if case.lo is None else case.lo
    hi = 3.0 if case.hi is None else case.hi
    x0 = lo + (hi - lo) * uniform(*case.shape)
    edge = uniform(*case.shape)
    x0 = torch.where(edge < 0.1, lo, torch.where(edge > 0.9, hi, x0)).to(case.dtype)
    x0 = x0.clamp(lo, hi)
    x = (x0.double() + case.spread * (2 * uniform(*case.shape) - 1)).to(case.dtype)
    grad = torch.randn(case.shape, generator=generator, dtype=torch.float64).to(case.grad_dtype)
    flat = grad.view(-1)
    for i in range(case.specials if flat.numel() else 0):
        at = torch.randint(flat.numel(), (), generator=generator)
        flat[at] = SPECIALS[(case.seed + i) % len(SPECIALS)]
    mask = None
    if case.mask:
        mask = uniform(*case.shape) < 0.7
        if case.seed % 3 == 0:
            mask = mask[:, :1, ...] if len(case.shape) > 1 else mask
        mask = (
            mask.to(device) if mask.shape != case.shape else laid_out(mask, case.layout).to(device)
        )
    arguments = {
        "x": laid_out(x, case.layout).to(device),
        "grad": laid_out(grad, case.layout).to(device),
        "x0": laid_out(x0, case.layout).to(device),
        "alpha": _vary(case.alpha, case, "alpha", generator, device),
        "eps": _vary(case.eps, case, "eps", generator, device),
        "norm": case.norm,
        "bounds": None if case.lo is None and case.hi is None else (case.lo, case.hi),
        "mask": mask,
        "nonfinite": torch.zeros(1, dtype=torch.int64, device=device),
        "l2_order": case.l2_order,
    }
    if case.out_dtype is not None:
        out = laid_out(torch.full(case.shape, 77.0, dtype=case.out_dtype), case.out_layout)
        arguments["out"] = out.to(device)
        if case.affine:
            channels = case.shape[1] if len(case.shape) > 1 else 1
            arguments["scale"] = (uniform(channels) * 3 + 0.5).to(case.dtype).to(device)
            arguments["shift"] = uniform(channels).to(case.dtype).to(device)
            if len(case.shape) == 1:
                arguments["scale"], arguments["shift"] = 2.0, 0.5
    return arguments


def norm_of(delta: Tensor, norm: str) -> Tensor:
    """[B] norms in float64."""
    flat = delta.double().reshape(delta.shape[0], delta.shape[1:].numel())
    if norm == "linf":
        return flat.abs().amax(1) if flat.shape[1] else flat.new_zeros(flat.shape[0])
    if norm == "l1":
        return flat.abs().sum(1)
    if not flat.shape[1]:
        return flat.new_zeros(flat.shape[0])
    largest = flat.abs().amax(1, keepdim=True).clamp(min=1e-300)
    return ((flat / largest).square().sum(1).sqrt()) * largest[:, 0]
