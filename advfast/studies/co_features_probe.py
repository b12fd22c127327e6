"""What a network makes of images with an injected feature: accuracies by set, alignment of gradients, curvature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from advfast.attacks import FGSM, PGDAttack
from advfast.attacks.state import crafting, model_device
from advfast.data import inject
from advfast.kernels import random_start
from advfast.training import CatastrophicOverfitting
from advfast.training.callbacks import TrainState
from advfast.training.methods.gradalign import misalignment

from .curvature import input_curvature
from .room import Room

Sets = Mapping[str, tuple[Tensor, Tensor]]
"""Name -> images [N, C, H, W] as they are, not in a `Room`, and labels [N]."""

CLEAN = ("injected", "original", "carrier", "reverse")
"""Accuracies without an attack: on the test images of the study, on those without the feature, on the features alone,
and on images with the feature of their class turned to its negative."""

SHAPE = ("cos1", "cos2", "curvature")
BOX = (0.0, 1.0)
COLLAPSED = 0.5
"""FGSM minus PGD accuracy from which on a network is said to have collapsed."""


def evaluation_sets(
    images: Tensor, labels: Tensor, beta: float, kind: str, carrier: Tensor, *, clip: bool
) -> dict[str, tuple[Tensor, Tensor]]:
    """The sets of `CLEAN`, of the same test images."""
    kinds = {"injected": kind, "original": "original", "carrier": "carrier-only", "reverse": "reverse"}  # fmt: skip
    return {
        name: inject((images, labels), beta, made, carrier=carrier, clip=clip and name != "carrier")
        for name, made in kinds.items()
    }


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """In eval mode."""
    with crafting(model, "eval"), torch.no_grad():
        right = sum(
            int((model(x).argmax(1) == y).sum())
            for x, y in zip(images.split(512), labels.split(512), strict=True)
        )
    return right / len(labels)


def clean_accuracies(model: nn.Module, sets: Sets) -> dict[str, float]:
    return {name: accuracy(model, *sets[name]) for name in CLEAN}


def attacked_accuracies(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, *, clip: bool, restarts: int
) -> dict[str, float]:
    """ "fgsm" and "pgd" (50 steps of eps / 4, of the restarts the worst), on the attacked images alone.

    A network that has collapsed is right on FGSM images more often than on clean ones, so that images which are wrong
    without an attack may not count as wrong under one.
    """
    if not eps:
        return dict.fromkeys(("fgsm", "pgd"), accuracy(model, images, labels))
    bounds = BOX if clip else None
    # Of several restarts one that succeeds is enough; of one, the result of all steps counts.
    pgd = PGDAttack(
        model, eps, eps / 4, 50, restarts=restarts, bounds=bounds, seed=1, early_stop=restarts > 1, batch_size=512
    )  # fmt: skip
    fgsm = FGSM(model, eps, bounds=bounds, batch_size=512)
    attacks: dict[str, PGDAttack] = {"fgsm": fgsm, "pgd": pgd}
    return {
        name: accuracy(model, attack(images, labels), labels) for name, attack in attacks.items()
    }


def local_shape(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, *, clip: bool
) -> dict[str, float]:
    """How the loss looks around images [N, C, H, W], means over them, in eval mode.

    * cos1: cosine of the gradients at x and at x + U(-eps, eps) (Andriushchenko & Flammarion, NeurIPS 2020).
    * cos2: cosine of the perturbations of FGSM and of PGD-10 (steps of eps / 4).
    * curvature: lambda_max of the Hessian of the loss in the input, see `input_curvature`.
    """
    bounds = BOX if clip else None
    near = random_start(images, eps=eps, norm="linf", bounds=None, seed=0)
    one = FGSM(model, eps, bounds=bounds)(images, labels)
    many = PGDAttack(model, eps, eps / 4, 10, bounds=bounds, seed=0)(images, labels)
    gradients = [_gradient(model, x, labels) for x in (images, near)]
    return {
        "cos1": 1 - float(misalignment(*gradients)),
        "cos2": 1 - float(misalignment(one - images, many - images)),
        "curvature": float(input_curvature(model, images, labels).mean()),
    }


def _gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with crafting(model, "eval"), torch.enable_grad():
        x = images.detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(cross_entropy(model(x), labels, reduction="sum"), x)
    return found


class FeatureMonitor(CatastrophicOverfitting):
    """`CatastrophicOverfitting` that also records what the study looks at: more columns of its history.

    The accuracies of `CLEAN`, and `local_shape` of the first `shape` of the training images that it watches.

    Args:
        sets: for `CLEAN`.
        room: that the training images are in, and the model is made for.
        eps: radius, in pixel units of the images as they are.
        shape: images for `local_shape`.
        settings: of `CatastrophicOverfitting`.
    """

    def __init__(
        self, sets: Sets, room: Room, eps: float, *, clip: bool, shape: int, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.sets, self.room, self.eps, self.clip, self.shape = dict(sets), room, eps, clip, shape

    def more(self, state: TrainState, eps: float, norm: str) -> dict[str, float]:
        model = plain_network(state.model, self.room)
        device = model_device(model) or torch.device("cpu")
        self.sets = {name: (x.to(device), y.to(device)) for name, (x, y) in self.sets.items()}
        images = self.room.take(self._images[: self.shape])
        return clean_accuracies(model, self.sets) | local_shape(
            model, images, self._labels[: self.shape], self.eps, clip=self.clip
        )


def plain_network(model: nn.Module, room: Room) -> nn.Module:
    """What `Room.network` was made of: the network of the images as they are."""
    return model if room.margin == 0 else model.net  # type: ignore[return-value]
