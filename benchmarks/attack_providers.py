"""Who runs the attacks of the attack suite: loops by hand, other libraries, advfast in its forms."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peers import NORMS, PEERS, Attack, PeerMaker, Settings
from sequences import EAGER, Work
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from advfast.attacks import PGDAttack
from advfast.attacks.plan import CYCLES_FROM

RADII = {"linf": (8 / 255, 2 / 255), "l2": (1.0, 0.25)}  # eps, alpha in pixel units
Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Case:
    network: str
    shape: Shape  # [B, C, H, W]
    norm: str = "linf"
    layout: str = "NCHW"
    precision: str = "fp32"  # bf16: autocast around the network; the images stay fp32
    steps: int = 10
    everyone: bool = False  # all libraries and a compiled loop; else torchattacks alone
    timed: bool = True  # False: memory alone

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape))

    def __str__(self) -> str:
        names = ("attack", self.norm, self.precision, self.layout, self.size, self.network)
        return " ".join((*names, f"pgd-{self.steps}", "" if self.timed else "memory")).rstrip()


def autocast(case: Case, device: str) -> contextlib.AbstractContextManager[object]:
    return torch.autocast(device, torch.bfloat16, enabled=case.precision == "bf16")


def by_hand(model: Callable[[Tensor], Tensor], case: Case, device: str, steps: int) -> Attack:
    """The loop as training scripts ship it: autograd.grad, then the eager sequence of the step."""
    eps, alpha = RADII[case.norm]
    step = EAGER["pgd_step_", case.norm]

    def run(images: Tensor, labels: Tensor) -> Tensor:
        x = images.clone().detach()
        for _ in range(steps):
            x.requires_grad = True
            with autocast(case, device):
                cost = cross_entropy(model(x), labels)
            (grad,) = torch.autograd.grad(cost, x)
            x = step(Work(x, images, grad, alpha, eps))[0]
        return x

    return run


def network_alone(model: nn.Module, case: Case, device: str) -> Attack:
    """As many passes forward and back to the input as the attack takes: a floor of what changes no arithmetic."""

    def run(images: Tensor, labels: Tensor) -> Tensor:
        x = images.clone().requires_grad_()
        for _ in range(case.steps):
            with autocast(case, device):
                cost = cross_entropy(model(x), labels)
            torch.autograd.grad(cost, x)
        return images

    return run


Maker = Callable[[nn.Module, int], Attack]


def providers(case: Case, device: str, *, compile: bool) -> dict[str, Maker]:
    """Each takes (its own copy of the network, number of steps)."""
    eps, alpha = RADII[case.norm]

    def ours(model: nn.Module, steps: int, **settings: Any) -> Attack:
        # Cycle detection leaves work out, which no other provider does: it has a row of its own.
        settings = {"cycles": "off", "precision": case.precision, **settings}
        return PGDAttack(model, eps, alpha, steps, False, norm=case.norm, **settings)

    def theirs(maker: PeerMaker, model: nn.Module, steps: int) -> Attack:
        attack = maker(model, Settings(case.norm, eps, alpha, steps, case.shape))

        def run(images: Tensor, labels: Tensor) -> Tensor:
            with autocast(case, device):
                return attack(images, labels)

        return attack if case.precision == "fp32" else run

    @functools.cache
    def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
        return torch.compile(model, dynamic=False)

    found: dict[str, Maker] = {"torch": lambda model, steps: by_hand(model, case, device, steps)}
    if compile and case.everyone:
        found["torch_compile"] = lambda model, steps: by_hand(compiled(model), case, device, steps)
    for name, maker in PEERS.items():
        # Only torchattacks leaves the dtype to an autocast around it.
        wanted = name == "torchattacks" or (case.everyone and case.precision == "fp32")
        if wanted and case.norm in NORMS[name]:
            found[name] = partial(theirs, maker)
    # Required: what could not be captured fails here, and is not timed as something else.
    found["advfast"] = partial(ours, capture="required") if device == "cuda" else ours
    if compile and case.everyone:
        found["advfast_compile"] = partial(ours, compile="on")
    found["advfast_exact"] = partial(ours, fold=False)
    if device == "cuda":
        found["advfast_eager"] = partial(ours, capture="off")
    if case.norm == "linf" and case.steps >= CYCLES_FROM:
        found["advfast_cycles"] = partial(ours, cycles="auto")
    if case.norm == "linf" and case.precision == "fp32" and case.everyone:
        found["advfast_bf16"] = partial(ours, precision="bf16")
    return found
