"""advfast.evaluate: accuracy on clean and on attacked images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from advfast.attacks.checks import check_choice, check_count, check_radius
from advfast.attacks.state import crafting
from advfast.kernels.pgd.api import check_norm

from .attacks import Entry, entries, inspect_results
from .inputs import SPLITS, Inputs, batches, check_labels, check_shard, describe, inputs, logits_of
from .report import JSON, EvalReport
from .tally import Tally

PRECISIONS = ("fp32", "bf16", "fp16")


class AttackFailed(RuntimeError):
    """A callable attack raised or returned something else than images.

    Attributes:
        report: what the other attacks found; None where the attack failed at once.
    """

    def __init__(self, message: str, report: EvalReport | None = None) -> None:
        super().__init__(message)
        self.report = report


def evaluate(
    model: Callable[[Tensor], Tensor],
    data: object,
    *,
    attacks: Sequence[object] | Mapping[str, object] = ("clean", "pgd-20"),
    eps: float = 8 / 255,
    norm: str = "linf",
    batch_size: int = 500,
    seed: int = 0,
    precision: str = "fp32",
    split: str = "test",
    limit: int | None = None,
    shard: tuple[int, int] | None = None,
    data_root: str | Path | None = None,
    progress: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> EvalReport:
    """Accuracy on `data`, clean and attacked.

    "pgd-K" is K steps of size eps/4 that raise the cross-entropy, from one uniform random start, last iterate, with the
    whole model in eval mode. The starts are keyed by (seed, sample number). "fgsm", "fgsm-rs", "bim-K", "mi-fgsm-K" and
    "tpgd-K" are the attacks of these names (see `advfast.attacks`), those with K steps with a step of eps/4 too;
    `report.attacks` says what each is.

    A sample that is misclassified when clean is broken whatever the attack: it is not attacked, and counts as wrong.
    Each attack gets the others, and its accuracy does not depend on which other attacks are asked for. A sample with
    NaN among its logits counts as wrong. The model is left as it was found, also when something raises.

    A callable is called as ``attack(model, images, labels)`` with gradients enabled and the model in eval mode, and
    must return the adversarial images (foolbox, adv-lib or one's own, in a function with these arguments). torch's
    generator is seeded from (seed, first sample number) for each call and put back; other generators are its own
    affair. Results that are not finite, outside [0, 1] or farther than eps away (by more than 1e-4 of eps + 1e-6) are
    counted as they are, and `report.warnings` says how many and how far. A PGDAttack is taken too; it keeps its own eps
    and norm, and its own model, which makes it a transfer attack if that is another one.

    Args:
        model: images [B, C, H, W] in [0, 1] -> logits [B, K]; normalisation inside. In 16 bits it gets images rounded
            to its dtype, and the ball is around these.
        data: a pair of tensors (images, labels), a Dataset, a DataLoader, a Source, or the name of a built-in data set
            or the path of one (see `advfast.data.load`).
        attacks: "clean", "pgd-K" for any K, the other names above, and callables; or a mapping of names to these.
        eps: radius in pixel units.
        norm: "linf", "l2" or "l1".
        batch_size: samples a batch; the result depends on it by rounding in the network alone.
        seed: of the random starts.
        precision: of the crafting by name: "fp32" is the model's own dtype, "bf16" and "fp16" run it under autocast.
            Predictions are always made in the model's own dtype.
        split: "test", "val" or "train" of a built-in data set or a path.
        limit: the first so many samples; None for all.
        shard: (number, count): one of `count` parts of the samples, which may be evaluated by as many processes. A
            sample has the random start that it has in the whole; the counts of the parts add up to those of it.
        data_root: folder of a built-in data set's files.
        progress: show a bar where standard error is a terminal.
        out: folder to write evaluation.json, evaluation.txt and evaluation.png to, also when the evaluation is
            interrupted (then of the samples until there).
        overwrite: replace an evaluation that is in `out`.

    Raises:
        ValueError, TypeError: bad argument or data, before any work; or the model's output or the labels are wrong.
        FileExistsError: `out` holds an evaluation.
        AttackFailed: a callable attack raised. In the first batch it stops everything; later the other attacks are
            finished first, written to `out`, and attached as ``error.report``.
    """
    if not callable(model):
        raise TypeError(f"model must be callable, got {type(model).__name__}")
    check_count("batch_size", batch_size, 1)
    check_count("seed", seed, 0)
    if limit is not None:
        check_count("limit", limit, 1)
    if shard is not None:
        check_shard(shard)
    norm = check_norm("evaluate", norm)
    check_radius(eps)
    if norm == "linf" and eps > 1:
        raise ValueError(
            f"eps must be at most 1 for linf, in pixel units of [0, 1] (8/255, not 8), got {eps}"
        )
    check_choice("precision", precision, PRECISIONS)
    check_choice("split", split, SPLITS)
    made = entries(attacks, model, eps=eps, norm=norm, seed=seed, precision=precision)
    if out is not None and not overwrite and (Path(out) / JSON).exists():
        raise FileExistsError(
            f"{out} already holds an evaluation ({JSON}); choose another folder or replace it "
            "(overwrite=True, --overwrite)"
        )
    of = inputs(data, split, data_root, limit, shard)
    tally = Tally(made)
    started = time.perf_counter()

    def report() -> EvalReport:
        return tally.report(
            eps=float(eps),
            norm=norm,
            seconds=time.perf_counter() - started,
            model=describe(model),
            data=of.words,
            class_names=of.class_names,
            settings={
                "batch_size": batch_size,
                "seed": seed,
                "precision": precision,
                "limit": limit,
            },
        )

    try:
        with _Bar(of, made, progress) as bar, crafting(model, "eval"), torch.no_grad():
            for images, labels, numbers in batches(of, batch_size, limit, model):
                # All labels are looked at before the first attack, where they can be.
                known = None if tally.samples else of.labels(limit)
                checked = labels if known is None else known
                _batch(model, tally, images, labels, numbers, checked, float(eps), norm, bar)
        if not tally.samples:
            raise ValueError("data holds no samples")
    except BaseException as stopped:
        if out is not None and tally.samples:
            tally.stopped = f"{type(stopped).__name__} after {tally.samples} samples"
            report().save(out)
        raise
    result = report()
    if out is not None:
        result.save(out)
    if tally.failures:
        name, error = next(iter(tally.failures.items()))
        raise AttackFailed(_failure(name, error), result) from error
    return result


def _batch(
    model: Callable[[Tensor], Tensor],
    tally: Tally,
    images: Tensor,
    labels: Tensor,
    numbers: Tensor,
    checked: Tensor,
    eps: float,
    norm: str,
    bar: _Bar,
) -> None:
    """All attacks on one batch; it is counted when all are through."""
    began = time.perf_counter()
    _check_pixels(images)
    logits = logits_of(model, images)
    check_labels(checked, logits.shape[1])
    clean, nan = _right(logits, labels)
    clean_seconds = time.perf_counter() - began
    left = clean.nonzero()[:, 0]  # the others are broken already
    right: dict[str, Tensor] = {}
    nans: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for entry in tally.running():
        began = time.perf_counter()
        right[entry.name], nans[entry.name] = clean.cpu(), 0
        if entry.craft is None:
            nans[entry.name], seconds[entry.name] = int(nan.sum()), clean_seconds
        elif len(left):
            try:
                still, nan_left = _attacked(
                    model, entry, images[left], labels[left], numbers[left], eps, norm
                )
            except Exception as error:
                if not entry.foreign:
                    raise
                if not tally.samples:
                    raise AttackFailed(_failure(entry.name, error)) from error
                tally.failures[entry.name] = error
                continue
            right[entry.name] = clean.index_put((left,), still).cpu()
            nans[entry.name] = int(nan_left.sum())
            seconds[entry.name] = time.perf_counter() - began
        bar.update(entry.name, len(labels), tally, right[entry.name])
    tally.add(labels.cpu(), logits.shape[1], clean.cpu(), right, nans, seconds)


def _attacked(
    model: Callable[[Tensor], Tensor],
    entry: Entry,
    images: Tensor,
    labels: Tensor,
    numbers: Tensor,
    eps: float,
    norm: str,
) -> tuple[Tensor, Tensor]:
    """([B] still right, [B] NaN among the logits) of samples that are right when clean."""
    assert entry.craft is not None
    adversarial = entry.craft(images, labels, numbers)
    if entry.foreign:
        inspect_results(entry, adversarial, images, eps, norm)
    return _right(logits_of(model, adversarial), labels)


def _right(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    nan = logits.isnan().any(1)
    # argmax would take the NaN for the largest, and the sample for right if it stands at the label.
    return (logits.argmax(1) == labels) & ~nan, nan


def _check_pixels(images: Tensor) -> None:
    low, high = (float(value) for value in torch.aminmax(images))
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise ValueError(
            f"images must have pixels in [0, 1], got {low:.6g} to {high:.6g}; "
            "normalisation belongs inside the model"
        )


def _failure(name: str, error: Exception) -> str:
    return (
        f"attack {name!r}, called as attack(model, images, labels), failed: "
        f"{type(error).__name__}: {error}"
    )


class _Bar:
    """The attack at work, images a second, and the accuracy under each attack so far."""

    def __init__(self, of: Inputs, made: Sequence[Entry], shown: bool) -> None:
        self._bar = tqdm(
            total=None if of.samples is None else of.samples * len(made),
            unit=" images",
            unit_scale=True,
            leave=False,
            disable=None if shown else True,  # None: only where standard error is a terminal
        )

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, name: str, images: int, tally: Tally, right: Tensor) -> None:
        if self._bar.disable:
            return
        total = tally.samples + images
        share = (tally.correct(name) + int(right.sum())) / total if total else math.nan
        self._bar.set_description_str(name, refresh=False)
        self._bar.set_postfix_str(f"{100 * share:.1f} % right", refresh=False)
        self._bar.update(images)
