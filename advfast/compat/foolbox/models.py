"""A torch model with the bounds of its input and its preprocessing."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .tensors import eagerpy_kind, unwrapped

_KEYS = ("mean", "std", "axis", "flip_axis")


class Bounds(NamedTuple):
    lower: float
    upper: float


class Model(ABC):
    """Anything with bounds that maps inputs to logits. Attacks take these, and models of an installed foolbox."""

    @property
    @abstractmethod
    def bounds(self) -> Bounds: ...

    @abstractmethod
    def __call__(self, inputs: Any) -> Any: ...

    def transform_bounds(self, bounds: tuple[float, float]) -> Model:
        """The same model for inputs that are scaled to other bounds."""
        return TransformBoundsWrapper(self, bounds)


class TransformBoundsWrapper(Model):
    """A model for inputs in other bounds than its own."""

    def __init__(self, model: Model, bounds: tuple[float, float]) -> None:
        self._model = model
        self._bounds = Bounds(*bounds)

    @property
    def bounds(self) -> Bounds:
        return self._bounds

    @property
    def data_format(self) -> Any:
        return self._model.data_format  # type: ignore[attr-defined]

    def __call__(self, inputs: Any) -> Any:
        x, restore = unwrapped(inputs)
        if self._bounds != self._model.bounds:
            (a, b), (c, d) = self._bounds, self._model.bounds
            x = (x - a) / (b - a) * (d - c) + c
        return restore(unwrapped(self._model(x))[0])

    def transform_bounds(self, bounds: tuple[float, float], inplace: bool = False) -> Model:
        if inplace:
            self._bounds = Bounds(*bounds)
            return self
        return TransformBoundsWrapper(self._model, bounds)


class _Preprocessed(nn.Module):
    """model((flip(x) - mean) / std), each part only where it is given."""

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self, model: nn.Module, mean: Tensor | None, std: Tensor | None, flip_axis: int | None
    ) -> None:
        super().__init__()
        self.model = model
        self.flip_axis = flip_axis
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        if self.flip_axis is not None:
            x = x.flip(self.flip_axis)
        if self.mean is not None:
            x = x - self.mean.to(x.dtype)
        if self.std is not None:
            x = x / self.std.to(x.dtype)
        return self.model(x)


def _constant(name: str, value: Any, axis: int | None, device: torch.device) -> Tensor | None:
    if value is None:
        return None
    raw = getattr(value, "raw", value)
    tensor = torch.as_tensor(raw, device=device)
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.get_default_dtype())
    if axis is None:
        return tensor
    if tensor.dim() != 1:
        raise ValueError(f"with axis {name} must have one dimension, got {tensor.dim()}")
    if axis >= 0:
        raise ValueError(f"axis must be None or negative (-1 is the last), got {axis}")
    return tensor.reshape(-1, *[1] * (-axis - 1))


class PyTorchModel(Model):
    """A torch model for attacks.

    Args:
        model: nn.Module that returns logits [B, K]; moved to `device`. Its mode is left alone: call eval() first.
        bounds: (lower, upper) of the inputs that attacks work on, before preprocessing.
        device: None for the first GPU if there is one.
        preprocessing: of the inputs in front of the model: mean, std (numbers or tensors), axis (negative: of which
            dimension they are), flip_axis.

    Raises:
        ValueError: not an nn.Module; unknown key or axis of the preprocessing.
    """

    def __init__(
        self,
        model: nn.Module,
        bounds: tuple[float, float],
        device: Any = None,
        preprocessing: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"model must be an instance of torch.nn.Module, got {type(model).__name__}"
            )
        if model.training:
            warnings.warn(
                "the model is in train mode, in which its output may be random and depend on the "
                "batch; call eval() first unless this is meant",
                UserWarning,
                stacklevel=2,
            )
        given = dict(preprocessing or {})
        unknown = [key for key in given if key not in _KEYS]
        if unknown:
            raise ValueError(f"preprocessing may have {', '.join(_KEYS)}, got {unknown[0]!r}")
        if device is None:
            device = "cuda:0" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.data_format = "channels_first"
        self._bounds = Bounds(*bounds)
        self._model = model.to(self.device)
        axis = given.get("axis")
        self._mean = _constant("mean", given.get("mean"), axis, self.device)
        self._std = _constant("std", given.get("std"), axis, self.device)
        self._flip_axis: int | None = given.get("flip_axis")
        self._network: nn.Module | None = None

    @property
    def bounds(self) -> Bounds:
        return self._bounds

    @property
    def network(self) -> nn.Module:
        """The model with its preprocessing, as one module: what the engine runs."""
        if self._mean is None and self._std is None and self._flip_axis is None:
            return self._model
        if self._network is None:
            self._network = _Preprocessed(self._model, self._mean, self._std, self._flip_axis)
        self._network.training = self._model.training
        return self._network

    @property
    def dummy(self) -> Any:
        """An empty tensor of the kind and on the device that `foolbox.samples` is to make."""
        kind = eagerpy_kind()
        empty = torch.zeros(0, device=self.device)
        return empty if kind is None else kind(empty)

    def __call__(self, inputs: Any) -> Any:
        """Logits [B, K]; they require grad only if the inputs do."""
        x, restore = unwrapped(inputs)
        with torch.set_grad_enabled(x.requires_grad):
            return restore(self.network(x))

    def transform_bounds(
        self, bounds: tuple[float, float], inplace: bool = False, wrapper: bool = False
    ) -> Model:
        """The same model for inputs that are scaled to other bounds: a copy that shares the weights, or itself."""
        if wrapper:
            if inplace:
                raise ValueError("inplace and wrapper cannot both be True")
            return super().transform_bounds(bounds)
        model = self if inplace else copy.copy(self)
        if self._bounds == tuple(bounds):
            return model
        (a, b), (c, d) = self._bounds, bounds
        factor = (d - c) / (b - a)
        zero, one = torch.zeros(1, device=self.device), torch.ones(1, device=self.device)
        model._mean = factor * ((zero if self._mean is None else self._mean) - a) + c
        model._std = factor * (one if self._std is None else self._std)
        model._bounds = Bounds(*bounds)
        model._network = None
        return model
