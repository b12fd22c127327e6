"""Clean and PGD-K accuracy of a model."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from advfast.attacks import PGDAttack
from advfast.attacks.state import crafting, model_device
from advfast.data import Source, as_source, batches, load
from advfast.kernels.pgd.api import check_norm, nearest

from .report import Accuracy, EvalReport

_PGD = re.compile(r"pgd-([1-9][0-9]*)")


def parse_attack(name: object) -> int:
    """Steps of "pgd-K"; 0 for "clean".

    Raises:
        ValueError: any other name.
    """
    if name == "clean":
        return 0
    match = _PGD.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise ValueError(
            "an attack must be 'clean' or 'pgd-K' with a number of steps K, such as 'pgd-20', got "
            f"{name!r}{nearest(str(name), ('clean', 'pgd-20'))}"
        )
    return int(match[1])


def evaluate(
    model: nn.Module,
    data: object,
    *,
    attacks: Sequence[str] = ("clean", "pgd-20"),
    eps: float = 8 / 255,
    norm: str = "linf",
    batch_size: int = 500,
    seed: int = 0,
    data_root: str | Path | None = None,
    progress: bool = False,
) -> EvalReport:
    """Accuracy on `data`, clean and attacked.

    "pgd-K" is K steps of size eps/4 that raise the cross-entropy, from one uniform random start, last iterate, in the
    model's own precision, with the whole model in eval mode. The starts are keyed by (seed, sample number): the result
    does not depend on batch_size but for rounding in the network. The model is left as it was found.

    Args:
        model: images [B, C, H, W] in [0, 1] -> logits [B, K]; normalisation inside.
        data: a pair of tensors (images, labels), a torch Dataset, or a built-in name (its test set is taken).
        attacks: "clean" and "pgd-K" for any K.
        eps: radius in pixel units.
        norm: "linf", "l2" or "l1".
        batch_size: samples a batch.
        seed: of the random starts.
        data_root: folder of a built-in data set's files.
        progress: show a bar where standard error is a terminal.

    Raises:
        ValueError, TypeError: bad argument or data, before any work.
    """
    steps = {name: parse_attack(name) for name in attacks}
    if not steps:
        raise ValueError("attacks must name at least one, such as ('clean', 'pgd-20')")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer >= 1, got {batch_size!r}")
    norm = check_norm("evaluate", norm)
    source = load(data, data_root).test if isinstance(data, str) else as_source(data)
    started = time.perf_counter()
    correct = dict.fromkeys(steps, 0)
    attack = PGDAttack(model, eps=eps, alpha=None, norm=norm, bn="eval", seed=seed)
    with _bar(source, len(steps), progress) as bar, crafting(model, "eval"), torch.no_grad():
        for images, labels, numbers in batches(source, batch_size, device=_device(model)):
            for name, count in steps.items():
                attack.steps = count
                seen = attack(images, labels, sample_ids=numbers) if count else images
                correct[name] += int((model(seen).argmax(1) == labels).sum())
                bar.update(len(labels))
    results = {name: Accuracy(right, len(source)) for name, right in correct.items()}
    return EvalReport(results, float(eps), norm, time.perf_counter() - started)


def _device(model: nn.Module) -> torch.device:
    return model_device(model) or torch.device("cpu")


def _bar(source: Source, passes: int, progress: bool) -> tqdm:
    return tqdm(
        total=len(source) * passes,
        desc="evaluating",
        unit=" images",
        unit_scale=True,
        leave=False,
        disable=None if progress else True,  # None: only where standard error is a terminal
    )
