"""What the checks ask of a model: logits, and gradients with respect to the images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from advfast.attacks import checks
from advfast.attacks.losses import LOSSES, widen
from advfast.attacks.outputs import Output, selector
from advfast.attacks.state import parameter_dtype


@dataclass(frozen=True)
class Gradients:
    """Of some images.

    Attributes:
        logits: [B, K] detached, in float32 or float64.
        of: loss -> [B, ...] its gradient; empty where there is none.
        reason: why there is none.
        backward: whether a backward pass ran inside the forward pass of the model.
    """

    logits: Tensor
    of: dict[str, Tensor]
    reason: str
    backward: bool


class Probe:
    """A model that is asked as it is, without the engine, in its own precision.

    Args:
        model: images [B, ...] -> logits [B, K].
        output: where the logits are in what it returns.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], output: Output) -> None:
        self._model, self._select = model, selector(output)
        self._dtype = parameter_dtype(model)

    def images(self, images: Tensor) -> Tensor:
        """A copy in the model's dtype."""
        return images.detach().to(self._dtype or images.dtype, copy=True)

    def logits(self, x: Tensor) -> Tensor:
        """[B, K] in float32 or float64."""
        return widen(self._run(x)).detach()

    def gradients(self, x: Tensor, labels: Tensor, losses: tuple[str, ...]) -> Gradients:
        """Per sample, of each loss; 16-bit logits get a gradient rescaled to about 1, as the attacks do it."""
        x = x.detach().clone().requires_grad_()
        unpacked: list[bool] = []
        try:
            with torch.autograd.graph.saved_tensors_hooks(lambda t: t, _watch(unpacked)):
                logits = self._run(x)
            backward = bool(unpacked)
        except RuntimeError as error:
            # torch.func's transforms do not run under these hooks; and if the model uses them it differentiates.
            logits = self._run(x)
            backward = bool(unpacked) or "saved tensor hooks" in str(error)
        wide = widen(logits).detach()
        if not logits.requires_grad:
            return Gradients(
                wide, {}, "autograd sees no way from the images to the logits", backward
            )
        found = {}
        try:
            for index, loss in enumerate(losses):
                cotangent = _cotangent(logits, labels, loss)
                keep = index + 1 < len(losses)
                (gradient,) = torch.autograd.grad(
                    logits, x, cotangent, retain_graph=keep, allow_unused=True
                )
                if gradient is None:
                    reason = "autograd sees no way from the images to the logits"
                    return Gradients(wide, {}, reason, backward)
                found[loss] = gradient
        except RuntimeError as error:
            return Gradients(wide, {}, f"the backward pass failed: {error}", backward)
        return Gradients(wide, found, "", backward)

    def _run(self, x: Tensor) -> Tensor:
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            logits = self._select(self._model(x))
        return checks.check_logits(logits, len(x), 1, None)


def _watch(unpacked: list[bool]) -> Callable[[Tensor], Tensor]:
    def unpack(tensor: Tensor) -> Tensor:
        unpacked.append(True)
        return tensor

    return unpack


def _cotangent(logits: Tensor, labels: Tensor, loss: str) -> Tensor:
    """d loss.sum() / d logits, [B, K] in the dtype of the logits."""
    leaf = widen(logits.detach()).requires_grad_()
    (found,) = torch.autograd.grad(LOSSES[loss](leaf, labels).sum(), leaf)
    if found.dtype != logits.dtype:
        largest = found.abs().amax(1, keepdim=True)
        found = found / torch.where(largest > 0, largest, 1.0)
    return found.to(logits.dtype)
