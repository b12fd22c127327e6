"""The training loop: a method makes the loss of a batch, the loop does everything else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import nn

from advfast.data import Source, batches

from .methods import Method


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite; what had been saved before is still there."""


class Callback(Protocol):
    """Told of progress; changes nothing."""

    def on_step_end(self, loss: float, accuracy: float, images_per_second: float) -> None: ...

    def on_epoch_end(self, row: dict[str, float]) -> None: ...


def steps_of(samples: int, batch_size: int) -> int:
    """Steps an epoch.

    A last batch of a single sample is left out: batch normalisation has no variance of one sample. The order is new in
    every epoch, so it is not always the same one.
    """
    whole, rest = divmod(samples, batch_size)
    return whole + (rest > 1) or 1


def run_epochs(
    model: nn.Module,
    method: Method,
    source: Source,
    *,
    epochs: int,
    batch_size: int,
    optimizer: torch.optim.Optimizer,
    learning_rate: Callable[[int], float],
    order: torch.Generator,
    device: torch.device,
    validate: Callable[[], tuple[float, float]],
    callbacks: Sequence[Callback] = (),
) -> Iterator[dict[str, float]]:
    """Trains; hands over after each epoch.

    Args:
        learning_rate: step of the whole run, from 0 -> learning rate.
        order: draws the order of the samples.
        validate: () -> (clean, robust) accuracy on the held-out split; called in any mode after each epoch.

    Yields:
        The row of the history.

    Raises:
        NonFiniteLoss: before the step that would have spoilt the weights.
    """
    step = 0
    count = steps_of(len(source), batch_size)
    for epoch in range(1, epochs + 1):
        model.train()
        started = time.perf_counter()
        loss_sum, correct, seen, lr = 0.0, 0, 0, 0.0
        loader = batches(source, batch_size, device=device, order=order)
        for _, (images, labels, _) in zip(range(count), loader, strict=False):
            lr = learning_rate(step)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss, logits = method(images, labels)
            value = loss.item()
            if not math.isfinite(value):
                raise NonFiniteLoss(
                    f"the loss became {value} at step {step + 1} (epoch {epoch} of {epochs}, "
                    f"learning rate {lr:.3g}); training stopped before that step. A lower "
                    "learning rate usually helps"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            right = int((logits.detach().argmax(1) == labels).sum())
            loss_sum += value * len(labels)
            correct += right
            seen += len(labels)
            speed = seen / (time.perf_counter() - started)
            for callback in callbacks:
                callback.on_step_end(value, right / len(labels), speed)
        seconds = time.perf_counter() - started
        clean, robust = validate()
        row = {
            "epoch": epoch,
            "lr": lr,
            "train_loss": loss_sum / seen,
            "train_accuracy": correct / seen,
            "val_clean": clean,
            "val_robust": robust,
            "seconds": seconds,
            "images_per_second": seen / seconds,
        }
        for callback in callbacks:
            callback.on_epoch_end(row)
        yield row
