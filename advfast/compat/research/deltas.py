"""attack_pgd in its two published forms; both return the perturbation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from advfast.attacks import PGDAttack
from advfast.attacks.losses import ce
from advfast.kernels.pgd.api import Number

from .opened import NORMS, Model, check_engine, logits_of, opened, per_channel


def _uniform(images: Tensor, epsilon: Number) -> Tensor:
    """Uniform noise within +-epsilon; one value a channel: drawn channel by channel, as Fast does."""
    noise = torch.zeros_like(images)
    if not isinstance(epsilon, Tensor):
        return noise.uniform_(-epsilon, epsilon)
    limits = epsilon.flatten().tolist()
    if len(limits) == 1:
        return noise.uniform_(-limits[0], limits[0])
    if len(limits) != images.shape[1]:
        raise ValueError(
            f"epsilon must be a number or {images.shape[1]} values, one a channel, got {len(limits)}"
        )
    for channel, limit in enumerate(limits):
        noise[:, channel].uniform_(-limit, limit)
    return noise


def _in_l2_ball(images: Tensor, epsilon: Number) -> Tensor:
    """A random direction, with a length that is uniform in 0 .. epsilon."""
    noise = torch.empty_like(images).normal_()
    length = noise.flatten(1).norm(p=2, dim=1).reshape(-1, *[1] * (images.dim() - 1))
    return noise * (torch.zeros_like(length).uniform_(0, 1) / length * epsilon)


def _worst(
    attack: PGDAttack,
    images: Tensor,
    labels: Tensor,
    noise: Callable[[], Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    restarts: int,
    limits: tuple[Number, Number],
) -> Tensor:
    """[B, ...] for each sample the perturbation of the restart whose last iterate has the highest loss."""
    if isinstance(restarts, bool) or not isinstance(restarts, int) or restarts < 1:
        raise ValueError(f"restarts must be an integer >= 1, got {restarts!r}")
    lo, hi = (per_channel(limit, images) for limit in limits)
    centre = images.detach().clamp(lo, hi)
    attack.bounds = limits if not any(isinstance(v, Tensor) for v in limits) else (lo, hi)
    best, highest = torch.zeros_like(images), torch.zeros(len(images), device=images.device)
    for _ in range(restarts):
        start = (centre + noise()).clamp_(lo, hi)
        x = attack(centre, labels, init=start)
        if restarts == 1:
            return x - images
        value = loss(logits_of(attack.model, x, attack.bn), labels).to(highest)
        better = (value >= highest).reshape(-1, *[1] * (images.dim() - 1))
        best = torch.where(better, x - images, best)
        highest = torch.maximum(value, highest)
    return best


def attack_pgd_rice(
    model: Model,
    X: Tensor,
    y: Tensor,
    epsilon: Number,
    alpha: Number,
    attack_iters: int,
    restarts: int,
    norm: str,
    early_stop: bool = False,
    mixup: bool = False,
    y_a: Tensor | None = None,
    y_b: Tensor | None = None,
    lam: float | None = None,
    *,
    normalize: Model | None = None,
    lower_limit: Number = 0.0,
    upper_limit: Number = 1.0,
    bn: str | None = None,
    **engine: Any,
) -> Tensor:
    """attack_pgd of robust_overfitting: the perturbation delta [B, ...] of un-normalised images.

    Args:
        model: images -> logits [B, K].
        X: [B, ...] in lower_limit .. upper_limit.
        y: [B] integer classes.
        epsilon, alpha: radius and step size, in the units of X; numbers, or (l_inf) one value a channel.
        norm: "l_inf" or "l_2".
        early_stop: a sample that is misclassified at an iterate stays there.
        mixup: raise lam * CE(y_a) + (1 - lam) * CE(y_b) in place of CE(y).
        normalize: applied to the images before the model; their global function of that name.
        lower_limit, upper_limit: the box of X; numbers or one value a channel.
        bn: of PGDAttack; None: the model in the modes in which it comes.
        engine: further settings of PGDAttack.

    Raises:
        ValueError, TypeError: bad settings, before work starts.
    """
    check_engine(engine)
    if norm not in NORMS:
        raise ValueError(f"norm must be 'l_inf' or 'l_2', got {norm!r}")
    loss: Any = ce
    if mixup:
        if y_a is None or y_b is None or lam is None:
            raise ValueError("mixup=True needs y_a, y_b and lam")
        # The labels of the whole batch: no sample may leave it.
        engine = {"cycles": "off", **engine}

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            return lam * ce(logits, y_a) + (1 - lam) * ce(logits, y_b)

    model, bn = opened(model, normalize, bn)
    eps, step = (per_channel(v, X) if isinstance(v, Tensor) else v for v in (epsilon, alpha))
    attack = PGDAttack(
        model, eps, step, attack_iters, False, norm=NORMS[norm], bn=bn,
        loss=loss if mixup else "ce", early_stop=early_stop, **engine,
    )  # fmt: skip
    draw = _uniform if norm == "l_inf" else _in_l2_ball
    return _worst(
        attack, X, y, lambda: draw(X, epsilon), loss, restarts, (lower_limit, upper_limit)
    )


def attack_pgd_fast(
    model: Model,
    X: Tensor,
    y: Tensor,
    epsilon: Number,
    alpha: Number,
    attack_iters: int,
    restarts: int,
    opt: object = None,
    *,
    lower_limit: Number | None = None,
    upper_limit: Number | None = None,
    bn: str | None = None,
    **engine: Any,
) -> Tensor:
    """attack_pgd of fast_adversarial: the perturbation delta [B, ...] of normalised images; linf, samples stop early.

    Args:
        model: normalised images -> logits [B, K].
        X: [B, C, H, W], normalised.
        y: [B] integer classes.
        epsilon, alpha: in the units of X: numbers, or one value a channel ([C] or [C, 1, 1]).
        opt: there for the signature; loss scaling is the engine's (precision="fp16").
        lower_limit, upper_limit: what 0 and 1 are after normalisation, numbers or one value a channel; theirs are
            globals. 0 and 1 if epsilon is a number.
        bn, engine: as for `attack_pgd_rice`.

    Raises:
        ValueError, TypeError: bad settings, before work starts.
    """
    check_engine(engine)
    if (
        isinstance(epsilon, Tensor)
        and epsilon.numel() > 1
        and (lower_limit is None or upper_limit is None)
    ):
        raise ValueError(
            "with one epsilon a channel, lower_limit and upper_limit must be given: what 0 and 1 are after "
            "normalisation"
        )
    limits = (
        0.0 if lower_limit is None else lower_limit, 1.0 if upper_limit is None else upper_limit,
    )  # fmt: skip
    model, bn = opened(model, None, bn)
    eps, step = (per_channel(v, X) if isinstance(v, Tensor) else v for v in (epsilon, alpha))
    attack = PGDAttack(model, eps, step, attack_iters, False, bn=bn, early_stop=True, **engine)
    return _worst(attack, X, y, lambda: _uniform(X, epsilon), ce, restarts, limits)


def attack_pgd(
    model: Model,
    X: Tensor,
    y: Tensor,
    epsilon: Number,
    alpha: Number,
    attack_iters: int,
    restarts: int,
    norm: object = None,
    *args: Any,
    opt: object = None,
    **settings: Any,
) -> Tensor:
    """The attack_pgd that the call is written for: with a norm ("l_inf", "l_2") Rice et al.'s, else Fast's.

    Arguments and result as `attack_pgd_rice` and `attack_pgd_fast`.
    """
    if isinstance(norm, str):
        return attack_pgd_rice(
            model, X, y, epsilon, alpha, attack_iters, restarts, norm, *args, **settings
        )
    if args:
        raise TypeError(f"attack_pgd without a norm takes 8 arguments, got {8 + len(args)}")
    opt = norm if opt is None else opt
    return attack_pgd_fast(model, X, y, epsilon, alpha, attack_iters, restarts, opt, **settings)
