"""Schema, fake and device implementations of the hash. Needs torch alone; implementations load on first use."""

from __future__ import annotations

import functools
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor
from torch.library import define, impl, register_fake

from advfast import _backend

define("advfast::row_hash", "(Tensor x, str impl) -> Tensor")

_MODULES = {"reference": "reference", "cpp": "native", "triton": "triton"}


@functools.cache
def _module(name: str) -> ModuleType:
    return import_module(f"advfast.kernels.hash.{_MODULES[name]}")


def _row_hash(x, impl):
    name = _backend.resolve_impl("row_hash", impl, x.device, float32=x.dtype == torch.float32)
    return _module(name).row_hash(x)


for _device in ("CPU", "CUDA"):
    impl("advfast::row_hash", _device)(_row_hash)


@register_fake("advfast::row_hash")
def _(x: Tensor, impl) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.int64)


row_hash_op = torch.ops.advfast.row_hash.default
