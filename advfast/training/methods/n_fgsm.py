"""FGSM around noise (de Jorge et al., NeurIPS 2022), the same in all directions or not, and from a moment on."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from advfast.attacks.checks import check_choice
from advfast.data import Batch
from advfast.graphs import plain_attributes
from advfast.kernels import random_start

from ..probe_kernel import first_images, input_saliency
from .base import OF_A_CALL, Settings
from .fgsm import FGSM

if TYPE_CHECKING:
    from ..loop import Batches

NOISES = ("isotropic", "lognormal", "saliency")
STARTS = ("always", "monitor")

PROBE = 64
"""Training images whose kernel says what the saliency is of."""


class NFGSM(FGSM):
    """Cross-entropy on x' = u + alpha sign(grad CE(f(u), y)), u = x + s * U(-k eps, k eps), both in the box alone.

    s [C, H, W], nowhere negative, has the mean 1: before the clamp the mean of |u - x| is k eps / 2 for every kind of
    noise. (l2, l1: s times a uniform point of the ball of k eps.) x' is not put back into the ball: |x' - x| reaches
    k eps s + alpha, 3 eps by default. alpha None is the published eps; `steps` is always 1. Options:

    * k: 2 as published for CIFAR at 8/255 (3 for SVHN at 12/255, 4 for a wide network at 16/255); 0 is FGSM.
    * noise: "isotropic", as published: s = 1. The others are readings of the anisotropic noise of "Rethinking
      Adversarial Training with Neural Tangent Kernel" (arXiv 2312.02236), which does not say what its noise is.
      "lognormal": s is exp(sigma N(0, 1)) over its mean, drawn anew for each batch, whose images share it.
      "saliency": s is how the network depends on each pixel in the leading eigenvector of its kernel, see
      `advfast.training.probe_kernel.input_saliency`; of 64 training images (of several processes, of the first
      one's) attacked with the eps of the run, anew before every epoch and when the noise is switched on.
    * sigma: 0.5, of "lognormal".
    * start: "always", or "monitor": FGSM, bit for bit, until a `CatastrophicOverfitting` with action="noise" switches
      the noise on.

    Raises:
        ValueError: an option out of range, or one that does not go with the others; or, before a run starts, "saliency"
            of data in a DataLoader of one's own, whose images cannot be had again.
    """

    options: ClassVar[tuple[str, ...]] = ("k", "noise", "sigma", "start")

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        self.k = self.number("k", 2.0)
        self.noise, start = self.option("noise", "isotropic"), self.option("start", "always")
        check_choice("noise", self.noise, NOISES)
        check_choice("start", start, STARTS)
        if "sigma" in settings.options and self.noise != "lognormal":
            raise ValueError(f"sigma is of noise='lognormal', not of {self.noise!r}")
        self.sigma = self.number("sigma", 0.5)
        self.waits = start == "monitor"
        if self.waits and not self.k:
            raise ValueError("start='monitor' needs noise to switch on: k must be above 0, got 0")
        self.noisy = self.k > 0 and not self.waits
        self.begun = 0
        """Last epoch for which there is a saliency."""
        self.scale = torch.ones(())
        self._ball()

    def begin(self, batches: Batches, images: Tensor) -> None:
        if self.noise != "saliency":
            return
        if not batches.stateful:
            raise ValueError(
                "noise='saliency' looks at the same training images again: it needs the data as tensors or a "
                "Dataset, not a DataLoader of your own"
            )
        # It stays where it is: a recorded step reads it.
        self.scale = torch.ones_like(images[0])
        self.probe, self.probe_labels = first_images(batches, PROBE)

    def begin_epoch(self, epoch: int, batches: Batches) -> None:
        if epoch > self.begun:
            self.begun = epoch
            self._look()

    def switch_on(self) -> None:
        if not self.noisy:
            self.noisy = True
            self._ball()
            self._look()

    def craft(self, batch: Batch) -> Tensor:
        if not self.noisy:
            return super().craft(batch)
        return self.fgsm(self.start(batch), batch.labels)

    def start(self, batch: Batch) -> Tensor:
        """u, [B, C, H, W]."""
        images = batch.images.detach()
        isotropic = self.noise == "isotropic"
        drawn = random_start(
            images if isotropic else torch.zeros_like(images),
            eps=self.k * self.eps,
            norm=self.settings.norm,
            bounds=(0.0, 1.0) if isotropic else None,
            seed=torch.randint(2**63 - 1, (1,), device=images.device),
            sample_ids=batch.indices,
        )
        if isotropic:
            return drawn
        scale = self.scale
        if self.noise == "lognormal":
            shape = images.shape[1:]  # of a rank without samples too
            scale = torch.randn(shape, dtype=images.dtype, device=images.device)
            scale = (self.sigma * scale).exp()
            scale = scale / scale.mean()
        return (images + scale.to(drawn.dtype) * drawn).clamp(0, 1)

    def strength(self, eps: float, alpha: float, steps: int) -> None:
        super().strength(eps, alpha, steps)
        self._ball()

    def _ball(self) -> None:
        # With noise the ball of the attack is around it, so that only the box cuts the step.
        # With radius 0 (a ramp's stage of no steps) there is none; eps and alpha may be tensors.
        self.fgsm.eps = self.alpha * (self.eps > 0) if self.noisy else self.eps

    def _look(self) -> None:
        if self.noise == "saliency" and self.noisy:
            eps, norm = self.settings.eps, self.settings.norm  # a resumed run has no other eps yet
            # One rank's numbers for all: on GPUs a rounding may tell them apart.
            found = self.ranks.alone(
                lambda: input_saliency(self.model, self.probe, self.probe_labels, eps, norm).cpu()
            )
            self.scale.copy_(found)

    def graph_key(self) -> Hashable:
        # Not of the epoch: the graph would be made anew in each.
        own = plain_attributes(self, "eps", "alpha", "begun")
        return own, plain_attributes(self.fgsm, *OF_A_CALL)

    def state_dict(self) -> dict[str, Any]:
        if not self.waits and self.noise != "saliency":
            return {}
        return {"noisy": self.noisy, "begun": self.begun, "scale": self.scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.noisy, self.begun = bool(state["noisy"]), int(state["begun"])
            self.scale.copy_(state["scale"])
            self._ball()
