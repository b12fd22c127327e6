"""cleverhans' two gradient attacks as functions, on the attacks of this library.

``from advfast.compat.cleverhans import fast_gradient_method, projected_gradient_descent`` stands for the imports from
cleverhans.torch.attacks. `fold` is ours: False gives the bits of cleverhans' own loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from advfast.attacks import PGDAttack
from advfast.attacks.state import crafting

from .modes import as_called, statistics_kept

_NORMS = {math.inf: "linf", 2: "l2"}
_TINY = 1e-12


def _at_least_zero(name: str, value: float) -> None:
    if value < 0:
        raise ValueError(f"{name} must be greater than or equal to 0, got {value}")


def _check_clips(clip_min: float | None, clip_max: float | None) -> tuple[float, float] | None:
    """Bounds for the engine."""
    if clip_min is None and clip_max is None:
        return None
    if clip_min is None or clip_max is None:
        raise ValueError(
            "clip_min and clip_max must both be numbers or both be None (one-sided clipping is not "
            f"supported), got {clip_min} and {clip_max}"
        )
    if clip_min > clip_max:
        raise ValueError(f"clip_min must be at most clip_max, got {clip_min} and {clip_max}")
    return clip_min, clip_max


def _check_range(x: Tensor, bounds: tuple[float, float] | None) -> None:
    if bounds is None or not x.numel():
        return
    smallest, largest = torch.stack(torch.aminmax(x.detach())).tolist()
    if not (smallest >= bounds[0] and largest <= bounds[1]):
        raise AssertionError(
            f"x must lie in [clip_min, clip_max] = {list(bounds)}, got values from {smallest:.6g} "
            f"to {largest:.6g}"
        )


def optimize_linear(grad: Tensor, eps: float, norm: float = math.inf) -> Tensor:
    """The perturbation of length eps that raises a linear function most.

    Args:
        grad: [B, ...] its gradient.
        eps: length, in the units of the inputs.
        norm: inf: the sign; 2: the gradient divided by its norm; 1: the largest entry alone, shared by ties.

    Returns:
        [B, ...] in the dtype of grad; 0 for a sample without a gradient.

    Raises:
        NotImplementedError: another norm.
    """
    rest = tuple(range(1, grad.dim()))
    if norm == math.inf:
        direction = grad.sign()
    elif norm == 1:
        sizes = grad.abs()
        largest = sizes == sizes.amax(rest, keepdim=True)
        direction = grad.sign() * largest / largest.sum(rest, keepdim=True)
    elif norm == 2:
        square = grad.square().sum(rest, keepdim=True)
        direction = grad / square.clamp(min=_TINY).sqrt()
    else:
        raise NotImplementedError(f"norm must be inf, 1 or 2, got {norm}")
    return eps * direction


def clip_eta(eta: Tensor, norm: float, eps: float) -> Tensor:
    """eta [B, ...] with the norm of each sample at most eps: clamped for inf, scaled for 2; a new tensor.

    Raises:
        NotImplementedError: norm 1. ValueError: another norm.
    """
    if norm == math.inf:
        return eta.clamp(-eps, eps)
    if norm == 1:
        raise NotImplementedError("clip_eta is not defined for norm 1")
    if norm != 2:
        raise ValueError(f"norm must be inf, 1 or 2, got {norm}")
    square = eta.square().sum(tuple(range(1, eta.dim())), keepdim=True)
    return eta * (eps / square.clamp(min=_TINY).sqrt()).clamp(max=1.0)


def fast_gradient_method(
    model_fn: Callable[[Tensor], Tensor],
    x: Tensor,
    eps: float,
    norm: float,
    clip_min: float | None = None,
    clip_max: float | None = None,
    y: Tensor | None = None,
    targeted: bool = False,
    sanity_checks: bool = False,
    *,
    fold: bool = True,
) -> Tensor:
    """One step of length eps (Goodfellow et al., ICLR 2015).

    Args:
        model_fn: any callable that maps inputs [B, ...] to logits [B, K]; a module runs in the mode that it is in, and
            is left as it was found.
        x: inputs, any float dtype.
        eps: length of the step, in the units of x.
        norm: inf, 2 or 1 (then the largest entry of the gradient moves).
        clip_min, clip_max: bounds of the result, or None for both.
        y: labels [B]; None for what the model predicts. If `targeted`, the classes to reach.
        sanity_checks: x must lie in the bounds.
        fold: permits the engine to change the arithmetic within rounding.

    Returns:
        Adversarial inputs, detached, in the dtype of x; x itself if eps is 0.

    Raises:
        ValueError: norm, eps or bounds. AssertionError: x outside the bounds.
    """
    if norm not in (math.inf, 1, 2):
        raise ValueError(f"norm must be inf, 1 or 2, got {norm}")
    _at_least_zero("eps", eps)
    if eps == 0:
        return x
    bounds = _check_clips(clip_min, clip_max)
    if sanity_checks:
        _check_range(x, bounds)
    if norm == 1:
        with statistics_kept(model_fn):
            gradient = _gradient(model_fn, x, y, targeted)
        moved = x.detach() + optimize_linear(gradient, eps, 1)
        return moved if bounds is None else moved.clamp(*bounds)
    model, bn = as_called(model_fn)
    attack = PGDAttack(
        model,
        eps,
        eps,
        steps=1,
        random_start=False,
        norm=_NORMS[norm],
        targeted=targeted,
        bounds=bounds,
        bn=bn,
        fold=fold,
        check=False,  # inputs outside the bounds are cleverhans' users' to allow
    )
    with statistics_kept(model_fn):
        return attack(x, _labels(model_fn, x, y))


def projected_gradient_descent(
    model_fn: Callable[[Tensor], Tensor],
    x: Tensor,
    eps: float,
    eps_iter: float,
    nb_iter: int,
    norm: float,
    clip_min: float | None = None,
    clip_max: float | None = None,
    y: Tensor | None = None,
    targeted: bool = False,
    rand_init: bool = True,
    rand_minmax: float | None = None,
    sanity_checks: bool = True,
    *,
    fold: bool = True,
) -> Tensor:
    """PGD from a random start (Madry et al., ICLR 2018), or BIM without (Kurakin et al. 2017).

    For norm 2 a step is clipped to the bounds before it is projected onto the ball, and once more after.

    Args:
        model_fn: any callable that maps inputs [B, ...] to logits [B, K]; a module runs in the mode that it is in, and
            is left as it was found.
        x: inputs, any float dtype.
        eps: radius, in the units of x.
        eps_iter: step size, at most eps.
        nb_iter: number of steps.
        norm: inf or 2.
        clip_min, clip_max: bounds of the result, or None for both.
        y: labels [B]; None for what the model predicts on x. If `targeted`, the classes to reach.
        rand_init: start at x plus uniform noise in [-rand_minmax, rand_minmax], projected onto the ball; drawn by
            torch's generator as cleverhans draws it.
        rand_minmax: None for eps.
        sanity_checks: x must lie in the bounds, and for norm inf eps + clip_min <= clip_max.
        fold: permits the engine to change the arithmetic within rounding.

    Returns:
        Adversarial inputs, detached, in the dtype of x; x itself if eps or eps_iter is 0.

    Raises:
        NotImplementedError: norm 1. ValueError: another norm, eps, eps_iter or bounds. AssertionError: eps_iter > eps,
            or a sanity check.
    """
    if norm == 1:
        raise NotImplementedError(
            "norm 1 is not defined here, as in cleverhans: its step would move one pixel at a time. "
            "advfast.PGDAttack(norm='l1') steps along the normalised gradient"
        )
    if norm not in _NORMS:
        raise ValueError(f"norm must be inf or 2, got {norm}")
    _at_least_zero("eps", eps)
    if eps == 0:
        return x
    _at_least_zero("eps_iter", eps_iter)
    if eps_iter == 0:
        return x
    if eps_iter > eps:
        raise AssertionError(f"eps_iter must be at most eps, got {eps_iter} and {eps}")
    bounds = _check_clips(clip_min, clip_max)
    if sanity_checks:
        _check_range(x, bounds)
        if norm == math.inf and bounds is not None and eps + bounds[0] > bounds[1]:
            raise AssertionError(f"eps must be at most clip_max - clip_min, got {eps} in {bounds}")
    model, bn = as_called(model_fn)
    attack = PGDAttack(
        model,
        eps,
        eps_iter,
        nb_iter,
        random_start=False,
        norm=_NORMS[norm],
        targeted=targeted,
        bounds=bounds,
        bn=bn,
        fold=fold,
        l2_order="box-ball-box",
        check=False,
    )
    start = x.detach()
    if rand_init:
        reach = eps if rand_minmax is None else rand_minmax
        start = start + torch.empty_like(start).uniform_(-reach, reach)
    # The engine projects it onto the ball and the box.
    with statistics_kept(model_fn):
        return attack(x, _labels(model_fn, x, y), init=start)


def _labels(model_fn: Callable[[Tensor], Tensor], x: Tensor, y: Tensor | None) -> Tensor:
    """Labels as given, or the predictions: a targeted attack on them is cleverhans' too."""
    if y is not None:
        return y
    model, bn = as_called(model_fn)
    with torch.no_grad(), crafting(model, bn):
        return model(x.detach()).argmax(1)


def _gradient(
    model_fn: Callable[[Tensor], Tensor], x: Tensor, y: Tensor | None, targeted: bool
) -> Tensor:
    labels = _labels(model_fn, x, y)
    model, bn = as_called(model_fn)
    with torch.inference_mode(False), torch.enable_grad(), crafting(model, bn):
        leaf = x.detach().clone().requires_grad_()
        loss = F.cross_entropy(model(leaf), labels.clone(), reduction="sum")
        (gradient,) = torch.autograd.grad(-loss if targeted else loss, leaf)
    return gradient
