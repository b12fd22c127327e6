"""What a run needs before it starts: data split, model made and checked. Nothing here trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from advfast import models
from advfast.attacks.state import crafting
from advfast.data import Source, as_source, load, pixel_statistics, stratified_split

_HELD_OUT_SHARE = 0.15
_HELD_OUT_MOST = 2000


@dataclass(frozen=True)
class RunData:
    """The three disjoint parts, and names for people."""

    name: str
    train: Source
    val: Source
    test: Source | None
    class_names: tuple[str, ...] | None


def run_data(
    data: object, val: object, test: object, data_root: str | Path | None, seed: int
) -> RunData:
    """Reads the data; holds part of the training data out where no `val` is given.

    Raises:
        ValueError, TypeError, FileNotFoundError: what is wrong with which of them.
    """
    name, class_names, own_test = "custom", None, None
    if isinstance(data, str):
        splits = load(data, data_root)
        name, class_names, own_test = splits.name, splits.class_names, splits.test
        source = splits.train
    else:
        source = as_source(data)
    test_source = own_test if test is None else as_source(test, "test")
    if val is not None:
        return RunData(name, source, as_source(val, "val"), test_source, class_names)
    if len(source) < 2:
        raise ValueError("data must hold at least 2 samples so that one can be held out, got 1")
    count = min(max(round(_HELD_OUT_SHARE * len(source)), 1), _HELD_OUT_MOST)
    kept, held_out = stratified_split(source.labels, count, seed=seed)
    return RunData(name, source.subset(kept), source.subset(held_out), test_source, class_names)


def make_model(name: str, source: Source) -> nn.Module:
    """A named model for the shape, the classes and the pixel statistics of the training data."""
    shape = tuple(source.batch(torch.zeros(1, dtype=torch.long))[0].shape[1:])
    if name in models.MODELS and len(shape) != 3:
        raise ValueError(f"model {name!r} takes images of shape (C, H, W), the data have {shape}")
    mean, std = pixel_statistics(source)
    classes = max(int(source.labels.max()) + 1, 2)
    model = models.make(name, in_shape=list(shape), classes=classes, mean=mean, std=std)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def check_model(model: nn.Module, device: torch.device, data: RunData) -> None:
    """Two samples of each part through the model, and every label against its logits.

    Raises:
        TypeError, ValueError: not a classifier for these data.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("the model has no parameters to train")
    for name, source in (("data", data.train), ("val", data.val), ("test", data.test)):
        if source is None:
            continue
        images, _ = source.batch(torch.arange(min(2, len(source))))
        with crafting(model, "eval"), torch.no_grad():
            try:
                logits = model(images.to(device))
            except RuntimeError as error:
                raise ValueError(
                    f"the model does not take the images of {name}, "
                    f"{tuple(images.shape[1:])}: {error}"
                ) from error
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"the model must return logits of shape [B, K] = [{len(images)}, K], got {got}"
            )
        largest = int(source.labels.max())
        if largest >= logits.shape[1]:
            raise ValueError(
                f"labels of {name} must be 0 .. {logits.shape[1] - 1} for {logits.shape[1]} "
                f"logits, got {largest}"
            )


def check_numbers(
    *,
    eps: float,
    norm: str,
    epochs: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    seed: int,
) -> None:
    """
    Raises:
        ValueError: the one that is out of range.
    """
    for name, count in (("epochs", epochs), ("batch_size", batch_size)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be an integer >= 1, got {count!r}")
    if norm == "linf" and eps >= 1:
        raise ValueError(
            f"eps must be below 1 for linf, in pixel units of [0, 1] (8/255, not 8), got {eps}"
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an integer from 0 to 2**63 - 1, got {seed!r}")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be a finite number > 0, got {lr}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be at least 0 and below 1, got {momentum}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be a finite number >= 0, got {weight_decay}")
