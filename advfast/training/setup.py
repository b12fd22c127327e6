"""What a run needs before it starts: data split, model made and checked. Nothing here trains."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from advfast import models
from advfast.attacks.state import crafting
from advfast.data import (
    WHOLE,
    ForeignLoader,
    Loader,
    Mixed,
    Share,
    Source,
    as_source,
    fingerprint,
    load,
    ordered,
    pixel_statistics,
    stratified_split,
)
from advfast.userfile import is_user_object, load_object

_HELD_OUT_SHARE = 0.15
_HELD_OUT_MOST = 2000


@dataclass(frozen=True)
class RunData:
    """The three disjoint parts, and names for people."""

    name: str
    train: Source | DataLoader
    val: Source | DataLoader
    test: Source | DataLoader | None
    class_names: tuple[str, ...] | None
    extra: Source | None = None

    def samples(self) -> dict[str, int | None]:
        parts = {"train": self.train, "val": self.val, "test": self.test}
        parts |= {} if self.extra is None else {"extra": self.extra}
        return {name: 0 if part is None else _count(part) for name, part in parts.items()}

    def fingerprint(self) -> str | None:
        """Of the training data; None where they are behind a foreign DataLoader."""
        if isinstance(self.train, DataLoader):
            return None
        own = fingerprint(self.train)
        return own if self.extra is None else f"{own}+{fingerprint(self.extra)}"


def _count(part: Source | DataLoader) -> int | None:
    if isinstance(part, DataLoader):
        try:
            return len(part.dataset)  # type: ignore[arg-type]
        except TypeError:
            return None
    return len(part)


def run_data(
    data: object, val: object, test: object, data_root: str | Path | None, seed: int
) -> RunData:
    """Reads the data; holds part of the training data out where no `val` is given.

    Raises:
        ValueError, TypeError, FileNotFoundError: what is wrong with which of them.
    """
    name, class_names, own_val, own_test = "custom", None, None, None
    source: Source | DataLoader
    if isinstance(data, str):
        splits = load(data, data_root)
        name, class_names, own_test = splits.name, splits.class_names, splits.test
        own_val = splits.val
        source = splits.train
    else:
        source = _part(data, "data")
    test_source = own_test if test is None else _part(test, "test")
    if val is not None or own_val is not None:
        val_source = own_val if val is None else _part(val, "val")
        assert val_source is not None
        return RunData(name, source, val_source, test_source, class_names)
    if isinstance(source, DataLoader):
        raise ValueError(
            "val must be given when data is a DataLoader: no samples can be held out of it"
        )
    if len(source) < 2:
        raise ValueError("data must hold at least 2 samples so that one can be held out, got 1")
    count = min(max(round(_HELD_OUT_SHARE * len(source)), 1), _HELD_OUT_MOST)
    kept, held_out = stratified_split(source.labels, count, seed=seed)
    return RunData(name, source.subset(kept), source.subset(held_out), test_source, class_names)


def extra_data(extra: object, parts: RunData, data_root: str | Path | None) -> RunData:
    """With more data to train on: the training part of a data set or path by name, or what `as_source` takes.

    Raises:
        ValueError, TypeError, FileNotFoundError: what is wrong with it.
    """
    if extra is None:
        return parts
    source = load(extra, data_root).train if isinstance(extra, str) else _part(extra, "extra")
    if isinstance(parts.train, DataLoader) or isinstance(source, DataLoader):
        raise ValueError("extra cannot be mixed into the batches of a DataLoader, or come from one")
    return replace(parts, extra=source)


def _part(data: object, name: str) -> Source | DataLoader:
    return data if isinstance(data, DataLoader) else as_source(data, name)


def make_loader(
    parts: RunData,
    batch_size: int,
    *,
    device: torch.device,
    seed: int,
    augment: tuple[str, ...],
    channels_last: bool,
    share: Share = WHOLE,
    extra_share: float = 0.0,
) -> Loader | ForeignLoader:
    """What the loop reads from.

    Raises:
        ValueError: augmentation asked of a DataLoader, or an unknown one; batches too small for the ranks.
    """
    if share.world > 1 and batch_size < 2 * share.world:
        raise ValueError(
            f"batch_size is that of all ranks together: at least 2 for each of {share.world}, got {batch_size}"
        )
    if isinstance(parts.train, DataLoader):
        if augment:
            raise ValueError(
                "augment must be empty when data is a DataLoader: it has its own transforms"
            )
        return ForeignLoader(parts.train, device, channels_last, share)
    settings: dict[str, Any] = {
        "device": device,
        "seed": seed,
        "augment": augment,
        "channels_last": channels_last,
        "share": share,
    }
    if parts.extra is not None:
        return Mixed(parts.train, parts.extra, batch_size, extra_share=extra_share, **settings)
    return Loader(parts.train, batch_size, **settings)


def make_model(model: nn.Module | str, train: Source | DataLoader) -> nn.Module:
    """A model by name for the shape, the classes and the pixel statistics of the training data; others as they are.

    "file.py:make" is the user's function; it is called without arguments.

    Raises:
        ValueError, TypeError: no such model, or not for these data.
    """
    if not isinstance(model, str):
        return model
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if is_user_object(model):
        made = load_object(model)()
        if not isinstance(made, nn.Module):
            raise TypeError(f"{model} must return an nn.Module, got {type(made).__name__}")
        return made.to(device)
    if isinstance(train, DataLoader):
        raise ValueError(
            f"model {model!r} needs data whose classes are known: pass an nn.Module, or the "
            "Dataset in place of its DataLoader"
        )
    shape = tuple(train.batch(torch.zeros(1, dtype=torch.long))[0].shape[1:])
    if model in models.MODELS and len(shape) != 3:
        raise ValueError(f"model {model!r} takes images of shape (C, H, W), the data have {shape}")
    mean, std = pixel_statistics(train)
    classes = max(int(train.labels.max()) + 1, 2)
    return models.make(model, in_shape=list(shape), classes=classes, mean=mean, std=std).to(device)


def check_model(model: nn.Module, device: torch.device, data: RunData) -> tuple[Tensor, int]:
    """Two samples of each part through the model, and every label that is known against its logits.

    Returns:
        Two training images [2, C, H, W] on the device, and the number of classes: the width of the logits.

    Raises:
        TypeError, ValueError: not a classifier for these data.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("the model has no parameters to train")
    sample: Tensor | None = None
    classes = 0
    parts = ("data", data.train), ("extra", data.extra), ("val", data.val), ("test", data.test)
    for name, part in parts:
        if part is None:
            continue
        images, labels = _two(part, device)
        sample = images if sample is None else sample
        with crafting(model, "eval"), torch.no_grad():
            try:
                logits = model(images)
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
        largest, classes = int(labels.max()), logits.shape[1]
        if largest >= classes:
            raise ValueError(
                f"labels of {name} must be 0 .. {classes - 1} for {classes} logits, got {largest}"
            )
    assert sample is not None
    return sample, classes


def _two(part: Source | DataLoader, device: torch.device) -> tuple[Tensor, Tensor]:
    """(at most two images, all labels that are known without reading everything)."""
    if isinstance(part, DataLoader):
        batch = next(iter(ordered(part, 2, device)))
        return batch.images[:2], batch.labels
    images, _ = part.batch(torch.arange(min(2, len(part))))
    return images.to(device), part.labels


def use_channels_last(model: nn.Module, images: Tensor, asked: bool | None, precision: str) -> bool:
    """Whether to train in NHWC; the weights are then in that memory format, with the same values.

    None: where it is faster and the model takes it (one that calls `view` on activations does not): convolutions in
    16 bits on a GPU, and networks of more than four convolutions on a CPU. A network of
    two convolutions loses as much as it gains where it flattens.

    Raises:
        ValueError: asked for, and the model does not take it.
    """
    if asked is False or images.dim() != 4:
        return False
    if asked is None:
        convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
        least = 5 if images.device.type == "cpu" else 1
        if convolutions < least or (images.device.type != "cpu" and precision == "fp32"):
            return False
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        with crafting(model, "eval"), torch.enable_grad():
            probe = images.contiguous(memory_format=torch.channels_last).requires_grad_()
            torch.autograd.grad(model(probe).sum(), probe)
    except RuntimeError as error:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        if asked:
            raise ValueError(f"channels_last: the model does not take NHWC: {error}") from error
        return False
    return True


def check_numbers(
    *,
    eps: float,
    norm: str,
    epochs: int,
    batch_size: int,
    seed: int,
    label_smoothing: float,
    clip_grad: float | None,
    save_every: int | None,
    keep_every: int | None,
    threads: int | None,
    micro_batch: int | None,
) -> None:
    """
    Raises:
        ValueError: the one that is out of range.
    """
    counts: dict[str, tuple[Any, int]] = {
        "epochs": (epochs, 1),
        "batch_size": (batch_size, 1),
        "save_every": (1 if save_every is None else save_every, 1),
        "keep_every": (1 if keep_every is None else keep_every, 1),
        "micro_batch": (1 if micro_batch is None else micro_batch, 1),
        "threads": (1 if threads is None else threads, 1),
    }
    for name, (count, least) in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise ValueError(f"{name} must be an integer >= {least}, got {count!r}")
    if norm == "linf" and eps >= 1:
        raise ValueError(
            f"eps must be below 1 for linf, in pixel units of [0, 1] (8/255, not 8), got {eps}"
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an integer from 0 to 2**63 - 1, got {seed!r}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}")
    if clip_grad is not None and not 0 < clip_grad < math.inf:
        raise ValueError(f"clip_grad must be a finite number > 0, got {clip_grad}")
