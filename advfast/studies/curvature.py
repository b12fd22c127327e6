"""How curved the loss is in its input: the largest eigenvalue of its Hessian, image by image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from advfast.attacks.state import crafting
from advfast.kernels.pgd.api import nearest

PRODUCTS = ("exact", "difference")
Product = Callable[[Tensor], Tensor]
"""v [B, ...] -> H v [B, ...], H the Hessians of B samples."""


def input_curvature(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 20,
    product: str = "exact",
    h: float = 1e-2,
    seed: int = 0,
) -> Tensor:
    """lambda_max of H_i = d^2 CE(f(x_i), y_i) / dx_i^2 for each sample, by power iteration of all at once.

    The model is in eval mode, so that samples do not depend on each other: the product of the Hessian of the summed
    loss with v [B, C, H, W] is then that of each sample with its own vector. Power iteration finds the eigenvalue of
    the largest magnitude. Where it is negative, a second one, of H - mu I with that eigenvalue mu, finds the largest.

    Args:
        model: images [B, C, H, W] -> logits [B, K]; left as it was.
        images, labels: [B, C, H, W] floating point, [B].
        steps: of the power iteration.
        product: "exact", the derivative of <grad, v> by a second backward pass; of a network with ReLU it does not see
            the kinks. "difference": (grad(x + h v) - grad(x - h v)) / 2h with |v|_2 = 1, which sees those within h.
        h: of the difference, in pixel units.
        seed: of the vectors that it begins with.

    Returns:
        [B], in the dtype of the images, on the CPU.

    Raises:
        ValueError: not such a product, steps below 1, or h not above 0.
    """
    if product not in PRODUCTS:
        raise ValueError(
            f"product must be one of {', '.join(PRODUCTS)}, got {product!r}{nearest(product, PRODUCTS)}"
        )
    if steps < 1 or not h > 0:
        raise ValueError(f"steps must be 1 or more and h above 0, got {steps} and {h}")
    random = torch.Generator().manual_seed(seed)
    start = torch.randn(images.shape, generator=random, dtype=images.dtype).to(images.device)
    with crafting(model, "eval"), torch.enable_grad():
        if product == "exact":
            times = exact_product(model, images, labels)
        else:
            times = difference_product(model, images, labels, h)
        largest = _power(times, start, steps)
        shift = _like(largest.clamp(max=0), images)
        if bool((shift < 0).any()):
            again = _power(lambda v: times(v) - shift * v, start, steps)
            largest = torch.where(largest < 0, largest + again, largest)
    return largest.cpu()


def exact_product(model: nn.Module, images: Tensor, labels: Tensor) -> Product:
    """H v by a backward pass through the gradient, whose graph is made once."""
    x = images.detach().clone().requires_grad_()
    loss = cross_entropy(model(x), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    if not gradient.requires_grad:  # the loss is linear in x
        return torch.zeros_like

    def times(v: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(gradient, x, v, retain_graph=True)
        return found

    return times


def difference_product(model: nn.Module, images: Tensor, labels: Tensor, h: float) -> Product:
    """H v by central differences of the gradient along v, whose length is 1."""

    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (found,) = torch.autograd.grad(cross_entropy(model(x), labels, reduction="sum"), x)
        return found

    return lambda v: (gradient(images + h * v) - gradient(images - h * v)) / (2 * h)


def _power(times: Product, start: Tensor, steps: int) -> Tensor:
    """The Rayleigh quotient <v, H v> [B] of the last vectors."""
    v = _unit(start)
    for _ in range(steps):
        v = _unit(times(v), v)
    return (v * times(v)).flatten(1).sum(1).detach()


def _unit(v: Tensor, otherwise: Tensor | None = None) -> Tensor:
    """v / |v| of each sample; where v is 0, that is where H is, the vector before."""
    length = _like(v.flatten(1).norm(dim=1), v)
    made = v / length.clamp(min=torch.finfo(v.dtype).tiny)
    return made if otherwise is None else torch.where(length > 0, made, otherwise)


def _like(values: Tensor, images: Tensor) -> Tensor:
    return values.view(-1, *[1] * (images.dim() - 1))
