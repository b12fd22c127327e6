"""advfast.evaluate: accuracy on clean and on attacked images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from .batch import AttackFailed as AttackFailed
from .report import EvalReport
from .request import DEFAULT_ATTACKS, Request
from .run import run


def evaluate(
    model: Callable[[Tensor], Tensor],
    data: object,
    *,
    attacks: Sequence[object] | Mapping[str, object] = DEFAULT_ATTACKS,
    eps: float = 8 / 255,
    norm: str = "linf",
    batch_size: int = 500,
    seed: int = 0,
    precision: str = "fp32",
    split: str = "test",
    limit: int | None = None,
    shard: tuple[int, int] | None = None,
    data_root: str | Path | None = None,
    sanity: str | bool = "auto",
    progress: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    report: bool = False,
    resume: bool = False,
) -> EvalReport:
    """Accuracy on `data`, clean and attacked.

    "pgd-K" is K steps of size eps/4 that raise the cross-entropy, from one uniform random start, last iterate, with the
    whole model in eval mode. The starts are keyed by (seed, sample number). "fgsm", "fgsm-rs", "bim-K", "mi-fgsm-K" and
    "tpgd-K" are the attacks of these names (see `advfast.attacks`), those with K steps with a step of eps/4 too;
    "cw-K" is "pgd-K" on the margin of the logits. "autoattack" is the standard version of AutoAttack (see
    `advfast.AutoAttack`), "autoattack-plus" and "autoattack-rand" are the others, and "apgd-ce", "apgd-dlr", "apgd-t",
    "fab", "fab-t" and "square" its parts alone; `report.stages` has what each part left. `report.attacks` says what
    each is.

    A sample that is misclassified when clean is broken whatever the attack: it is not attacked, and counts as wrong.
    Each attack gets the others, and its accuracy does not depend on which other attacks are asked for. A sample with
    NaN among its logits counts as wrong. The model is left as it was found, also when something raises.

    A callable is called as ``attack(model, images, labels)`` with gradients enabled and the model in eval mode, and
    must return the adversarial images (foolbox, adv-lib or one's own, in a function with these arguments). torch's
    generator is seeded from (seed, first sample number) for each call and put back; other generators are its own
    affair. Results that are not finite, outside [0, 1] or farther than eps away (by more than 1e-4 of eps + 1e-6) are
    counted as they are, and `report.warnings` says how many and how far. A PGDAttack is taken too; it keeps its own eps
    and norm, and its own model, which makes it a transfer attack if that is another one.

    With `out`, what was counted is also saved there after each batch, and `resume=True` goes on after the last whole
    batch of an evaluation that was killed. What it comes to is what it would have come to without the interruption
    (but for the times), as long as the device and torch's version are the same; if not, a warning in the report says
    so. All samples are read again, so that other data are noticed; those before the interruption are not attacked.

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
        sanity: looks for reasons to doubt a robust accuracy, on the first batch and with the model in the modes that it
            comes in; `report.findings` has them, each with what to try. "auto": the cheap checks, where there is an
            attack beside "clean". True: also PGD against its radius and its steps (`report.curves`). False: none.
            (That attacks in sequence contradict each other is always looked for: it costs nothing.)
        progress: show the accuracy so far and the time left: a bar where standard error is a terminal, elsewhere a line
            a minute.
        out: folder to write evaluation.json, evaluation.txt and evaluation.png to, also when the evaluation is
            interrupted (then of the samples until there).
        overwrite: replace an evaluation that is in `out`.
        report: write evaluation.html to `out` too, one page with everything that opens without a network, and its
            figures: evaluation-examples.png, and evaluation-curves.png with sanity=True.
        resume: go on with the evaluation that was interrupted in `out`; begin where there is none; a whole one is
            returned as it is. An attack that failed before the interruption stays out.

    Raises:
        ValueError, TypeError: bad argument or data, before any work; or the model's output or the labels are wrong; or
            `resume` with an evaluation in `out` that has other settings, weights or data: it says what differs.
        FileExistsError: `out` holds an evaluation, and neither `overwrite` nor `resume` says what to do with it.
        OSError: `out` cannot be written to: looked at before any work; at the end, ``error.report`` has the numbers.
        AttackFailed: a callable attack raised. In the first batch it stops everything; later the other attacks are
            finished first, written to `out`, and attached as ``error.report``.
    """
    return run(
        Request(
            model,
            data,
            attacks=attacks,
            eps=eps,
            norm=norm,
            batch_size=batch_size,
            seed=seed,
            precision=precision,
            split=split,
            limit=limit,
            shard=shard,
            data_root=data_root,
            sanity=sanity,
            progress=progress,
            out=out,
            overwrite=overwrite,
            report=report,
            resume=resume,
        )
    )
