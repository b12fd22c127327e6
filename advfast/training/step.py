"""One step of training: crafting, gradient, optimiser and modifiers, as work of the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from advfast.data import Batch
from advfast.graphs import nvtx_range

from .methods import Method
from .modifiers import Modifier, Update
from .parallel import Ranks

if TYPE_CHECKING:
    from .loop import Batches


class Outcome(NamedTuple):
    """Of a step: its loss and the samples that were classified right (0-d tensors), and the batch that was attacked."""

    loss: Tensor
    correct: Tensor
    batch: Batch


@dataclass
class TrainStep:
    """Call it with a method and a batch.

    Attributes:
        model: the bare one, in train mode.
        optimizer: its learning rates are those of the step.
        modifiers: in order.
        scaler: of the loss, for fp16.
        clip_grad: greatest l2 norm of the gradient of all weights together; None for no limit.
        micro_batch: samples whose gradient is taken at once; None for all.
        start: called as a step begins.
        see: told every loss before its gradient is taken.
        watched: the tensors that `start` and `see` change.
        ranks: the processes of the run; a batch is this one's share.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    modifiers: Sequence[Modifier]
    scaler: torch.amp.GradScaler
    clip_grad: float | None = None
    micro_batch: int | None = None
    start: Callable[[], None] = lambda: None
    see: Callable[[Tensor], None] = lambda loss: None
    watched: Sequence[Tensor] = ()
    ranks: Ranks = field(default_factory=Ranks)

    def batches(self, loader: Batches, epoch: int, start: int) -> Iterator[Any]:
        """What the steps of an epoch are called with, from number `start`."""
        return loader.batches(epoch, start)

    def __call__(self, method: Method, batch: Batch) -> Outcome:
        self.start()
        for modifier in self.modifiers:
            batch = modifier.batch(batch)
        with self.ranks.step(self.model):
            with nvtx_range("advfast.craft"):
                images = method.craft(batch)
            with nvtx_range("advfast.update"), ExitStack() as stack:
                stack.enter_context(self.ranks.updating(self.model))
                update = Update(self.model, lambda: self._gradients(method, images, batch))
                for modifier in self.modifiers:
                    stack.enter_context(modifier.updating(update))
                outcome = self._update(method, images, batch)
        for modifier in self.modifiers:
            modifier.after_step(self.model)
        return outcome

    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _update(self, method: Method, images: Tensor, batch: Batch) -> Outcome:
        self.optimizer.zero_grad(set_to_none=True)
        losses, correct = [], []
        for part_images, part, share in self._parts(images, batch):

            def backward(loss: Tensor, share: float = share) -> None:
                self.see(loss.detach())
                self.scaler.scale(loss if share == 1 else loss * share).backward()

            loss, logits = method.update(part_images, part, backward)
            losses.append(loss.detach() if share == 1 else loss.detach() * share)
            labels = part.labels if part.labels.dim() == 1 else part.labels.argmax(1)
            correct.append((logits.detach().argmax(1) == labels).sum())
        parameters = self.parameters()
        for parameter in parameters:
            gradient = parameter.grad
            # torch's fused optimisers read both in the order of memory, and do not look.
            if gradient is not None and gradient.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
        self.ranks.reduce([p.grad for p in parameters if p.grad is not None])
        for modifier in self.modifiers:
            modifier.gradient(parameters, self.scaler)
        if self.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if len(losses) == 1:
            return Outcome(losses[0], correct[0], batch)
        return Outcome(torch.stack(losses).sum(), torch.stack(correct).sum(), batch)

    def _parts(self, images: Tensor, batch: Batch) -> Iterator[tuple[Tensor, Batch, float]]:
        """(crafted images, batch, weight in the loss) of each part whose gradient is taken at once."""
        size, whole = self.micro_batch, self.ranks.weight
        if size is None or len(images) <= size:
            yield images, batch, whole
            return
        for first in range(0, len(images), size):
            chosen = slice(first, first + size)
            rows = {
                name: value[chosen]
                for name, value in batch._asdict().items()
                if value is not None and value.dim()
            }
            part = batch._replace(**rows)
            yield images[chosen], part, whole * len(part.images) / len(images)

    def _gradients(self, method: Method, images: Tensor, batch: Batch) -> list[Tensor | None]:
        """See `Update.gradients`."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        buffers = [(buffer, buffer.detach().clone()) for buffer in self.model.buffers()]
        total: list[Tensor | None] = [None] * len(parameters)
        for part_images, part, share in self._parts(images, batch):
            loss = self.scaler.scale(method.loss(part_images, part).loss * share)
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            total = [
                new if old is None else old if new is None else old + new
                for old, new in zip(total, found, strict=True)
            ]
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        self.ranks.reduce([gradient for gradient in total if gradient is not None])
        return total
