"""Schema, fake and device implementations of the apgd family. Needs torch alone; implementations load on first use."""

from __future__ import annotations

import functools
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor
from torch.library import define, impl, register_fake

from advfast import _backend

define(
    "advfast::apgd_step_",
    "(Tensor x, Tensor(a!) x_prev, Tensor x0, Tensor gradient, Tensor step, float momentum, float eps, str norm, "
    "Tensor? improved, Tensor(b!)? best, Tensor(c!)? best_gradient, str impl) -> ()",
)
define(
    "advfast::apgd_l1_step",
    "(Tensor x, Tensor x0, Tensor gradient, Tensor step, Tensor rank, float eps, str impl) -> Tensor",
)
define("advfast::l1_box_correction", "(Tensor delta, Tensor x0, float eps, str impl) -> Tensor")

_MODULES = {"reference": "reference", "cpp": "native", "triton": "triton"}


@functools.cache
def _module(name: str) -> ModuleType:
    return import_module(f"advfast.kernels.apgd.{_MODULES[name]}")


def _implementation(op, impl, x) -> ModuleType:
    return _module(_backend.resolve_impl(op, impl, x.device, float32=x.dtype == torch.float32))


def _reject_overlap(written: dict, read: dict) -> None:
    """What is written is apart from every other tensor (checked here, as traced code has no addresses)."""
    spans = [
        (name, t.data_ptr(), t.data_ptr() + t.numel() * t.element_size())
        for name, t in (written | read).items()
        if t is not None
    ]
    for i, (name, begin, end) in enumerate(spans):
        for other, other_begin, other_end in spans[i + 1 :]:
            if name in written and begin < other_end and other_begin < end:
                raise ValueError(f"apgd_step_: {name} and {other} must not share memory")


def _step(x, x_prev, x0, gradient, step, momentum, eps, norm, improved, best, best_gradient, impl):
    written = {"x_prev": x_prev, "best": best, "best_gradient": best_gradient}
    _reject_overlap(written, {"x": x, "x0": x0, "gradient": gradient, "step": step})
    _implementation("apgd_step_", impl, x).apgd_step_(
        x, x_prev, x0, gradient, step, momentum, eps, norm, improved, best, best_gradient
    )
    for t in written.values():
        if t is not None and not t.is_inference():
            torch.autograd.graph.increment_version(t)


def _l1_step(x, x0, gradient, step, rank, eps, impl):
    module = _implementation("apgd_l1_step", impl, x)
    return module.apgd_l1_step(x, x0, gradient, step, rank, eps)


def _l1_correction(delta, x0, eps, impl):
    return _implementation("l1_box_correction", impl, delta).l1_box_correction(delta, x0, eps)


for _device in ("CPU", "CUDA"):
    impl("advfast::apgd_step_", _device)(_step)
    impl("advfast::apgd_l1_step", _device)(_l1_step)
    impl("advfast::l1_box_correction", _device)(_l1_correction)


@register_fake("advfast::apgd_step_")
def _(*args) -> None:
    return None


@register_fake("advfast::apgd_l1_step")
def _(x, *args) -> Tensor:
    return torch.empty_like(x)


@register_fake("advfast::l1_box_correction")
def _(x, *args) -> Tensor:
    return torch.empty_like(x)


apgd_step_op = torch.ops.advfast.apgd_step_.default
apgd_l1_step_op = torch.ops.advfast.apgd_l1_step.default
l1_box_correction_op = torch.ops.advfast.l1_box_correction.default
