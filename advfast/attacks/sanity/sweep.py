"""`sweep`: PGD against its radius and its number of steps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from advfast.attacks import checks
from advfast.attacks.losses import LOSSES
from advfast.attacks.outputs import Output
from advfast.attacks.pgd import PGDAttack
from advfast.attacks.state import bare_model, model_device
from advfast.kernels.pgd.api import check_norm

from .borrowed import borrowed, generators
from .finding import Finding, Sweep
from .probe import Probe

EPS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Radii, in units of that of the evaluation."""
STEPS = (1, 2, 5, 10, 20, 50)
_LOSSES = ("ce", "margin", "dlr")
_USUAL = 20
"""Steps at each radius."""
_NEAR_ZERO = 0.05
"""Accuracy that may be left where the ball is the whole box."""
_NOISE = 0.02
_LOSS_NOISE = 0.05
_STILL = 1e-6


def sweep(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    seed: int = 0,
    samples: int = 128,
    loss: str = "ce",
    eot: int = 1,
    output: Output = None,
    precision: str = "fp32",
) -> Sweep:
    """Accuracy of PGD against its radius and its number of steps, on samples that are right when clean.

    Against the radius: 20 steps of a quarter of it. Against the steps, at `eps`: n steps of 2.5 eps / n, within eps/4
    and eps, so that one step is a full one. One random start each, last iterate. Codes: "eps-flat",
    "steps-flat", "loss-not-rising", "single-step-stronger", "no-gradient".

    Cost: 208 gradients and as many forward passes of each sample (times `eot`). The model is left as it was found, no
    global generator moves.

    Args:
        model: images [B, ...] in [0, 1] -> logits [B, K].
        images: [B, ...], of which the first `samples` that the model has right are used.
        labels: [B] classes, or probabilities [B, K].
        eps, norm: of the evaluation; with eps 0 there is nothing to attack, and both curves hold the clean accuracy.
        seed: of the random starts.
        samples: most that are used.
        loss: "ce", "margin" or "dlr"; the curve of the loss is of this one.
        eot, precision: as for `PGDAttack`.
        output: where the logits are in what the model returns.

    Raises:
        TypeError, ValueError: bad arguments; the model's output has another shape.
    """
    if not callable(model):
        raise TypeError(f"model must be callable, got {type(model).__name__}")
    checks.check_radius(eps)
    norm = check_norm("sweep", norm)
    checks.check_count("samples", samples, 1)
    checks.check_count("seed", seed, 0)
    checks.check_choice("loss", loss, _LOSSES)
    model = bare_model(model)
    checks.check_images(images, model)
    labels = checks.classes_of(checks.check_labels(labels, images))
    device = model_device(model) or images.device
    with torch.inference_mode(False), generators(device, seed), borrowed(model):
        probe = Probe(model, output)
        x, labels = _right(probe, probe.images(images), labels, samples)
        if not len(x) or eps == 0:
            return Sweep([0.0], [1.0 if len(x) else 0.0], [], [], [], len(x))
        pgd = PGDAttack(
            model, loss=loss, eot=eot, seed=seed, norm=norm, output=output, precision=precision,
            capture="off",
        )  # fmt: skip
        blind = probe.gradients(x[:1], labels[:1], ("ce",)).reason
        return _Runs(probe, pgd, x, labels, eps, not blind).measure(blind)


def _right(probe: Probe, images: Tensor, labels: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """The first so many that the model has right."""
    kept: list[Tensor] = []
    count = 0
    for first in range(0, len(images), samples):
        part = slice(first, first + samples)
        right = (probe.logits(images[part]).argmax(1) == labels[part]).nonzero()[:, 0] + first
        kept.append(right[: samples - count])
        count += len(kept[-1])
        if count == samples:
            break
    chosen = torch.cat(kept) if kept else torch.zeros(0, dtype=torch.int64, device=images.device)
    return images[chosen], labels[chosen]


@dataclass
class _Runs:
    """The attack at several settings on the same samples."""

    probe: Probe
    pgd: PGDAttack
    x: Tensor
    labels: Tensor
    eps: float
    follows: bool
    """Whether there is a gradient; without one only the random starts are looked at."""

    def at(self, eps: float, alpha: float, steps: int) -> tuple[float, float]:
        """(accuracy, mean loss)"""
        self.pgd.eps, self.pgd.alpha, self.pgd.steps = eps, alpha, steps if self.follows else 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NaN in gradients shows in the curve
            found = self.pgd(self.x, self.labels)
        logits = self.probe.logits(found)
        right = (logits.argmax(1) == self.labels).double().mean()
        loss = LOSSES[str(self.pgd.loss)]
        return float(right), float(loss(logits, self.labels).double().mean())

    def measure(self, blind: str) -> Sweep:
        linf = self.pgd.norm == "linf"
        radii = dict.fromkeys(self.eps * factor for factor in EPS)
        if linf:
            radii = dict.fromkeys(min(radius, 1.0) for radius in radii)
        accuracy = {radius: self.at(radius, radius / 4, _USUAL)[0] for radius in radii}
        steps = [
            self.at(self.eps, self.eps * min(1.0, max(0.25, 2.5 / count)), count) for count in STEPS
        ]
        size = float(self.x[0].numel())
        widest = {"linf": 1.0, "l2": math.sqrt(size), "l1": size}[self.pgd.norm]
        result = Sweep(
            eps=[0.0, *radii],
            accuracy=[1.0, *accuracy.values()],
            steps=list(STEPS),
            step_accuracy=[found[0] for found in steps],
            step_loss=[found[1] for found in steps],
            samples=len(self.x),
            widest_eps=widest,
            widest_accuracy=self.at(widest, widest / 4, _USUAL)[0],
            start_loss=self.at(self.eps, self.eps / 4, 0)[1],
        )
        return replace(result, findings=tuple(findings(result, blind)))


def findings(of: Sweep, blind: str = "") -> Iterator[Finding]:
    """What is wrong about the curves.

    Args:
        blind: why there is no gradient, if there is none.
    """
    if blind:
        yield Finding(
            "no-gradient",
            f"there is no gradient to follow: {blind}; the curves are of random points alone",
            "wrap the step that breaks it in advfast.bpda, or use Square",
            {"reason": blind},
        )
    noise = max(_NOISE, 2 / of.samples)
    yield from _eps_flat(of, noise)
    if not blind:
        yield from _steps_flat(of)
    yield from _single_step(of, noise)


def _eps_flat(of: Sweep, noise: float) -> Iterator[Finding]:
    rises = max(
        (later - earlier, radius)
        for earlier, later, radius in zip(of.accuracy, of.accuracy[1:], of.eps[1:], strict=False)
    )
    left = of.widest_accuracy > _NEAR_ZERO
    if not left and rises[0] <= noise:
        return
    what = []
    if rises[0] > noise:
        what.append(
            f"PGD gets weaker with a larger radius ({100 * rises[0]:.1f} points at {rises[1]:.4g})"
        )
    if left:
        what.append(
            f"{100 * of.widest_accuracy:.1f} % are left at eps {of.widest_eps:.4g}, where any image is allowed and "
            "nothing can be left"
        )
    yield Finding(
        "eps-flat",
        f"{'; '.join(what)}: PGD does not find what is there",
        "look for a masked gradient (advfast.bpda, EoT, loss='dlr'), and take more steps; the robust accuracy at the "
        "eps of the evaluation is too high",
        {
            "widest_eps": of.widest_eps,
            "widest_accuracy": of.widest_accuracy,
            "largest_rise": rises[0],
            "accuracy": of.accuracy[of.eps.index(max(of.eps))],
        },
    )


def _steps_flat(of: Sweep) -> Iterator[Finding]:
    last, best = of.step_loss[-1], max(of.step_loss)
    if not last > of.start_loss + _STILL * abs(of.start_loss):
        yield Finding(
            "steps-flat",
            f"{of.steps[-1]} steps of PGD end with a loss of {last:.4g}, random points of the ball have "
            f"{of.start_loss:.4g}: the steps do nothing",
            "look for a zero gradient (advfast.bpda), try loss='dlr', and EoT",
            {"start_loss": of.start_loss, "loss": last, "accuracy": of.step_accuracy[-1]},
        )
    elif last < best - _LOSS_NOISE * (1 + abs(best)):
        where = of.steps[of.step_loss.index(best)]
        yield Finding(
            "loss-not-rising",
            f"the loss after {of.steps[-1]} steps, {last:.4g}, is below that after {where}, {best:.4g}: more steps do "
            "not find more",
            "try smaller steps, loss='dlr', restarts and EoT; the gradient may be noisy or masked",
            {"loss": last, "best_loss": best, "best_steps": where},
        )


def _single_step(of: Sweep, noise: float) -> Iterator[Finding]:
    one, many = of.step_accuracy[0], of.step_accuracy[-1]
    if many - one > noise:
        yield Finding(
            "single-step-stronger",
            f"one step leaves {100 * one:.1f} %, {of.steps[-1]} smaller ones leave {100 * many:.1f} %: the gradient "
            "near the image misleads",
            "try larger steps and restarts, loss='dlr', EoT and Square; the gradient is masked, or the loss saturated",
            {"one": one, "many": many, "steps": of.steps[-1]},
        )
