"""Schemas, fakes and device implementations of the activation family. Needs torch alone; implementations load on first
use."""

from __future__ import annotations

import functools
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor
from torch.library import define, impl, register_fake

from advfast import _backend

define("advfast::relu_bits_", "(Tensor(a!) y, str impl) -> Tensor")
define("advfast::positive_bits", "(Tensor y, str impl) -> Tensor")
define("advfast::add_relu_bits_", "(Tensor(a!) y, Tensor other, str impl) -> Tensor")
define("advfast::gate_", "(Tensor(a!) grad, Tensor bits, Tensor? other, str impl) -> ()")
define(
    "advfast::affine_relu_bits",
    "(Tensor x, Tensor scale, Tensor shift, str impl) -> (Tensor, Tensor)",
)
define(
    "advfast::affine_gate_",
    "(Tensor(a!) grad, Tensor bits, Tensor scale, Tensor? other, str impl) -> ()",
)

_MODULES = {"reference": "reference", "cpp": "native", "triton": "triton"}


@functools.cache
def _module(name: str) -> ModuleType:
    return import_module(f"advfast.kernels.activation.{_MODULES[name]}")


def _implementation(op: str, impl: str, x: Tensor) -> ModuleType:
    float32, float64 = x.dtype == torch.float32, x.dtype == torch.float64
    name = _backend.resolve_impl(op, impl, x.device, float32=float32, float64=float64)
    return _module(name)


def _reject_overlap(op: str, name: str, written: Tensor, other: Tensor) -> None:
    """`other` may be the tensor that is written, but not a shifted part of it."""
    distance = abs(written.data_ptr() - other.data_ptr())
    if 0 < distance < written.numel() * written.element_size():
        raise ValueError(f"{op}: {name} and other must not overlap in memory")


def _written(t: Tensor) -> None:
    """Autograd must notice the change: a saved tensor that was overwritten is an error, not a wrong gradient."""
    if not t.is_inference():
        torch.autograd.graph.increment_version(t)


def _relu_bits_(y, impl):
    bits = _implementation("relu_bits_", impl, y).relu_bits_(y, None)
    _written(y)
    return bits


def _positive_bits(y, impl):
    return _implementation("positive_bits", impl, y).positive_bits(y)


def _add_relu_bits_(y, other, impl):
    _reject_overlap("add_relu_bits_", "y", y, other)
    bits = _implementation("add_relu_bits_", impl, y).relu_bits_(y, other)
    _written(y)
    return bits


def _gate_(grad, bits, other, impl):
    if other is not None:
        _reject_overlap("gate_", "grad", grad, other)
    _implementation("gate_", impl, grad).gate_(grad, bits, None, other)
    _written(grad)


def _affine_relu_bits(x, scale, shift, impl):
    return _implementation("affine_relu_bits", impl, x).affine_relu_bits(x, scale, shift)


def _affine_gate_(grad, bits, scale, other, impl):
    if other is not None:
        _reject_overlap("affine_gate_", "grad", grad, other)
    _implementation("affine_gate_", impl, grad).gate_(grad, bits, scale, other)
    _written(grad)


for _device in ("CPU", "CUDA"):
    impl("advfast::relu_bits_", _device)(_relu_bits_)
    impl("advfast::positive_bits", _device)(_positive_bits)
    impl("advfast::add_relu_bits_", _device)(_add_relu_bits_)
    impl("advfast::gate_", _device)(_gate_)
    impl("advfast::affine_relu_bits", _device)(_affine_relu_bits)
    impl("advfast::affine_gate_", _device)(_affine_gate_)


def _fake_bits(x: Tensor, *args) -> Tensor:
    return x.new_empty((x.numel() + 7) // 8, dtype=torch.uint8)


for _name in ("relu_bits_", "positive_bits", "add_relu_bits_"):
    register_fake(f"advfast::{_name}")(_fake_bits)


@register_fake("advfast::affine_relu_bits")
def _(x: Tensor, *args) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _fake_bits(x)


@register_fake("advfast::gate_")
def _(*args) -> None:
    return None


@register_fake("advfast::affine_gate_")
def _(*args) -> None:
    return None


relu_bits_op = torch.ops.advfast.relu_bits_.default
positive_bits_op = torch.ops.advfast.positive_bits.default
add_relu_bits_op = torch.ops.advfast.add_relu_bits_.default
gate_op = torch.ops.advfast.gate_.default
affine_relu_bits_op = torch.ops.advfast.affine_relu_bits.default
affine_gate_op = torch.ops.advfast.affine_gate_.default
