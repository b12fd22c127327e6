"""The settings of a PGD attack: a clear error for a bad one, or for two that contradict each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import nn

from advfast import _backend
from advfast.kernels.pgd.api import L2_ORDERS, check_norm

from . import checks
from .losses import check_loss
from .outputs import check_output
from .state import BN_MODES

if TYPE_CHECKING:
    from .pgd import PGDAttack

STARTS = ("philox", "torch")
PRECISIONS = ("fp32", "bf16", "fp16")


def check_settings(attack: PGDAttack) -> None:
    """
    Raises:
        TypeError, ValueError: what was wrong, expected and got.
    """
    a = attack
    if not callable(a.model):
        raise TypeError(f"model must be callable, got {type(a.model).__name__}")
    checks.check_radius(a.eps)
    if a.alpha is not None:
        checks.check_step(a.alpha)
    checks.check_count("steps", a.steps, 0)
    checks.check_count("restarts", a.restarts, 1)
    checks.check_count("targets", a.targets, 0)
    checks.check_count("eot", a.eot, 1)
    checks.check_count("compact_every", a.compact_every, 1)
    for name in ("batch_size", "max_bytes"):
        if getattr(a, name) is not None:
            checks.check_count(name, getattr(a, name), 1)
    if isinstance(a.momentum, bool) or not 0 <= a.momentum < math.inf:
        raise ValueError(f"momentum must be a finite number >= 0, got {a.momentum!r}")
    norm = check_norm("PGDAttack", a.norm)
    check_loss(a.loss)
    check_output(a.output)
    checks.check_choice("bn", a.bn, BN_MODES)
    checks.check_choice("precision", a.precision, PRECISIONS)
    checks.check_choice("compile", a.compile, ("auto", "off", "on"))
    checks.check_choice("capture", a.capture, ("auto", "off", "required"))
    checks.check_choice("cycles", a.cycles, ("auto", "off"))
    checks.check_choice("impl", a.impl, ("auto", *_backend.IMPLS))
    checks.check_choice("start", a.start, STARTS)
    checks.check_choice("l2_order", a.l2_order, L2_ORDERS)
    _check_together(a, norm)


def _check_together(a: PGDAttack, norm: str) -> None:
    if a.restarts > 1 and not a.random_start:
        raise ValueError(
            f"restarts={a.restarts} with random_start=False repeats the same run: "
            "set random_start=True or restarts=1"
        )
    if a.loss == "kl" and not a.random_start and a.steps:
        raise ValueError("loss='kl' has no gradient at the clean image: it needs random_start=True")
    if a.loss == "kl" and (a.targeted or a.targets):
        raise ValueError(
            "loss='kl' does not use labels: targeted must be False and targets must be 0"
        )
    if a.targets and a.targeted:
        raise ValueError(
            f"targets={a.targets} runs towards wrong classes to leave the right one: "
            "targeted must be False"
        )
    if a.compile == "on" and not a.fold:
        raise ValueError("compile='on' with fold=False, which asks for the bits of the plain loop")
    if a.compile == "on" and not isinstance(a.model, nn.Module):
        raise TypeError(f"compile='on' needs an nn.Module, got {type(a.model).__name__}")
    if a.start == "torch" and norm == "l1":
        raise ValueError("start='torch' is defined for linf and l2; for l1 use start='philox'")
    if a.bn != "eval" and not (a.batch_size is None and a.max_bytes is None):
        raise ValueError(
            f"bn={a.bn!r} takes its statistics over the whole batch: batch_size and max_bytes must be None"
        )
