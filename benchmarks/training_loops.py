"""PGD-AT and TRADES written by hand in plain torch, and with torchattacks: a batch a call, everything in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from sequences import EAGER, Work, start_linf
from torch import Tensor, nn
from torch.nn import functional

Craft = Callable[[Tensor, Tensor], Tensor]
Autocast = Callable[[], AbstractContextManager[object]]
EPS, ALPHA, BETA = 8 / 255, 2 / 255, 6.0
STD = 0.001  # of the start of TRADES
MOMENTUM, DECAY = 0.9, 5e-4


@dataclass
class Peer:
    """A call is one step on the weights and returns its loss, detached.

    method: "pgd-at" or "trades". craft: (images, labels) -> adversarial images, leaves the model in train mode.
    autocast: around the network.
    """

    model: nn.Module
    method: str
    craft: Craft
    autocast: Autocast

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=MOMENTUM, weight_decay=DECAY
        )

    def __call__(self, images: Tensor, labels: Tensor, lr: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        adversarial = self.craft(images, labels)
        with self.autocast():
            loss = self.loss(images, adversarial, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def loss(self, images: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
        if self.method == "pgd-at":
            return functional.cross_entropy(self.model(adversarial), labels)
        clean, attacked = self.model(images), self.model(adversarial)
        kl = nn.KLDivLoss(reduction="batchmean")
        robust = kl(functional.log_softmax(attacked, 1), functional.softmax(clean, 1))
        return functional.cross_entropy(clean, labels) + BETA * robust


def pgd_by_hand(model: nn.Module, steps: int, autocast: Autocast) -> Craft:
    """As the loops descended from Madry et al. have it, without forward passes for logging or for restarts."""
    step = EAGER["pgd_step_", "linf"]

    def craft(images: Tensor, labels: Tensor) -> Tensor:
        model.eval()
        x = start_linf(Work(images, images, images, ALPHA, EPS))[0]
        for _ in range(steps):
            x.requires_grad = True
            with autocast():
                loss = functional.cross_entropy(model(x), labels)
            (grad,) = torch.autograd.grad(loss, x)
            x = step(Work(x, images, grad, ALPHA, EPS))[0]
        model.train()
        return x

    return craft


def trades_by_hand(model: nn.Module, steps: int, autocast: Autocast) -> Craft:
    """As the authors' released loop has it: the clean images go through the network, with a graph, in every step.

    (Theirs has a third forward pass in the loss besides, which would only move the running statistics: it is left out.)
    """
    step = EAGER["pgd_step_", "linf"]

    def craft(images: Tensor, labels: Tensor) -> Tensor:
        model.eval()
        x = (images + STD * torch.randn_like(images)).clamp(0, 1).detach()
        for _ in range(steps):
            x.requires_grad = True
            with autocast():
                kl = nn.KLDivLoss(reduction="sum")
                log_q = functional.log_softmax(model(x), 1)
                loss = kl(log_q, functional.softmax(model(images), 1))
            (grad,) = torch.autograd.grad(loss, x)
            x = step(Work(x, images, grad, ALPHA, EPS))[0]
        model.train()
        return x

    return craft


def with_torchattacks(
    model: nn.Module,
    method: str,
    steps: int,
    autocast: Autocast,
) -> Craft:
    """Raises ImportError where it is missing."""
    import torchattacks

    kind = torchattacks.PGD if method == "pgd-at" else torchattacks.TPGD
    attack = kind(model, eps=EPS, alpha=ALPHA, steps=steps)

    def craft(images: Tensor, labels: Tensor) -> Tensor:
        with autocast():
            return attack(images, labels)

    return craft


def peers(
    model: Callable[[], nn.Module],
    method: str,
    steps: int,
    autocast: Autocast,
) -> dict[str, Callable[[], Peer]]:
    """Makers by name of provider; model() is another copy of the same network each time."""
    by_hand = {"pgd-at": pgd_by_hand, "trades": trades_by_hand}[method]

    def torch_() -> Peer:
        net = model()
        return Peer(net, method, by_hand(net, steps, autocast), autocast)

    def torchattacks_() -> Peer:
        net = model()
        return Peer(net, method, with_torchattacks(net, method, steps, autocast), autocast)

    return {"torch": torch_, "torchattacks": torchattacks_}
