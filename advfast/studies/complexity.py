"""Measures of the complexity of a trained network, of which some are said to tell how it generalises.

The list is that of Dong et al. (ICLR 2022, arXiv 2106.01606) as far as it is known: norms, margins, flatness, boundary
thickness and input gradients.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from advfast.attacks import PGDAttack
from advfast.models.normalise import Normalise

from .objective import Objective, length

MEASURES = {
    "log_spectral": 1,
    "log_frobenius": 1,
    "log_path": 1,
    "margin": -1,
    "robust_margin": -1,
    "sharpness": 1,
    "input_gradient": 1,
    "boundary_thickness": -1,
}
"""Name -> 1 where more of it is said to be more complex, -1 where less is."""

RHO = 0.05
"""Of `sharpness`: length of the step over that of the weights, in every tensor of them."""

QUANTILE = 0.1
"""Of the margins over the images."""

THICKNESS = (0.0, 0.75)
"""Differences of two probabilities between which a point is in the boundary (Yang et al., NeurIPS 2020)."""

_POINTS = 100
_CHUNK = 500
_DUAL: dict[str, float] = {"linf": 1, "l2": 2, "l1": math.inf}


def complexity(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    seed: int = 0,
) -> dict[str, float | None]:
    """All of `MEASURES` of a network, in eval mode, on images that it was trained on.

    Args:
        model: images [B, C, H, W] -> logits [B, K]; it is not changed.
        images: [N, C, H, W] in [0, 1], on its device.
        labels: [N] int64, those of the training.
        eps, norm: of the attacks: PGD-10 for the robust margin and the sharpness; PGD-20 in the l2 ball of
            `thickness_radius` for the boundary thickness.
        seed: of their random starts.
    """
    net = copy.deepcopy(model).eval().requires_grad_(True)
    layers = weight_layers(net, images)
    attack = PGDAttack(net, eps=eps, steps=10, norm=norm, seed=seed, capture="off")
    adversarial = _by_chunks(lambda x, y: attack(x, y), images, labels)
    radius = thickness_radius(eps, norm, math.prod(images.shape[1:]))
    ascent = PGDAttack(net, eps=radius, steps=20, norm="l2", seed=seed, capture="off")
    ends = _by_chunks(lambda x, y: ascent(x, y), images, labels)
    objective = Objective(net, "pgd-at", images, labels, eps=eps, steps=10, norm=norm, seed=seed)
    return {
        "log_spectral": _log_product(spectral_norm(layer, shape) for layer, shape in layers),
        "log_frobenius": _log_product(length([layer.weight]) for layer, _ in layers),
        "log_path": log_path_norm(net, images),
        "margin": margin(net, images, labels),
        "robust_margin": margin(net, adversarial, labels),
        "sharpness": sharpness(objective),
        "input_gradient": input_gradient(net, images, labels, norm),
        "boundary_thickness": boundary_thickness(net, images, ends),
    }


def _log_product(factors: Iterable[float]) -> float | None:
    """The sum of the logarithms; None where a factor is 0 or not finite."""
    found = list(factors)
    return sum(map(math.log, found)) if all(0 < v < math.inf for v in found) else None


def thickness_radius(eps: float, norm: str, values: int) -> float:
    """Radius of the l2 attack whose images are the other ends for `boundary_thickness`: twice the largest l2 norm of a
    perturbation in the ball of `eps`, which for linf is eps sqrt(D)."""
    return 2 * eps * (math.sqrt(values) if norm == "linf" else 1)


def weight_layers(model: nn.Module, images: Tensor) -> list[tuple[Any, torch.Size]]:
    """(layer, shape of its input, a batch of one) of every convolution and linear layer that a forward pass goes
    through, each once, in order. Normalisation layers are not among them, nor transposed convolutions."""
    found: dict[nn.Module, torch.Size] = {}

    def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.setdefault(module, inputs[0].shape)

    hooks = [
        module.register_forward_hook(see)
        for module in model.modules()
        if isinstance(module, (_ConvNd, nn.Linear)) and not isinstance(module, _ConvTransposeNd)
    ]
    try:
        with torch.no_grad():
            model(images[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return list(found.items())


def spectral_norm(layer: Any, shape: Sequence[int], iterations: int = 200) -> float:
    """The largest singular value of a layer as a linear map, without its bias; of a convolution on inputs of this
    shape with its stride and padding, by power iteration."""
    weight = layer.weight.detach().double()
    if isinstance(layer, nn.Linear):
        return float(torch.linalg.matrix_norm(weight, 2))
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(weight.device)
    value = 0.0
    if not weight.any():
        return value
    for _ in range(iterations):
        v = (v / v.norm()).requires_grad_(True)
        with torch.enable_grad():
            image = layer._conv_forward(v, weight, None)
        (v,) = torch.autograd.grad(image, v, image.detach())  # A^T A v
        before, value = value, float(v.norm().sqrt())
        if abs(value - before) <= 1e-9 * value:
            break
    return value


def log_path_norm(model: nn.Module, images: Tensor) -> float | None:
    """log of the path norm: the root of the sum, over paths from an input or a bias to an output, of the squared
    product of the weights on them (Neyshabur et al., COLT 2015).

    It is the sum of the outputs for an image of ones at squared weights. Normalisation layers count as the affine maps
    that they are in eval mode. None for a network with other layers that have weights.
    """
    net = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for module in net.modules():
            if not _squared(module):
                return None
        total = net(torch.ones_like(images[:1], dtype=torch.float64)).sum()
    found = _log_product([float(total)])
    return None if found is None else 0.5 * found


def _squared(module: nn.Module) -> bool:
    """Whether its weights could be replaced by their squares."""
    if isinstance(module, (_ConvNd, nn.Linear)) and not isinstance(module, _ConvTransposeNd):
        for parameter in module.parameters(recurse=False):
            parameter.square_()
    elif isinstance(module, Normalise):
        module.mean.square_().neg_()  # (0 - mean)^2 is added
        module.std.square_()
    elif isinstance(module, _BatchNorm) and module.affine and module.running_var is not None:
        assert module.running_mean is not None
        scale = module.weight / (module.running_var + module.eps).sqrt()
        shift = module.bias - module.running_mean * scale
        module.weight.copy_(scale.square())
        module.bias.copy_(shift.square())
        module.running_mean.zero_()
        module.running_var.fill_(1 - module.eps)
    else:
        return not any(True for _ in module.parameters(recurse=False)) and not isinstance(
            module, _BatchNorm
        )
    return True


def margin(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The tenth percentile over the images of z_y - max_{j != y} z_j of the logits z; below 0 where one is wrong."""
    logits = _logits(model, images).double()
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    return float((own - others).quantile(QUANTILE))


def sharpness(objective: Objective, rho: float = RHO) -> float:
    """L(theta + step) - L(theta) of the adversarial loss L, with images made anew at both: one step up the gradient g,
    rho |theta_l| g_l / |g_l| in each tensor theta_l of the weights, which does not depend on their scale."""
    held = objective.craft()
    step = [
        gradient * (rho * parameter.detach().norm() / gradient.norm().clamp(min=1e-30))
        for parameter, gradient in zip(objective.parameters, objective.gradient(held), strict=True)
    ]
    start = objective.loss(held)
    with objective.moved(step):
        return objective.loss(objective.craft()) - start


def input_gradient(model: nn.Module, images: Tensor, labels: Tensor, norm: str = "linf") -> float:
    """Mean over the images of |grad_x CE(f(x), y)| in the norm dual to that of the attack (l1 for linf): what the loss
    grows by, to first order, per unit of eps."""
    found = []
    for x, y in zip(images.split(_CHUNK), labels.split(_CHUNK), strict=True):
        x = x.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            loss = cross_entropy(model(x), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        found.append(torch.linalg.vector_norm(gradient.double().flatten(1), _DUAL[norm], dim=1))
    return float(torch.cat(found).mean())


def boundary_thickness(
    model: nn.Module, starts: Tensor, ends: Tensor, between: tuple[float, float] = THICKNESS
) -> float | None:
    """Mean over pairs of the length of the part of the segment from x_r to x_s on which p_i - p_j is between two
    values, i the class that is predicted at x_r and j that at x_s (Yang et al., NeurIPS 2020).

    At the middles of 100 equal parts. Pairs of one class are left out; None where all are.

    Args:
        starts, ends: [N, C, H, W], x_r and x_s.
        between: alpha < p_i - p_j < beta.
    """
    i, j = (_logits(model, images).argmax(1) for images in (starts, ends))
    pairs = (i != j).nonzero()[:, 0]
    if len(pairs) == 0:
        return None
    starts, ends, i, j = starts[pairs], ends[pairs], i[pairs, None], j[pairs, None]
    inside = torch.zeros(len(pairs), dtype=torch.float64, device=starts.device)
    for point in range(_POINTS):
        t = (point + 0.5) / _POINTS
        p = _logits(model, t * starts + (1 - t) * ends).double().softmax(1)
        g = (p.gather(1, i) - p.gather(1, j))[:, 0]
        inside += (g > between[0]) & (g < between[1])
    lengths = (starts - ends).double().flatten(1).norm(dim=1)
    return float((lengths * inside / _POINTS).mean())


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part) for part in images.split(_CHUNK)])


def _by_chunks(
    attack: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor
) -> Tensor:
    parts = zip(images.split(_CHUNK), labels.split(_CHUNK), strict=True)
    return torch.cat([attack(x, y) for x, y in parts])
