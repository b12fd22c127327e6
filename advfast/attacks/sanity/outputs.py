"""Findings about what a model returns: no logits, or others in the next pass or in another batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from . import borrowed
from .finding import Finding, Value
from .probe import Probe

PASSES = 5
"""On the same images, for a model that draws."""

_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far two passes may differ by the order of sums alone, relative to the spread of a sample's logits."""
_TF32 = 1e-2
"""The same where matrix products of float32 are made with 10 bits."""
_DRAWN = 1e-6
"""The same where the model was seen to draw: then any difference is meant."""
_SUM = 1e-3


def tolerance(x: Tensor) -> float:
    """How far the logits of the same images may differ and still be the same up to rounding."""
    if x.dtype == torch.float32 and x.device.type == "cuda":
        fast = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
        return _TF32 if fast else _ROUNDING[x.dtype]
    return _ROUNDING.get(x.dtype, 1e-4)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """[B] the largest difference of two logits of a sample, relative to their spread among its classes."""
    a, b = a.double(), b.double()
    spread = (a.amax(1) - a.amin(1)).clamp(min=1e-30)
    # A sample whose logits are all the same is compared with the others' size.
    spread = torch.maximum(spread, 1e-3 * spread.mean())
    return torch.nan_to_num((a - b).abs().amax(1) / spread, nan=0.0, posinf=0.0)


def nonfinite(logits: Tensor) -> Iterator[Finding]:
    wrong = int((~logits.isfinite()).any(1).sum())
    if wrong:
        yield Finding(
            "nonfinite",
            f"{wrong} of {len(logits)} samples have NaN or infinity among their logits on clean images",
            "look for an overflow (16 bits, log of 0) in the model: such samples count as wrong or hide their "
            "gradient, and neither says something about robustness",
            {"samples": len(logits), "nonfinite": wrong},
        )


def probabilities(logits: Tensor) -> Iterator[Finding]:
    """Nothing for a single class or for logits that are not finite."""
    values = logits.double()
    if logits.shape[1] < 2 or not bool(values.isfinite().all()):
        return
    sums = values.sum(1)
    if bool((values >= 0).all()) and bool(((sums - 1).abs() < _SUM).all()):
        yield Finding(
            "probabilities",
            "the model returns probabilities (none below 0, each row sums to 1), not logits: the losses of the "
            "attacks apply a second softmax, and the model's own loses the gradient where it is sure",
            "return what goes into the softmax",
            {"least": float(values.min()), "largest": float(values.max())},
        )
        return
    total = torch.logsumexp(values, 1)
    if bool((values <= _SUM).all()) and bool((total.abs() < _SUM).all()):
        yield Finding(
            "log-probabilities",
            "the model returns log-probabilities; made by log_softmax they do no harm, made as log(softmax) they "
            "lose the gradient where the model is sure",
            "return what goes into the softmax",
            {"least": float(values.min()), "largest": float(values.max())},
        )


def few_classes(classes: int, targets: int) -> Iterator[Finding]:
    if classes > targets:
        return
    if classes < 4:
        message = (
            f"the model has {classes} classes, and the targeted DLR loss is defined for 4 or more: targeted attacks "
            "follow another loss"
        )
    else:
        message = f"the model has {classes} classes, and so {classes - 1} wrong ones for {targets} targets"
    yield Finding(
        "few-classes",
        message,
        "take fewer targets, more restarts, or untargeted attacks; numbers of other work with more classes do not "
        "compare",
        {"classes": classes, "targets": targets},
    )


def randomised(probe: Probe, x: Tensor, labels: Tensor, first: Tensor) -> Iterator[Finding]:
    """Finds draws that show: from torch's generators any difference counts, from others one beyond rounding.

    Args:
        first: [B, K] logits of x from an earlier pass.
    """
    before = borrowed.states(x.device)
    difference = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    right = [int((first.argmax(1) == labels).sum())]
    changed = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for _ in range(PASSES - 1):
        logits = probe.logits(x)
        difference = torch.maximum(difference, apart(first, logits))
        changed |= logits.argmax(1) != first.argmax(1)
        right.append(int((logits.argmax(1) == labels).sum()))
    after = borrowed.states(x.device)
    drew = not all(map(torch.equal, before, after))
    largest = float(difference.amax())
    if largest <= (_DRAWN if drew else tolerance(x)):
        return
    yield Finding(
        "randomised",
        f"the logits of the same images differ by up to {largest:.2g} of their spread in {PASSES} passes, "
        f"{int(changed.sum())} of {len(x)} predictions change: the model is random, and one gradient or one "
        "prediction says little",
        "average gradients over passes (EoT: AutoAttack version='rand', PGDAttack(eot=20)) and repeat the evaluation "
        "with other seeds",
        {
            "difference": largest,
            "predictions_changed": int(changed.sum()),
            "samples": len(x),
            "least_right": min(right),
            "most_right": max(right),
            "torch_generator": int(drew),
        },
    )


def batch_dependent(
    model: object, probe: Probe, x: Tensor, labels: Tensor, whole: Tensor
) -> Iterator[Finding]:
    """Half of the images alone against the same images among all; fewer than 4 are not looked at."""
    half = len(x) // 2
    if half < 2:
        return
    alone = probe.logits(x[:half])
    difference = float(apart(whole[:half], alone).amax())
    if difference <= 10 * tolerance(x):
        return
    changed = int((alone.argmax(1) != whole[:half].argmax(1)).sum())
    layers = _batch_layers(model)
    because = f" ({layers} BN layers without running statistics)" if layers else ""
    values: dict[str, Value] = {"difference": difference, "predictions_changed": changed}
    yield Finding(
        "batch-dependent",
        f"in eval mode the logits of a sample change with the rest of its batch{because}, by up to {difference:.2g} of "
        f"their spread, and {changed} of {half} predictions with them: an attack on one batch is not one on another, "
        "and samples that leave the batch change those that stay",
        "give BN running statistics (track_running_stats=True, training=False), or evaluate samples one at a time",
        {**values, "samples": half, "layers": layers},
    )


def _batch_layers(model: object) -> int:
    """BN layers that use the batch's statistics even in eval mode."""
    if not isinstance(model, nn.Module):
        return 0
    kinds = (nn.modules.batchnorm._BatchNorm,)
    return sum(isinstance(m, kinds) and m.running_mean is None for m in model.modules())
