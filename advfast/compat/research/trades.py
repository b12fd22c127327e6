"""trades_loss, and the evaluation that goes with it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advfast.attacks import PGDAttack

from .opened import NORMS, Model, check_engine, logits_of


def _published_kl(logits: Tensor, clean: Tensor) -> Tensor:
    """KL(clean probabilities || softmax(logits)), [B], in the operations of the published loop."""
    return F.kl_div(F.log_softmax(logits, 1), clean, reduction="none").sum(1)


def trades_loss(
    model: nn.Module,
    x_natural: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer | None,
    step_size: float = 0.003,
    epsilon: float = 0.031,
    perturb_steps: int = 10,
    beta: float = 1.0,
    distance: str = "l_inf",
    *,
    repeat_clean: bool = True,
    **engine: Any,
) -> Tensor:
    """The loss of TRADES, a scalar: CE(clean) + beta * KL(clean || adversarial) as a mean over the batch.

    Crafts in eval mode, computes the loss in train mode with gradients to the weights, and leaves the model in train
    mode (a frozen submodule of a model in train mode stays frozen). Clears the optimiser's gradients before the loss.

    Args:
        x_natural: [B, ...] in [0, 1].
        y: [B] integer classes.
        optimizer: None: no gradients are cleared.
        step_size, epsilon: in pixel units; for "l_2" the step is 2 * epsilon / perturb_steps, as published.
        distance: "l_inf" or "l_2".
        repeat_clean: the published loss passes the clean images through the model twice, which moves running statistics
            twice (and draws dropout twice). False: once; the same value and gradient without dropout, in less time.
        engine: further settings of PGDAttack for the crafting.

    Raises:
        ValueError, TypeError: bad settings, before work starts.
    """
    check_engine(engine)
    if distance not in NORMS:
        raise ValueError(f"distance must be 'l_inf' or 'l_2', got {distance!r}")
    x_natural = x_natural.detach()
    noise = 0.001 * torch.randn_like(x_natural)
    if distance == "l_2":
        # Drawn once more, as published: the same seed gives the same start.
        noise = 0.001 * torch.randn_like(x_natural)
        step_size = 2 * epsilon / max(perturb_steps, 1)
    labels, loss = None, "kl"
    if not engine.get("fold", True):
        labels, loss = F.softmax(logits_of(model, x_natural, "eval"), 1), _published_kl  # type: ignore[assignment]
    attack = PGDAttack(
        model, epsilon, step_size, perturb_steps, True, norm=NORMS[distance], loss=loss, start="torch",
        l2_order="box-ball-box", **engine,
    )  # fmt: skip
    x_adv = attack(x_natural, labels, init=(x_natural + noise).clamp_(0, 1))
    if isinstance(model, nn.Module) and not model.training:
        model.train()
    if optimizer is not None:
        optimizer.zero_grad()
    clean = model(x_natural)
    adversarial = model(x_adv)
    reference = model(x_natural) if repeat_clean else clean
    robust = F.kl_div(F.log_softmax(adversarial, 1), F.softmax(reference, 1), reduction="sum")
    return F.cross_entropy(clean, y) + beta * (1.0 / len(x_natural)) * robust


def pgd_whitebox(
    model: Model,
    X: Tensor,
    y: Tensor,
    epsilon: float = 0.031,
    num_steps: int = 20,
    step_size: float = 0.003,
    *,
    random: bool = True,
    bn: str = "eval",
    **engine: Any,
) -> tuple[Tensor, Tensor]:
    """(errors on X, errors on PGD's result), numbers of samples as float tensors; linf, the model in eval mode.

    Args:
        X: [B, ...] in [0, 1].
        y: [B] integer classes.
        epsilon, step_size: in pixel units.
        random: uniform random start; args.random there.
        bn, engine: settings of PGDAttack.
    """
    settings = {"start": "torch", **engine} if "seed" not in engine else engine
    attack = PGDAttack(model, epsilon, step_size, num_steps, random, bn=bn, **settings)
    clean, crafted = (logits_of(model, images, bn) for images in (X, attack(X, y)))
    return (clean.argmax(1) != y).float().sum(), (crafted.argmax(1) != y).float().sum()


_pgd_whitebox = pgd_whitebox
