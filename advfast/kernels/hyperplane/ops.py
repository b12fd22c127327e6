"""Schema, fake and device implementations of the projection. Needs torch alone; implementations load on first use."""

from __future__ import annotations

import functools
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor
from torch.library import define, impl, register_fake

from advfast import _backend

define(
    "advfast::hyperplane_project",
    "(Tensor points, Tensor w, Tensor b, str norm, str impl) -> Tensor",
)

_MODULES = {"reference": "reference", "cpp": "native"}


@functools.cache
def _module(name: str) -> ModuleType:
    return import_module(f"advfast.kernels.hyperplane.{_MODULES[name]}")


def _hyperplane_project(points, w, b, norm, impl):
    float32 = points.dtype == torch.float32
    name = _backend.resolve_impl("hyperplane_project", impl, points.device, float32=float32)
    return _module(name).hyperplane_project(points, w, b, norm)


for _device in ("CPU", "CUDA"):
    impl("advfast::hyperplane_project", _device)(_hyperplane_project)


@register_fake("advfast::hyperplane_project")
def _(points: Tensor, w: Tensor, b: Tensor, norm, impl) -> Tensor:
    return torch.empty_like(points)


hyperplane_project_op = torch.ops.advfast.hyperplane_project.default
