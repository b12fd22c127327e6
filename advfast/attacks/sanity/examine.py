"""`examine`: one batch, a dozen passes, and what they say about whether an attack can be trusted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from advfast.attacks import checks
from advfast.attacks.outputs import Output
from advfast.attacks.state import bare_model
from advfast.kernels.pgd.api import check_norm

from . import gradients, inputs, outputs
from .borrowed import Borrowed, borrowed, generators
from .finding import Finding
from .modes import train_mode
from .probe import Probe


def examine(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    seed: int = 0,
    output: Output = None,
    samples: int = 64,
    targets: int = 9,
) -> tuple[Finding, ...]:
    """Looks at a model as an attack would use it, and says what would make its robust accuracy too high.

    Codes: "train-mode" (only where the model is handed in in that mode: call it before anything switches to eval),
    "wide-box", "nonfinite", "probabilities", "log-probabilities", "few-classes", "randomised", "batch-dependent",
    "dynamic", "quantised", "no-gradient", "zero-gradient", "misleading-gradient".

    A healthy model costs 12 forward passes of up to `samples` images and 4 backward passes; one in train mode 2 forward
    passes more, one that rounds its input up to 11. It is left as it was found, weights included (of which a copy is
    held meanwhile), and no global generator of torch, numpy or Python moves.

    Args:
        model: images [B, ...] in [0, 1] -> logits [B, K].
        images: [B, ...] float, of which the first `samples` are used.
        labels: [B] classes, or probabilities [B, K]. Gradients are looked at where the model is right.
        eps, norm: of the attack.
        seed: of the random points.
        output: where the logits are in what the model returns.
        targets: of the targeted attacks, which need as many wrong classes.

    Raises:
        TypeError, ValueError: bad arguments; the model's output has another shape.
    """
    if not callable(model):
        raise TypeError(f"model must be callable, got {type(model).__name__}")
    checks.check_radius(eps)
    norm = check_norm("examine", norm)
    checks.check_count("seed", seed, 0)
    checks.check_count("samples", samples, 1)
    checks.check_count("targets", targets, 1)
    model = bare_model(model)
    checks.check_images(images, model)
    labels = checks.classes_of(checks.check_labels(labels, images))[:samples]
    if not len(images):
        return ()
    probe = Probe(model, output)
    with torch.inference_mode(False), generators(images.device, seed):
        x = probe.images(images[:samples])
        labels = labels.clone()

        def right() -> int:
            return int((probe.logits(x).argmax(1) == labels).sum())

        found = list(train_mode(model, right, len(x)))
        found += inputs.wide_box(x)
        with borrowed(model) as held:
            found += _in_eval(model, held, probe, x, labels, eps, norm, seed, targets)
    return tuple(found)


def _in_eval(
    model: object,
    held: Borrowed,
    probe: Probe,
    x: Tensor,
    labels: Tensor,
    eps: float,
    norm: str,
    seed: int,
    targets: int,
) -> list[Finding]:
    logits = probe.logits(x)
    moved = held.changed()
    found = [*outputs.nonfinite(logits), *outputs.probabilities(logits)]
    found += outputs.few_classes(logits.shape[1], targets)
    random = list(outputs.randomised(probe, x, labels, logits))
    found += random
    if not random and not moved:
        found += outputs.batch_dependent(model, probe, x, labels, logits)
        found += inputs.quantised(probe, x, logits, eps=eps, seed=seed)
    differentiates = False
    right = logits.argmax(1) == labels
    if bool(right.any()) and logits.shape[1] > 1:
        # At eps 0 there is no other point to look at.
        radius = eps or 1 / 255
        more, differentiates = gradients.look(
            probe,
            x[right],
            labels[right],
            classes=logits.shape[1],
            eps=radius,
            norm=norm,
            seed=seed,
        )
        found += more
    found += _dynamic(moved, differentiates)
    return found


def _dynamic(moved: list[str], differentiates: bool) -> list[Finding]:
    if not moved and not differentiates:
        return []
    what = []
    if differentiates:
        what.append("runs a backward pass inside its forward pass")
    if moved:
        what.append(
            f"changes its own weights or buffers in eval mode ({moved[0]}, {len(moved)} in all)"
        )
    return [
        Finding(
            "dynamic",
            f"the model {' and '.join(what)}: it adapts to what it is asked, and an "
            "attack on it as it was is none on it as it is",
            "attack the adaptation too (differentiate through it, or transfer from the model without it), and evaluate "
            "from the same state each time",
            {"changed": len(moved), "backward": int(differentiates)},
        )
    ]
