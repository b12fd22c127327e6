"""The classes with a perturb method: advertorch, adversarial_robustness_pytorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from advfast.attacks import PGDAttack
from advfast.kernels.pgd.api import Number

from .opened import Model, check_engine, opened


class LinfPGDAttack:
    """PGD as advertorch writes it: ``LinfPGDAttack(predict, ...).perturb(x, y)``.

    All arguments are attributes that may be changed between calls.

    Args:
        predict: images -> logits [B, K].
        loss_fn: of (logits, labels), raised (targeted: lowered); None: cross-entropy.
        eps: radius in the units of x; a number or one value a sample, [B].
        eps_iter: step size, likewise.
        clip_min, clip_max: the box.
        rand_init_type: "uniform" or "normal" (0.001 times a normal draw, as in TRADES).
        with_delta: `perturb` returns (x_adv, x_adv - x) as adversarial_robustness_pytorch does; False: x_adv alone, as
            advertorch does.
        bn: of PGDAttack; None: the model in the modes in which it comes.
        engine: further settings of PGDAttack.
    """

    norm = "linf"

    def __init__(
        self,
        predict: Model,
        loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        eps: Number = 0.3,
        nb_iter: int = 40,
        eps_iter: Number = 0.01,
        rand_init: bool = True,
        clip_min: float = 0.0,
        clip_max: float = 1.0,
        targeted: bool = False,
        rand_init_type: str = "uniform",
        *,
        with_delta: bool = True,
        bn: str | None = None,
        **engine: Any,
    ) -> None:
        check_engine(engine)
        self.predict = predict
        self.loss_fn = loss_fn
        self.eps = eps
        self.nb_iter = nb_iter
        self.eps_iter = eps_iter
        self.rand_init = rand_init
        self.clip_min = clip_min
        self.clip_max = clip_max
        self.targeted = targeted
        self.rand_init_type = rand_init_type
        self.with_delta = with_delta
        self.bn = bn
        self.engine = engine

    def perturb(self, x: Tensor, y: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Adversarial images for x [B, ...]; y [B]: classes (targeted: to reach), None: the predictions on x."""
        model, bn = opened(self.predict, None, self.bn)
        per_sample = [-1, *[1] * (x.dim() - 1)]
        eps, step = (
            value.to(x).reshape(per_sample) if isinstance(value, Tensor) else value
            for value in (self.eps, self.eps_iter)
        )
        attack = PGDAttack(
            model, eps, step, self.nb_iter, False, norm=self.norm, targeted=self.targeted, bn=bn,
            loss="ce" if self.loss_fn is None else self.loss_fn,
            bounds=(self.clip_min, self.clip_max), l2_order="box-ball-box", **self.engine,
        )  # fmt: skip
        x = x.detach()
        centre = x.clamp(self.clip_min, self.clip_max)
        if self.rand_init:
            start = (centre + self._noise(x, eps)).clamp_(self.clip_min, self.clip_max)
            x_adv = attack(centre, y, init=start)
        else:
            x_adv = attack(centre, y)
        return (x_adv, x_adv - x) if self.with_delta else x_adv

    def _noise(self, x: Tensor, eps: Number) -> Tensor:
        if self.rand_init_type == "normal":
            return 0.001 * torch.randn_like(x)
        if self.rand_init_type != "uniform":
            raise ValueError(
                f"rand_init_type must be 'uniform' or 'normal', got {self.rand_init_type!r}"
            )
        return self._uniform(x, eps)

    def _uniform(self, x: Tensor, eps: Number) -> Tensor:
        return torch.empty_like(x).uniform_(-1, 1) * eps


class L2PGDAttack(LinfPGDAttack):
    """`LinfPGDAttack` in an l2 ball: the box inside the step, then the ball."""

    norm = "l2"

    def _uniform(self, x: Tensor, eps: Number) -> Tensor:
        # Uniform in the box, then shortened to the ball.
        noise = torch.empty_like(x).uniform_(self.clip_min, self.clip_max) - x
        length = noise.flatten(1).norm(p=2, dim=1).reshape(-1, *[1] * (x.dim() - 1))
        return noise * (eps / length).clamp(max=1.0)
