"""You Only Propagate Once (Zhang et al., NeurIPS 2019)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from advfast.attacks import checks
from advfast.attacks.state import crafting
from advfast.data import Batch
from advfast.kernels import pgd_step_, random_start

from .base import Backward, Method, Settings, Step

if TYPE_CHECKING:
    from ..loop import Batches


class YOPO(Method):
    """m whole passes a batch, and after each of them n steps on the images through the first layer alone.

    With f = g(f0(.)), f0 up to the first layer with a weight matrix (normalisation before it included), and
    z = f0(x'): a whole pass at x' gives the gradient of CE to the weights and p = dCE/dz; with p frozen,
    x' <- x' + alpha sign(grad_x' <f0(x'), p>), put back into ball and box, n times; then <f0(x'), p> adds its gradient
    to the weights of f0. The gradients of the m rounds are summed: the published rate is lower for it (0.04 with
    batches of 256 for YOPO-5-3).

    As in the authors' code the uniform start is not clamped to the box (the steps are), all passes are in train mode,
    so that running statistics move m times a step, and the weights of f0 learn from both terms. `steps` and `bn` are
    not used; alpha None is eps/4 (2/255 at 8/255). The loss and the accuracy of a step are those of its last whole
    pass. Options:

    * m: 5, n: 3, as published;
    * hamiltonian: false leaves <f0(x'), p> out of the gradient of the weights.

    Raises:
        ValueError: an option out of range; `micro_batch`, which is for methods that craft first and learn then; or, at
            the beginning of a run, a network in which no module with a weight matrix is called, or the first is frozen.
    """

    options: ClassVar[tuple[str, ...]] = ("m", "n", "hamiltonian")
    defaults: ClassVar[dict[str, Any]] = {"steps": 1}
    separable: ClassVar[bool] = False

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        self.m, self.n = self.option("m", 5), self.option("n", 3)
        checks.check_count("m", self.m, 1)
        checks.check_count("n", self.n, 1)
        self.hamiltonian = self.option("hamiltonian", True)
        if not isinstance(self.hamiltonian, bool):
            raise ValueError(f"hamiltonian must be true or false, got {self.hamiltonian!r}")
        if settings.micro_batch is not None:
            raise ValueError(
                "yopo crafts and learns in the same passes over the batch: micro_batch must be "
                f"None, got {settings.micro_batch}"
            )
        self.steps = 1
        self.layer: nn.Module | None = None

    def begin(self, batches: Batches, images: Tensor) -> None:
        self.layer = first_layer(self.model, images)
        if not any(parameter.requires_grad for parameter in self.layer.parameters()):
            raise ValueError(
                f"yopo needs a first layer that is trained, the {type(self.layer).__name__} is frozen"
            )

    def craft(self, batch: Batch) -> Tensor:
        return random_start(
            batch.images.detach(),
            eps=self.eps,
            norm=self.settings.norm,
            bounds=None,
            seed=torch.randint(2**63 - 1, (1,), device=batch.images.device),
            sample_ids=batch.indices,
        )

    def update(self, images: Tensor, batch: Batch, backward: Backward) -> Step:
        clean = batch.images.detach()
        found: list[Tensor] = []
        for _ in range(self.m):
            with self._first_call(lambda z: z.register_hook(found.append)):
                step = self.loss(images, batch)
            backward(step.loss)
            # Of the scaled loss, so that what follows has the same scale.
            p = found.pop()
            for _ in range(self.n):
                leaf = images.detach().requires_grad_()
                z = self._to_first_layer(leaf.clamp(0, 1))
                (gradient,) = torch.autograd.grad(z, leaf, p)
                pgd_step_(
                    images, gradient, clean, alpha=self.alpha, eps=self.eps, norm=self.settings.norm
                )
            if self.hamiltonian:
                torch.autograd.backward(self._to_first_layer(images), p)
        return step

    def strength(self, eps: float, alpha: float, steps: int) -> None:
        super().strength(eps, alpha, 1)

    def passes(self) -> float:
        """Of whole passes; the 2 n + 2 of f0 alone in each round are not counted."""
        return 3.0 * self.m

    def _to_first_layer(self, images: Tensor) -> Tensor:
        """f0: the network as far as its first layer."""
        found: list[Tensor] = []

        def stop(z: Tensor) -> None:
            found.append(z)
            raise _Reached

        with self._first_call(stop), self.autocast(images.device), suppress(_Reached):
            self.model(images)
        return found[0]

    @contextmanager
    def _first_call(self, see: Callable[[Tensor], object]) -> Iterator[None]:
        """`see` is given what the first layer returns when it is first called."""
        assert self.layer is not None
        seen = False

        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            nonlocal seen
            if not seen:
                seen = True
                see(output)

        handle = self.layer.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


class _Reached(Exception):
    """Nothing behind the first layer is to be computed."""


def first_layer(model: nn.Module, images: Tensor) -> nn.Module:
    """The module with a weight matrix of its own (a convolution, a linear layer) that is done first in a forward pass.

    Args:
        images: [B, C, H, W], a few to try it with; the model is left as it was.

    Raises:
        ValueError: there is none, or it returns no tensor.
    """
    found: list[tuple[nn.Module, object]] = []
    handles = [
        module.register_forward_hook(lambda module, inputs, output: found.append((module, output)))
        for module in model.modules()
        if any(parameter.dim() >= 2 for parameter in module.parameters(recurse=False))
    ]
    try:
        with crafting(model, "eval"), torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ValueError(
            "yopo needs a first layer: a module with a weight matrix, such as nn.Conv2d or nn.Linear, that "
            f"{type(model).__name__} calls; it calls none"
        )
    module, output = found[0]
    if not isinstance(output, Tensor):
        raise ValueError(
            f"yopo needs a first layer that returns a tensor, {type(module).__name__} returns a "
            f"{type(output).__name__}"
        )
    return module
