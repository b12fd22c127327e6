"""Schemas, fakes and device implementations of the ntk family. Needs torch alone; implementations load on first use."""

from __future__ import annotations

import functools
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor
from torch.library import define, impl, register_fake

from advfast import _backend

_PAIR = (
    "(Tensor(a!) out, Tensor x1, Tensor g1, Tensor x2, Tensor g2, Tensor? taps1, Tensor? taps2, "
    "str precision, bool upper, str impl) -> ()"
)
define("advfast::ntk_rows", "(Tensor x, Tensor g, Tensor? taps, str impl) -> Tensor")
define(
    "advfast::ntk_patch_gram",
    "(Tensor x1, Tensor x2, Tensor? taps1, Tensor? taps2, str precision, str impl) -> Tensor",
)
define(
    "advfast::ntk_gram_",
    "(Tensor(a!) out, Tensor j1, Tensor j2, str precision, bool upper, str impl) -> ()",
)
define("advfast::ntk_chain_", _PAIR)
define("advfast::ntk_hadamard_", _PAIR)

_MODULES = {"reference": "reference", "cpp": "native", "cuda": "native", "triton": "triton"}


@functools.cache
def _module(name: str) -> ModuleType:
    return import_module(f"advfast.kernels.ntk.{_MODULES[name]}")


def _implementation(op: str, impl: str, t: Tensor, precision: str = "fp32") -> ModuleType:
    # The C++ kernels multiply in float32 alone: what emulates a GPU's precision is the reference, or the interpreter.
    if impl == "cpp" and precision not in ("fp32", "fp64"):
        raise RuntimeError(
            f"{op}: impl='cpp' is not available: it multiplies in float32, and precision is {precision!r}"
        )
    gpu = t.device.type != "cpu" or impl == "triton"
    plain = t.dtype == torch.float32 and (gpu or precision == "fp32")
    return _module(_backend.resolve_impl(op, impl, t.device, float32=plain))


def _written(out: Tensor) -> None:
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)


def _rows(x, g, taps, impl):
    return _implementation("ntk_rows", impl, x).ntk_rows(x, g, taps)


def _patch_gram(x1, x2, taps1, taps2, precision, impl):
    module = _implementation("ntk_patch_gram", impl, x1, precision)
    return module.ntk_patch_gram(x1, x2, taps1, taps2, precision)


def _gram(out, j1, j2, precision, upper, impl):
    _implementation("ntk_gram_", impl, j1, precision).ntk_gram_(out, j1, j2, precision, upper)
    _written(out)


def _chain(out, x1, g1, x2, g2, taps1, taps2, precision, upper, impl):
    module = _implementation("ntk_chain_", impl, x1, precision)
    module.ntk_chain_(out, x1, g1, x2, g2, taps1, taps2, precision, upper)
    _written(out)


def _hadamard(out, x1, g1, x2, g2, taps1, taps2, precision, upper, impl):
    module = _implementation("ntk_hadamard_", impl, x1, precision)
    module.ntk_hadamard_(out, x1, g1, x2, g2, taps1, taps2, precision, upper)
    _written(out)


for _device in ("CPU", "CUDA"):
    impl("advfast::ntk_rows", _device)(_rows)
    impl("advfast::ntk_patch_gram", _device)(_patch_gram)
    impl("advfast::ntk_gram_", _device)(_gram)
    impl("advfast::ntk_chain_", _device)(_chain)
    impl("advfast::ntk_hadamard_", _device)(_hadamard)


@register_fake("advfast::ntk_rows")
def _(x: Tensor, g: Tensor, taps, impl) -> Tensor:
    n, readouts, groups, _, c = g.shape
    return x.new_empty(n, readouts, groups, c, 1 if taps is None else taps.shape[1], x.shape[3])


@register_fake("advfast::ntk_patch_gram")
def _(x1: Tensor, x2: Tensor, taps1, taps2, precision, impl) -> Tensor:
    positions1 = x1.shape[2] if taps1 is None else taps1.shape[0]
    positions2 = x2.shape[2] if taps2 is None else taps2.shape[0]
    return x1.new_empty(x1.shape[0], x2.shape[0], x1.shape[1], positions1, positions2)


for _name in ("ntk_gram_", "ntk_chain_", "ntk_hadamard_"):

    @register_fake(f"advfast::{_name}")
    def _(*args) -> None:
        return None


ntk_rows_op = torch.ops.advfast.ntk_rows.default
ntk_patch_gram_op = torch.ops.advfast.ntk_patch_gram.default
ntk_gram_op = torch.ops.advfast.ntk_gram_.default
ntk_chain_op = torch.ops.advfast.ntk_chain_.default
ntk_hadamard_op = torch.ops.advfast.ntk_hadamard_.default
