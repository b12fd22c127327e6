"""Schemas, fakes and device implementations of the pgd family. Needs torch alone; implementations load on first use."""

from __future__ import annotations

import functools
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor
from torch.library import define, impl, register_fake

from advfast import _backend

_STEP = (
    "(Tensor(a!) x, Tensor grad, Tensor x0, float alpha, float eps, float lo, float hi, str norm, "
    "str l2_order, Tensor? alpha_t, Tensor? eps_t, Tensor? lo_t, Tensor? hi_t, Tensor? mask, "
    "Tensor(b!)? out, Tensor? scale, Tensor? shift, Tensor(c!)? nonfinite, str impl) -> ()"
)
_PROJECT = (
    "(Tensor(a!) x, Tensor x0, float eps, float lo, float hi, str norm, Tensor? eps_t, Tensor? lo_t, "
    "Tensor? hi_t, Tensor(b!)? out, Tensor? scale, Tensor? shift, str impl) -> ()"
)
_START = (
    "(Tensor x0, float eps, float lo, float hi, str norm, Tensor seed, int offset, Tensor? sample_ids, "
    "Tensor? eps_t, Tensor? lo_t, Tensor? hi_t, str impl) -> Tensor"
)
define("advfast::pgd_step_", _STEP)
define("advfast::project_", _PROJECT)
define("advfast::random_start", _START)

_MODULES = {"reference": "reference", "cpp": "native", "cuda": "native", "triton": "triton"}


@functools.cache
def _module(name: str) -> ModuleType:
    return import_module(f"advfast.kernels.pgd.{_MODULES[name]}")


def _implementation(op: str, impl: str, x: Tensor) -> ModuleType:
    return _module(_backend.resolve_impl(op, impl, x.device, float32=x.dtype == torch.float32))


def _reject_overlap(op: str, **tensors: Tensor | None) -> None:
    """x and out are written: apart from every other tensor (checked here, as traced code has no addresses)."""
    spans = [
        (name, t.data_ptr(), t.data_ptr() + t.numel() * t.element_size())
        for name, t in tensors.items()
        if t is not None
    ]
    for i, (name, begin, end) in enumerate(spans):
        for other, other_begin, other_end in spans[i + 1 :]:
            apart = begin >= other_end or other_begin >= end
            if not apart and (name in ("x", "out") or other in ("x", "out")):
                raise ValueError(f"{op}: {name} and {other} must not share memory")


def _written(*tensors: Tensor | None) -> None:
    """Autograd must notice the change: a saved tensor that was overwritten is an error, not a wrong gradient."""
    for t in tensors:
        if t is not None and not t.is_inference():
            torch.autograd.graph.increment_version(t)


def _step(
    x, grad, x0, alpha, eps, lo, hi, norm, l2_order, alpha_t, eps_t, lo_t, hi_t,
    mask, out, scale, shift, nonfinite, impl,
):  # fmt: skip
    _reject_overlap("pgd_step_", x=x, out=out, grad=grad, x0=x0)
    module = _implementation("pgd_step_", impl, x)
    module.pgd_step_(
        x, grad, x0, norm=norm, l2_order=l2_order, mask=mask, out=out, scale=scale, shift=shift,
        nonfinite=nonfinite,
        alpha=alpha if alpha_t is None else alpha_t, eps=eps if eps_t is None else eps_t,
        lo=lo if lo_t is None else lo_t, hi=hi if hi_t is None else hi_t,
    )  # fmt: skip
    _written(x, out, nonfinite)


def _project(x, x0, eps, lo, hi, norm, eps_t, lo_t, hi_t, out, scale, shift, impl):
    _reject_overlap("project_", x=x, out=out, x0=x0)
    module = _implementation("project_", impl, x)
    module.pgd_step_(
        x, None, x0, norm=norm, l2_order="ball-box", mask=None, out=out, scale=scale, shift=shift,
        nonfinite=None, alpha=0.0, eps=eps if eps_t is None else eps_t,
        lo=lo if lo_t is None else lo_t, hi=hi if hi_t is None else hi_t,
    )  # fmt: skip
    _written(x, out)


def _start(x0, eps, lo, hi, norm, seed, offset, sample_ids, eps_t, lo_t, hi_t, impl):
    module = _implementation("random_start", impl, x0)
    return module.random_start(
        x0, norm=norm, seed=seed, offset=offset, sample_ids=sample_ids,
        eps=eps if eps_t is None else eps_t,
        lo=lo if lo_t is None else lo_t, hi=hi if hi_t is None else hi_t,
    )  # fmt: skip


for _device in ("CPU", "CUDA"):
    impl("advfast::pgd_step_", _device)(_step)
    impl("advfast::project_", _device)(_project)
    impl("advfast::random_start", _device)(_start)


@register_fake("advfast::pgd_step_")
def _(*args) -> None:
    return None


@register_fake("advfast::project_")
def _(*args) -> None:
    return None


@register_fake("advfast::random_start")
def _(x0, *args) -> Tensor:
    return torch.empty_like(x0)


pgd_step_op = torch.ops.advfast.pgd_step_.default
project_op = torch.ops.advfast.project_.default
random_start_op = torch.ops.advfast.random_start.default
