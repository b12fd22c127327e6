"""A classifier by the cosine between features and class vectors, in place of a network's last layer."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.functional import linear, normalize

_SHORTEST = 1e-3
"""Features that are shorter are not of length 1 afterwards: their gradient would have no bound."""


class CosineLinear(nn.Module):
    """scale * cos(features, weight_c), [B, D] -> [B, C] (Wang et al., CVPR 2018, CosFace).

    Args:
        layer: whose weight [C, D] it takes over; its bias is left out.
        scale: above 0.
    """

    def __init__(self, layer: nn.Linear, scale: float) -> None:
        super().__init__()
        self.weight, self.scale = layer.weight, scale

    def forward(self, features: Tensor) -> Tensor:
        unit = normalize(features, dim=1, eps=_SHORTEST)
        return self.scale * linear(unit, normalize(self.weight, dim=1, eps=_SHORTEST))

    def extra_repr(self) -> str:
        return f"classes={self.weight.shape[0]}, scale={self.scale:g}"


def use_cosine_head(model: nn.Module, scale: float) -> None:
    """Replaces the last nn.Linear of a model by a `CosineLinear` with its weights, in place.

    Args:
        scale: of the logits, which lie in [-scale, scale].

    Raises:
        ValueError: scale out of range, no nn.Linear, or there is one of another scale already.
    """
    number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
    if not number or not 0 < scale < math.inf:
        raise ValueError(f"scale must be a finite number > 0, got {scale!r}")
    present = cosine_head(model)
    if present is not None:
        if present != scale:
            raise ValueError(f"scale={scale}: the model has a cosine head of {present} already")
        return
    found = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not found or not found[-1]:
        raise ValueError(
            f"a cosine head takes the place of the last nn.Linear: {type(model).__name__} has none"
        )
    parent, _, name = found[-1].rpartition(".")
    layer = model.get_submodule(found[-1])
    assert isinstance(layer, nn.Linear)
    made = CosineLinear(layer, float(scale)).train(layer.training)
    setattr(model.get_submodule(parent), name, made)
    model.__dict__["_advfast_cosine_head"] = float(scale)


def cosine_head(model: nn.Module) -> float | None:
    """The scale of the head that `use_cosine_head` put in; None where it did not."""
    return model.__dict__.get("_advfast_cosine_head")
