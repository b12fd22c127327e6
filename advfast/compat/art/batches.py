"""Arrays in pieces through the engine: `PGDAttack`, or ART's own step where the engine has another."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from advfast.attacks import checks
from advfast.attacks.losses import LOSSES
from advfast.attacks.network import open_network
from advfast.attacks.outputs import selector
from advfast.attacks.pgd import PGDAttack
from advfast.attacks.ranking import FAILED, SUCCEEDED, choose
from advfast.attacks.state import crafting
from advfast.kernels import random_start

from .lp_steps import LpSettings, into_box, lp_steps
from .target import Target

_NORMS = {math.inf: "linf", 2.0: "l2", 1.0: "l1"}
_FUSED = (math.inf, 2.0)
Edge = float | list[float] | np.ndarray


@dataclass(frozen=True)
class Settings:
    """One `generate`. p: order of the norm; starts: number of random starts, 0 for none."""

    p: float
    eps: float | np.ndarray
    alpha: float | np.ndarray
    steps: int
    momentum: float | None
    targeted: bool
    starts: int
    batch_size: int
    verbose: bool

    def fitted(self, x: np.ndarray) -> Settings:
        """The same with eps and alpha at x's number of dimensions.

        Raises:
            ValueError, NotImplementedError: they do not fit x, or the norm.
        """
        if self.starts and self.p not in _NORMS:
            raise NotImplementedError(
                f"random starts exist for the norms inf, 2 and 1, not for {self.p:g}"
            )
        if not isinstance(self.eps, np.ndarray) or not isinstance(self.alpha, np.ndarray):
            return self
        shape = (1,) * (x.ndim - self.eps.ndim) + self.eps.shape
        if len(shape) != x.ndim or any(
            a not in (1, b) for a, b in zip(shape, x.shape, strict=True)
        ):
            raise ValueError(
                f"eps of shape {self.eps.shape} does not broadcast over x of shape {x.shape}"
            )
        eps = self.eps.reshape(shape)
        if self.p != math.inf:
            first = (slice(None), *[slice(0, 1)] * (x.ndim - 1))
            one = eps[first]
            if not np.array_equal(np.broadcast_to(one, shape), eps):
                raise NotImplementedError(
                    f"for norm {self.p:g} eps must be one value a sample, got shape {self.eps.shape}"
                )
            eps = one
        values = {**vars(self), "eps": eps, "alpha": self.alpha.reshape(shape)}
        return Settings(**values)


class Batches:
    """Runs settings over arrays; its PGDAttack, with what that prepared, stays between calls."""

    def __init__(self, fold: bool, precision: str) -> None:
        checks.check_choice("precision", precision, ("fp32", "bf16", "fp16"))
        self.fold = fold
        self.precision = precision
        self._attack: PGDAttack | None = None

    @torch.inference_mode(False)  # a tensor made in that mode cannot be attacked
    def run(
        self,
        target: Target,
        settings: Settings,
        x: np.ndarray,  # [N, ...]
        labels: np.ndarray | None,  # [N] or [N, K]
        mask: np.ndarray | None,  # bool, broadcasts over x
    ) -> np.ndarray:
        """float32, the shape of x."""
        settings = settings.fitted(x)
        result = x.astype(np.float32)
        if settings.steps == 0 or not len(x) or not np.any(settings.alpha):
            return result
        low, high = _edges(target.bounds, x)
        fused = settings.p in _FUSED and not isinstance(low, np.ndarray)
        if not fused and self.precision != "fp32":
            raise ValueError(
                f"precision={self.precision!r} is built for the norms inf and 2, with a box that "
                "is the same for all features of a channel"
            )
        # From numpy's generator: np.random.seed governs a script that was written for ART.
        seed = int(np.random.randint(2**63 - 1)) if settings.starts else 0
        if fused:
            attack = self._configured(target, settings, seed, (low, high))
        begins = range(0, len(x), settings.batch_size)
        for begin in tqdm(
            begins, desc="PGD", unit="batch", leave=False, disable=not settings.verbose
        ):
            rows = slice(begin, min(begin + settings.batch_size, len(x)))

            def piece(values, rows: slice = rows):
                """What of the values belongs to these rows, on the device."""
                if not isinstance(values, np.ndarray):
                    return values
                values = values[rows] if len(values) == len(x) else values
                return torch.from_numpy(np.ascontiguousarray(values)).to(target.device)

            images, known = piece(result), piece(labels)
            ids = torch.arange(rows.start, rows.stop, device=target.device)
            eps, alpha = (
                piece(value.astype(np.float32) if isinstance(value, np.ndarray) else float(value))
                for value in (settings.eps, settings.alpha)
            )
            if fused:
                attack.eps, attack.alpha = eps, alpha
                made = attack(images, known, sample_ids=ids, mask=piece(mask))
            else:
                own = LpSettings(
                    settings.p, eps, alpha, settings.steps, settings.momentum,
                    _on(low, images), _on(high, images),
                )  # fmt: skip
                made = self._by_own_step(
                    target, settings, own, images, known, piece(mask), seed, ids
                )
            result[rows] = made.cpu().numpy()
        return result

    def _configured(
        self, target: Target, settings: Settings, seed: int, bounds: tuple
    ) -> PGDAttack:
        if self._attack is None:
            self._attack = PGDAttack(
                target.model, fold=self.fold, precision=self.precision, l2_order="box-ball-box"
            )
        attack = self._attack
        attack.model = target.model
        attack.norm = _NORMS[settings.p]
        attack.loss = target.loss
        attack.steps = settings.steps
        attack.random_start = settings.starts > 0
        attack.restarts = max(1, settings.starts)
        attack.targeted = settings.targeted
        attack.bounds = None if bounds[0] is None else bounds
        attack.momentum = settings.momentum or 0.0
        attack.seed = seed
        return attack

    def _by_own_step(
        self,
        target: Target,
        settings: Settings,
        own: LpSettings,
        images: Tensor,
        labels: Tensor | None,
        mask: Tensor | None,
        seed: int,
        ids: Tensor,
    ) -> Tensor:
        """One piece without the fused step."""
        loss = LOSSES[target.loss] if isinstance(target.loss, str) else target.loss
        sign = -1 if settings.targeted else 1
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(images.device.type, enabled=False),
            crafting(target.model, "eval"),
        ):
            network = open_network(
                target.model,
                input_dtype=torch.float32,
                select=_logits,
                sixteen_bit=False,
                fold=self.fold,
                deterministic=True,
                example=images,
            )
            known = network.logits(images).argmax(1) if labels is None else labels

            def objective(logits: Tensor) -> Tensor:
                return sign * loss(logits, known)

            made = []
            for number in range(max(1, settings.starts)):
                start = images.clone()
                if settings.starts:
                    start = random_start(
                        images, eps=own.eps, norm=_NORMS[own.p], bounds=None, seed=seed,
                        offset=number, sample_ids=ids,
                    )  # fmt: skip
                    if mask is not None:
                        start = torch.where(mask, start, images)
                    start = into_box(start, own)
                made.append(lp_steps(network, start, images, objective, own, mask))
            if len(made) == 1:
                return made[0]
            # As the engine chooses: a result that succeeds, then the one with the higher objective.
            logits = [network.logits(x) for x in made]
            classes = known.argmax(1) if known.dim() == 2 else known
            hits = torch.stack([(z.argmax(1) == classes) == settings.targeted for z in logits])
            kept = choose(
                torch.where(hits, SUCCEEDED, FAILED), torch.stack([objective(z) for z in logits])
            )
            return torch.stack(made)[kept, torch.arange(len(images), device=images.device)]


def _logits(found: object) -> Tensor:
    logits = selector(None)(found)
    return checks.check_logits(logits, len(logits), 1, "ce")


def _edges(bounds: tuple | None, x: np.ndarray) -> tuple[Edge | None, Edge | None]:
    """The box as the fused step takes it (numbers, or one a channel), else two arrays [1, ...] of one input's shape.

    Raises:
        ValueError: clip_values do not fit x.
    """
    if bounds is None:
        return None, None
    arrays = [np.asarray(edge, np.float32) for edge in bounds]
    if all(edge.size == 1 for edge in arrays):
        return float(arrays[0].reshape(())), float(arrays[1].reshape(()))
    shape = (1, *x.shape[1:])
    try:
        full = [np.ascontiguousarray(np.broadcast_to(edge, shape)) for edge in arrays]
    except ValueError:
        shapes = " and ".join(str(edge.shape) for edge in arrays)
        raise ValueError(
            f"clip_values of shape {shapes} do not fit inputs of shape {x.shape[1:]}"
        ) from None
    channels = [edge.reshape(x.shape[1], -1) for edge in full]
    if all((edge == edge[:, :1]).all() for edge in channels):
        return channels[0][:, 0].tolist(), channels[1][:, 0].tolist()
    return full[0], full[1]


def _on(edge: Edge | None, x: Tensor) -> Tensor | None:
    """An edge of the box as a tensor that broadcasts over x."""
    if edge is None:
        return None
    tensor = torch.tensor(np.asarray(edge, np.float32), device=x.device)
    return tensor.reshape(1, -1, *[1] * (x.dim() - 2)) if tensor.dim() == 1 else tensor
