"""Free adversarial training (Shafahi et al., NeurIPS 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from advfast.attacks import checks
from advfast.data import Batch
from advfast.kernels import pgd_step_

from .base import Backward, Method, Settings, Step

if TYPE_CHECKING:
    from ..loop import Batches


class Free(Method):
    """Each batch m times in a row, one pass each, whose gradient moves both the weights and a perturbation d.

    A step: CE(f(clamp(x + d, 0, 1)), y), its gradients to the weights and to d in one backward pass, then
    d <- clip(d + alpha sign(grad), -eps, eps) (algorithm 1). d starts at zero and is carried from batch to batch by
    position, not by sample (of several processes, in the share of each); a shorter batch has the first rows of it.
    Where x + d leaves the box its gradient is zero, as in both published codes (TensorFlow and PyTorch), and the pass
    is in train mode; so `bn` and `steps` are not used. alpha None is eps.

    An epoch costs m steps a batch and sees each image m times: to compare with m = 1, divide the epochs (and milestones
    given in epochs) by m. Options:

    * m: 8, as published for CIFAR-10 (4 for ImageNet);
    * reset: d is zero again for each new batch. With m = 1 that is training on clean images; with m = 2 every second
      step is one of FGSM from the image itself with alpha = eps, crafted one step of the weights before.

    Raises:
        ValueError: an option out of range, or `micro_batch`: weights and d have their gradient from one pass.
    """

    options: ClassVar[tuple[str, ...]] = ("m", "reset")
    defaults: ClassVar[dict[str, Any]] = {"alpha_of_eps": 1.0, "steps": 1}
    separable: ClassVar[bool] = False
    per_rank: ClassVar[bool] = True

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        self.repeats = self.option("m", 8)
        checks.check_count("m", self.repeats, 1)
        self.reset = self.option("reset", False)
        if not isinstance(self.reset, bool):
            raise ValueError(f"reset must be true or false, got {self.reset!r}")
        if settings.micro_batch is not None:
            raise ValueError(
                "free takes the gradients of weights and images from one pass over the batch: "
                f"micro_batch must be None, got {settings.micro_batch}"
            )
        self.steps = 1
        self.delta = torch.empty(0)
        self.turn = torch.empty(0)

    def begin(self, batches: Batches, images: Tensor) -> None:
        size = getattr(batches, "batch_size", None)
        # A DataLoader may not tell its batch size: then d grows with the first batches, which a graph cannot follow.
        self.capturable = size is not None  # type: ignore[misc]
        shape = getattr(batches, "shape", images.shape[1:])
        self.delta = _zeros(images, (size or 0, *shape))
        self.turn = torch.zeros((), dtype=torch.int64, device=images.device)

    def update(self, images: Tensor, batch: Batch, backward: Backward) -> Step:
        count = len(images)
        if count > len(self.delta):
            more = _zeros(images, (count - len(self.delta), *images.shape[1:]))
            self.delta = torch.cat((self.delta, more)) if len(self.delta) else more
        if self.reset:
            self.delta.mul_((self.turn != 0).to(self.delta.dtype))
            self.turn.add_(1).remainder_(self.repeats)
        rows = self.delta[:count]
        noise = rows.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        step = self.loss((images + noise).clamp(0, 1), batch)
        backward(step.loss)
        gradient = noise.grad
        assert gradient is not None
        pgd_step_(
            rows,
            gradient,
            torch.zeros_like(rows),
            alpha=self.alpha,
            eps=self.eps,
            norm=self.settings.norm,
            bounds=None,
        )
        return step

    def strength(self, eps: float, alpha: float, steps: int) -> None:
        super().strength(eps, alpha, 1)

    def passes(self) -> float:
        return 3.0

    def state_dict(self) -> dict[str, Any]:
        return {"delta": self.delta, "turn": self.turn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["delta"].shape != self.delta.shape:
            self.delta = _zeros(self.delta, state["delta"].shape)
        self.delta.copy_(state["delta"])
        self.turn.copy_(state["turn"])


def _zeros(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """On the device and in the memory format of some images."""
    zeros = torch.zeros(shape, dtype=like.dtype, device=like.device)
    nhwc = like.dim() == 4 and not like.is_contiguous()
    return zeros.contiguous(memory_format=torch.channels_last) if nhwc else zeros
