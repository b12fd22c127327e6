"""Gradient descent in a ball: on the engine, or step by step where a subclass overrides a hook."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from advfast.attacks import PGDAttack
from advfast.compat.modes import as_called, separates_samples, statistics_kept

from ..distances import l1, l2, linf, per_sample, within
from ..tensors import eagerpy_kind, unwrapped
from .base import (
    FixedEpsilonAttack,
    engine_model,
    get_criterion,
    goal_of,
    left_alone,
    raise_if_kwargs,
    verify_input_bounds,
)

HOOKS = (
    "get_loss_fn",
    "value_and_grad",
    "get_optimizer",
    "get_random_start",
    "normalize",
    "project",
)
BATCH_ELEMENTS = 2**20
"""Several radii share a batch of at most this many input elements (340 CIFAR images), or of B inputs where B is more:
no more memory than foolbox takes, and small inputs fill the machine."""


class Optimizer(ABC):
    """From normalised gradients to steps; made anew for each run."""

    @abstractmethod
    def __call__(self, gradient: Any) -> Any: ...


class GDOptimizer(Optimizer):
    def __init__(self, x: Any, stepsize: float) -> None:
        self.stepsize = stepsize

    def __call__(self, gradient: Any) -> Any:
        return self.stepsize * gradient


class BaseGradientDescent(FixedEpsilonAttack):
    """Steps along the normalised gradient of the cross-entropy, each projected onto the ball and clipped to the bounds.

    A subclass may override `get_loss_fn`, `value_and_grad`, `get_optimizer`, `get_random_start`, `normalize` and
    `project`. Then every step calls them, with EagerPy tensors if EagerPy is installed, as in foolbox, and with torch
    tensors if not or if the class sets `hook_tensors = "torch"`.

    Args:
        rel_stepsize: step size as a multiple of epsilon.
        abs_stepsize: step size in the units of the bounds; wins over rel_stepsize.
        steps: number of steps.
        random_start: start at a random point of the ball, drawn by torch's generator as foolbox draws it.
        fold: permits the engine to change the arithmetic within rounding, and to run all radii in one batch. False: the
            bits of foolbox's own loop.
    """

    engine_norm: ClassVar[str | None] = None
    """The norm of the engine whose step this is; None: there is none."""
    hook_tensors: ClassVar[str] = "auto"

    def __init__(
        self,
        *,
        rel_stepsize: float,
        abs_stepsize: float | None = None,
        steps: int,
        random_start: bool,
        fold: bool = True,
    ) -> None:
        self.rel_stepsize = rel_stepsize
        self.abs_stepsize = abs_stepsize
        self.steps = steps
        self.random_start = random_start
        self.fold = fold

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.hook_tensors not in ("auto", "torch"):
            raise ValueError(f"hook_tensors must be 'auto' or 'torch', got {cls.hook_tensors!r}")

    # --- hooks ---

    def get_loss_fn(self, model: Any, labels: Any) -> Callable[[Any], Any]:
        """A function of inputs [B, ...] whose scalar result is raised (targeted: lowered)."""
        classes, _ = unwrapped(labels, "labels")

        def loss(inputs: Any) -> Any:
            logits, restore = unwrapped(model(inputs), "outputs")
            return restore(F.cross_entropy(logits, classes, reduction="sum"))

        return loss

    def value_and_grad(self, loss_fn: Callable[[Any], Any], x: Any) -> tuple[Any, Any]:
        """(loss, its gradient with respect to x), detached; no `.grad` is written."""
        raw, restore = unwrapped(x)
        leaf = raw.detach().clone().requires_grad_()
        loss, _ = unwrapped(loss_fn(restore(leaf)), "the loss")
        (gradient,) = torch.autograd.grad(loss, leaf)
        return restore(loss.detach()), restore(gradient)

    def get_optimizer(self, x: Any, stepsize: float) -> Optimizer:
        return GDOptimizer(x, stepsize)

    @abstractmethod
    def get_random_start(self, x0: Any, epsilon: float) -> Any:
        """A random point of the ball around x0."""

    @abstractmethod
    def normalize(self, gradients: Any, *, x: Any, bounds: Any) -> Any:
        """The direction of a step, of length 1 in the norm of the attack."""

    @abstractmethod
    def project(self, x: Any, x0: Any, epsilon: float) -> Any:
        """x, within epsilon of x0."""

    # --- runs ---

    def run(self, model: Any, inputs: Any, criterion: Any, *, epsilon: float, **kwargs: Any) -> Any:
        """Perturbed inputs for one radius; arguments and errors as in a call."""
        raise_if_kwargs(kwargs)
        x, restore = unwrapped(inputs)
        verify_input_bounds(x, model)
        return restore(self._perturbed(model, x.detach(), get_criterion(criterion), [epsilon])[0])

    def _runs(
        self, model: Any, x: Tensor, criterion: Any, radii: list[float], kwargs: dict[str, Any]
    ) -> tuple[list[Tensor], list[Tensor]]:
        if not _is_ours(self, "run"):
            return super()._runs(model, x, criterion, radii, kwargs)
        raise_if_kwargs(kwargs)
        raw = self._perturbed(model, x, criterion, radii)
        if self._on_engine():
            # Inside the ball by construction. A tensor of its own: one may be changed in place.
            return raw, [y.clone() for y in raw]
        pairs = zip(raw, radii, strict=True)
        return raw, [self.distance.clip_perturbation(x, y, radius) for y, radius in pairs]

    def _check_criterion(self, criterion: Any) -> None:
        """Raises ValueError for a criterion that the attack cannot follow."""

    def _on_engine(self) -> bool:
        return self.engine_norm is not None and all(_is_ours(self, hook) for hook in HOOKS)

    def _perturbed(self, model: Any, x: Tensor, criterion: Any, radii: list[float]) -> list[Tensor]:
        self._check_criterion(criterion)
        classes, targeted = goal_of(criterion)
        for radius in radii:
            if not 0 <= radius < math.inf:
                raise ValueError(f"epsilons must be finite numbers >= 0, got {radius}")
        if self._on_engine():
            with statistics_kept(engine_model(model)):
                return self._by_engine(model, x, classes, targeted, radii)
        with left_alone(model):
            # Autograd cannot save what was made in inference mode.
            x, classes = (t.clone() if t.is_inference() else t for t in (x, classes))
            return [self._by_hooks(model, x, classes, targeted, radius) for radius in radii]

    def _stepsize(self, radius: float) -> float:
        return self.rel_stepsize * radius if self.abs_stepsize is None else self.abs_stepsize

    def _by_engine(
        self, model: Any, x: Tensor, classes: Tensor, targeted: bool, radii: list[float]
    ) -> list[Tensor]:
        network, bn = as_called(engine_model(model))
        attack = PGDAttack(
            network,
            steps=self.steps,
            random_start=False,
            norm=str(self.engine_norm),
            targeted=targeted,
            bounds=tuple(model.bounds),
            bn=bn,
            fold=self.fold,
        )
        starts = [self._start(x, radius, model.bounds) for radius in radii]
        # A radius of 0 leaves the inputs as they are.
        moving = [k for k, radius in enumerate(radii) if radius > 0]
        together = self.fold and len(moving) > 1 and separates_samples(network, bn)
        if together:
            found = _in_one_batch(
                attack,
                x,
                classes,
                [radii[k] for k in moving],
                [self._stepsize(radii[k]) for k in moving],
                [starts[k] for k in moving],
            )
        else:
            found = []
            for k in moving:
                attack.eps, attack.alpha = radii[k], self._stepsize(radii[k])
                found.append(attack(x, classes, init=starts[k]))
        by_radius = dict(zip(moving, found, strict=True))
        return [by_radius[k] if k in by_radius else x.clone() for k in range(len(radii))]

    def _start(self, x: Tensor, radius: float, bounds: Any) -> Tensor | None:
        if not self.random_start:
            return None
        return unwrapped(self.get_random_start(x, radius))[0].clamp(*bounds)

    def _by_hooks(
        self, model: Any, x0: Tensor, classes: Tensor, targeted: bool, radius: float
    ) -> Tensor:
        kind: Callable[[Tensor], Any] = _itself
        if self.hook_tensors == "auto" and not all(_is_ours(self, hook) for hook in HOOKS):
            kind = eagerpy_kind() or _itself
        origin = kind(x0)
        loss_fn = self.get_loss_fn(model, kind(classes))
        optimizer = self.get_optimizer(origin, self._stepsize(radius))
        sign = -1.0 if targeted else 1.0
        x = origin
        if self.random_start:
            start, _ = unwrapped(self.get_random_start(origin, radius))
            x = kind(start.detach().clamp(*model.bounds))
        for _ in range(self.steps):
            _, gradients = self.value_and_grad(loss_fn, x)
            gradients = self.normalize(gradients, x=x, bounds=model.bounds)
            x = self.project(x + sign * optimizer(gradients), origin, radius)
            x = kind(unwrapped(x)[0].detach().clamp(*model.bounds))
        found, _ = unwrapped(x)
        return found.clone() if found is x0 else found


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _is_ours(attack: BaseGradientDescent, name: str) -> bool:
    """Whether a method is the one that comes with the norm of the attack."""
    kind = next(kind for kind in type(attack).__mro__ if "engine_norm" in vars(kind))
    return getattr(getattr(attack, name), "__func__", None) is getattr(kind, name)


def _in_one_batch(
    attack: PGDAttack,
    x: Tensor,
    classes: Tensor,
    radii: list[float],
    stepsizes: list[float],
    starts: list[Tensor | None],
) -> list[Tensor]:
    """Every input within every radius, K*B rows, in as many calls of the engine as the memory asks for."""
    count, device = len(x), x.device
    eps = torch.tensor(radii, dtype=torch.float64, device=device)
    alpha = torch.tensor(stepsizes, dtype=torch.float64, device=device)
    init = None if starts[0] is None else torch.cat(starts)  # type: ignore[arg-type]
    rows = max(count, BATCH_ELEMENTS // max(x[:1].numel(), 1), 1)
    found = []
    for part in torch.arange(count * len(radii), device=device).split(rows):
        sample, radius = part % count, part // count
        attack.eps = per_sample(eps[radius], x)
        attack.alpha = per_sample(alpha[radius], x)
        found.append(attack(x[sample], classes[sample], init=None if init is None else init[part]))
    return list(torch.cat(found).reshape(len(radii), *x.shape))


# --- the three norms ---


class LinfBaseGradientDescent(BaseGradientDescent):
    """The sign of the gradient; a clamp."""

    distance = linf
    engine_norm = "linf"

    def get_random_start(self, x0: Any, epsilon: float) -> Any:
        x, restore = unwrapped(x0)
        uniform = torch.rand(x.shape, dtype=x.dtype, device=x.device)
        return restore(x + (uniform * (2 * epsilon) - epsilon))

    def normalize(self, gradients: Any, *, x: Any, bounds: Any) -> Any:
        gradient, restore = unwrapped(gradients)
        return restore(gradient.sign())

    def project(self, x: Any, x0: Any, epsilon: float) -> Any:
        moved, restore = unwrapped(x)
        origin, _ = unwrapped(x0)
        return restore(origin + within(moved - origin, math.inf, epsilon))


def _unit(gradient: Tensor, p: float) -> Tensor:
    norms = torch.linalg.vector_norm(gradient.flatten(1), p, dim=1).clamp(min=1e-12)
    return gradient * per_sample(1 / norms, gradient)


class L2BaseGradientDescent(BaseGradientDescent):
    """The gradient divided by its l2 norm; a rescaling of the perturbation, which is the Euclidean projection."""

    distance = l2
    engine_norm = "l2"

    def get_random_start(self, x0: Any, epsilon: float) -> Any:
        # Uniform in the n-ball: n coordinates of a point on the sphere in n + 2 dimensions (Voelker et al. 2017).
        x, restore = unwrapped(x0)
        count, size = len(x), x[:1].numel()
        normal = torch.randn(count, size + 2, dtype=x.dtype, device=x.device)
        sphere = normal / torch.linalg.vector_norm(normal, dim=1, keepdim=True)
        return restore(x + epsilon * sphere[:, :size].reshape(x.shape))

    def normalize(self, gradients: Any, *, x: Any, bounds: Any) -> Any:
        gradient, restore = unwrapped(gradients)
        return restore(_unit(gradient, 2))

    def project(self, x: Any, x0: Any, epsilon: float) -> Any:
        moved, restore = unwrapped(x)
        origin, _ = unwrapped(x0)
        return restore(origin + within(moved - origin, 2, epsilon))


class L1BaseGradientDescent(BaseGradientDescent):
    """The gradient divided by its l1 norm; a rescaling of the perturbation.

    That is not the Euclidean projection of `PGDAttack(norm="l1")`, so these run step by step.
    """

    distance = l1
    engine_norm = None

    def get_random_start(self, x0: Any, epsilon: float) -> Any:
        # Gaps between sorted uniform numbers, with random signs, are uniform in the l1 ball.
        x, restore = unwrapped(x0)
        count, size = len(x), x[:1].numel()
        uniform = torch.rand(count, size, dtype=x.dtype, device=x.device).sort(dim=1).values
        gaps = uniform.diff(dim=1, prepend=torch.zeros_like(uniform[:, :1]))
        signs = (torch.rand(count, size, dtype=x.dtype, device=x.device) * 2 - 1).sign()
        return restore(x + epsilon * (signs * gaps).reshape(x.shape))

    def normalize(self, gradients: Any, *, x: Any, bounds: Any) -> Any:
        gradient, restore = unwrapped(gradients)
        return restore(_unit(gradient, 1))

    def project(self, x: Any, x0: Any, epsilon: float) -> Any:
        moved, restore = unwrapped(x)
        origin, _ = unwrapped(x0)
        return restore(origin + within(moved - origin, 1, epsilon))
