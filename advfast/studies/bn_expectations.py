"""What `bn_estimators` is expected to find, written down on 2026-11-30, before its first run.

The numbers of digits are those that were measured earlier for a like network (three seeds, other probe images): in eval
mode before training an effective rank of 1.4 to 1.5 for raw and 2.8 for standardised images, lambda_1 / trace 0.95 and
0.83; in train mode 19 to 20 and 0.33 to 0.36; PGD-20 64.9 with crafting in train mode, 66.6 in eval mode, and
at most 1 point away in batches that normalise themselves.
"""

from __future__ import annotations

from .judge import compared, mean_of
from .result import Expectation, StudyResult


def of_any(result: StudyResult) -> list[Expectation]:
    """For any data and network."""
    return [_coincide(result), _calibrated(result)]


def of_digits(result: StudyResult) -> list[Expectation]:
    """For digits and the default network."""
    rank, share = "init_effective_rank", "init_top_share"
    raw = {"input_norm": "off", "statistics": "running"}
    normalised = {"input_norm": "on", "statistics": "running"}
    batch = {"input_norm": "off", "statistics": "batch"}
    eval_mode = {"statistics": "running", "crafting": "eval"}
    train_mode = {"statistics": "running", "crafting": "train"}
    return [
        compared(
            result, "before training, running statistics: effective rank of raw images below that of standardised",
            rank, raw, normalised, lambda a, b: a < b,
        ),
        compared(
            result, "before training, running statistics: lambda_1 / trace of raw images above that of standardised",
            share, raw, normalised, lambda a, b: a > b,
        ),
        compared(
            result, "before training, raw images: effective rank of batch statistics ten times that of running or more",
            rank, batch, raw, lambda a, b: a >= 10 * b,
        ),
        compared(
            result, "before training: lambda_1 / trace of batch statistics below that of running, images standardised",
            share, batch, normalised, lambda a, b: a < b,
        ),
        compared(
            result, "running statistics: PGD-20 with crafting in eval mode not below that in train mode",
            "pgd20", eval_mode, train_mode, lambda a, b: a >= b,
        ),
        _in_batches(result),
        *of_any(result),
    ]  # fmt: skip


def _calibrated(result: StudyResult) -> Expectation:
    text = "training brings the kernels of running and of batch statistics together"
    values = {"statistics": "running"}
    before = mean_of(result, "init_eval_batch_distance", values)
    after = mean_of(result, "eval_batch_distance", values)
    if before is None or after is None:
        return Expectation(text, "not run", None)
    return Expectation(text, f"distance {before:.3g} before, {after:.3g} after", after < before)


def _coincide(result: StudyResult) -> Expectation:
    text = "batch statistics: crafting in eval and in train mode give the same rows"
    measures = [name for name in result.measures if name != "seconds"]
    pairs = same = 0
    for row in result.select(statistics="batch", crafting="eval"):
        where = {name: row[name] for name in result.varied} | {"crafting": "train"}
        for other in result.select(**where):
            pairs += 1
            same += all(row[name] == other[name] for name in measures)
    if not pairs:
        return Expectation(text, "not run", None)
    return Expectation(text, f"{same} of {pairs} pairs", same == pairs)


def _in_batches(result: StudyResult) -> Expectation:
    text = "running statistics: PGD-20 in test batches that normalise themselves within 1 point"
    values = {"statistics": "running"}
    a, b = mean_of(result, "pgd20", values), mean_of(result, "batch_pgd20", values)
    if a is None or b is None:
        return Expectation(text, "not run", None)
    return Expectation(text, f"{a:.3f} against {b:.3f}", abs(a - b) <= 0.01)
