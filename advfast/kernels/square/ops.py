"""Schemas, fakes and device implementations of the square family. Needs torch alone; implementations load on first
use."""

from __future__ import annotations

import functools
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor
from torch.library import define, impl, register_fake

from advfast import _backend

define(
    "advfast::square_window",
    "(Tensor best, Tensor x0, Tensor places, Tensor signs, float eps, int height, int width, str impl) -> Tensor",
)
define(
    "advfast::square_accept_",
    "(Tensor(a!) best, Tensor candidate, Tensor improved, Tensor places, int height, int width, str impl) -> ()",
)

_MODULES = {"reference": "reference", "cpp": "native", "triton": "triton"}


@functools.cache
def _module(name: str) -> ModuleType:
    return import_module(f"advfast.kernels.square.{_MODULES[name]}")


def _implementation(op: str, impl: str, x: Tensor) -> ModuleType:
    return _module(_backend.resolve_impl(op, impl, x.device, float32=x.dtype == torch.float32))


def _window(best, x0, places, signs, eps, height, width, impl):
    module = _implementation("square_window", impl, best)
    return module.square_window(best, x0, places, signs, eps, height, width)


def _accept_(best, candidate, improved, places, height, width, impl):
    distance = abs(best.data_ptr() - candidate.data_ptr())
    if best.numel() and distance < best.numel() * best.element_size():
        raise ValueError("square_accept_: best and candidate must not share memory")
    module = _implementation("square_accept_", impl, best)
    module.square_accept_(best, candidate, improved, places, height, width)
    if not best.is_inference():
        # A saved tensor that was overwritten is an error, not a wrong gradient.
        torch.autograd.graph.increment_version(best)


for _device in ("CPU", "CUDA"):
    impl("advfast::square_window", _device)(_window)
    impl("advfast::square_accept_", _device)(_accept_)


@register_fake("advfast::square_window")
def _(best: Tensor, *args) -> Tensor:
    return torch.empty_like(best)


@register_fake("advfast::square_accept_")
def _(*args) -> None:
    return None


square_window_op = torch.ops.advfast.square_window.default
square_accept_op = torch.ops.advfast.square_accept_.default
